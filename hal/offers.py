"""What every backend offers for an op on a device, asked once and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import attrs

from hal.hardware import Device
from hal.op import Kernel, Op
from hal.plugins import REFERENCE, Plugin, State, cause, is_a, registry, shown

__all__ = ["Offer", "asked", "offers"]


@attrs.frozen(eq=False)
class Offer:
    """What one backend has for an op on a device: a kernel, or the reason why there is none."""

    backend: str
    band: int
    order: int = 0
    kernel: Kernel | None = None
    reason: str | None = None

    @property
    def spec(self) -> str:
        """What names this offer and no other: ``backend:kernel``."""
        return f"{self.backend}:{self.kernel.name if self.kernel else ''}"

    def matches(self, spec: str) -> bool:
        """Whether ``spec``, a backend or ``backend:kernel``, means this offer."""
        return spec in (self.backend, self.spec)


def _band(plugin: Plugin) -> int:
    """Third-party for this device type, vendor, portable, reference."""
    if plugin.name == REFERENCE:
        return 3
    if plugin.backend is None or plugin.backend.devices is None:
        return 2
    return 1 if plugin.ours else 0


def _same(found: inspect.Signature, wanted: inspect.Signature) -> bool:
    """Whether names, kinds and defaults of all parameters are the same; annotations may differ."""

    def shape(signature: inspect.Signature) -> list[tuple[Any, ...]]:
        # Types come first: a default of another type, such as a tensor, may not compare at all.
        return [(p.name, p.kind, type(p.default)) for p in signature.parameters.values()]

    pairs = zip(found.parameters.values(), wanted.parameters.values(), strict=False)
    return shape(found) == shape(wanted) and all(a.default == b.default for a, b in pairs)


def _fault(op: Op, kernel: object) -> str | None:
    """Why an answer of a hook is no kernel of ``op``."""
    if not is_a(kernel, Kernel):
        return f"answered with {shown(kernel)}, not a hal.Kernel"
    for function in filter(None, (kernel.fn, kernel.inplace)):
        try:
            found = inspect.signature(function)
        except (TypeError, ValueError) as error:
            return f"the signature of {kernel.name} cannot be had: {error}"
        if not _same(found, op.signature):
            return f"the signature of {kernel.name} is {found}; the op's is {op.signature}"
    if kernel.inplace is not None and not op.inplace:
        return f"{kernel.name} offers an in-place form; the op has none of its own"
    return None


def _checked(plugin: Plugin, op: Op, kernel: object, names: set[str]) -> str | None:
    """Put what is wrong with an offered kernel on record, and return it."""
    try:
        fault = _fault(op, kernel)
        if fault is None and isinstance(kernel, Kernel) and kernel.name in names:
            fault = f"offers two kernels of the name {kernel.name}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # A signature can be any object, with own code.
        fault = f"cannot be inspected: {cause(error)}"
    if fault:
        registry().problem(plugin, f"{op.name}: {fault}")
    return fault


def _answers(plugin: Plugin, op: Op, device: Device) -> Iterator[Offer]:
    """What one backend answers, an offer a kernel, malformed ones as refusals."""
    answer = registry().ask(plugin, op.name, device)
    kernels = answer if is_a(answer, (list, tuple)) else [] if answer is None else [answer]
    if not kernels:
        problems = [p for p in plugin.problems if p.startswith(f"{op.name} ")]
        # What it said when it was asked for devices, such as a library that is not installed.
        none = "offers no kernel here" + (f": {plugin.reason}" if plugin.reason else "")
        yield Offer(plugin.name, _band(plugin), reason="; ".join(problems) or none)
    names: set[str] = set()
    for order, kernel in enumerate(kernels):
        fault = _checked(plugin, op, kernel, names)
        if fault is None:
            names.add(kernel.name)
            fault = kernel.refused and f"{kernel.name}: {kernel.refused}"
        yield Offer(plugin.name, _band(plugin), order, None if fault else kernel, fault)


def _silent(plugin: Plugin, op: Op, device: Device) -> str | None:
    """Why ``plugin`` is not even asked."""
    if plugin.state is not State.LOADED:
        return f"{plugin.state.value}: {plugin.reason}"
    if not plugin.serves(device.type):
        served = ", ".join((plugin.backend and plugin.backend.devices) or ())
        return f"serves {served} only"
    return "denied for this op by HAL_DISABLE" if plugin.denied(op.name) else None


def _ask_all(op: Op, device: Device) -> tuple[Offer, ...]:
    found: list[Offer] = []
    registry().load()
    for plugin in registry().plugins:
        reason = _silent(plugin, op, device)
        if reason:
            found.append(Offer(plugin.name, _band(plugin), reason=reason))
        else:
            found.extend(_answers(plugin, op, device))
    return tuple(sorted(found, key=lambda offer: (offer.band, offer.backend, offer.order)))


asked: dict[tuple[Op, Device], tuple[Offer, ...]] = {}
"""The offers of all backends, by op and device."""


def offers(op: Op, device: Device) -> tuple[Offer, ...]:
    """What every backend offers for ``op`` on ``device``, in the order of bands; asked once."""
    key = op, device
    if key not in asked:
        with registry().lock:
            if key not in asked:
                asked[key] = _ask_all(op, device)
    return asked[key]
