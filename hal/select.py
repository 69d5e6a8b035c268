"""Choosing: from what backends offer and what the caller wants to an ordered list of candidates with reasons."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from hal.errors import BackendError, NoKernel
from hal.hardware import Device
from hal.op import Kernel, Op
from hal.plugins import REFERENCE, Plugin, State, registry
from hal.policy import Policy
from hal.settings import settings

__all__ = ["Candidate", "Choice", "choose", "offers", "require_chosen"]


@attrs.frozen(eq=False)
class Offer:
    """What one backend has for an op on a device: a kernel, or the reason why there is none."""

    backend: str
    band: int
    order: int = 0
    kernel: Kernel | None = None
    reason: str | None = None

    def matches(self, spec: str) -> bool:
        """Whether ``spec``, a backend or ``backend:kernel``, means this offer."""
        return spec in (self.backend, f"{self.backend}:{self.kernel.name if self.kernel else ''}")


@attrs.frozen
class Candidate:
    """One line of an explanation.

    Attributes:
        backend: The backend that was asked.
        kernel: The kernel it offers; None if it offers none.
        reason: Why it was chosen, passed over or refused.
        chosen: Whether it serves the call.
    """

    backend: str
    kernel: str | None
    reason: str
    chosen: bool = False
    offered: Kernel | None = attrs.field(default=None, repr=False, eq=False)

    def __str__(self) -> str:
        return self.backend if self.kernel is None else f"{self.backend}:{self.kernel}"


@attrs.frozen
class Choice:
    """The candidates for an op on a device, best first, and which of them serves."""

    op: str
    device: Device
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that serves, None if there is none."""
        return next((candidate for candidate in self.candidates if candidate.chosen), None)

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}"]
        width = max((len(str(candidate)) for candidate in self.candidates), default=0)
        for candidate in self.candidates:
            mark = "->" if candidate.chosen else "  "
            lines.append(f"  {mark} {candidate!s:<{width}}  {candidate.reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain data."""
        shown = attrs.filters.exclude("offered")
        return {
            "op": self.op,
            "device": str(self.device),
            "chosen": str(self.chosen) if self.chosen else None,
            "candidates": [attrs.asdict(candidate, filter=shown) for candidate in self.candidates],
        }


def _band(plugin: Plugin) -> int:
    """Third-party for this device type, vendor, portable, reference."""
    if plugin.name == REFERENCE:
        return 3
    if plugin.backend is None or plugin.backend.devices is None:
        return 2
    return 1 if plugin.ours else 0


def _shape(function: Any) -> list[tuple[str, Any, Any]] | None:
    """Names, kinds and defaults of the parameters; None if they cannot be had."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [(p.name, p.kind, p.default) for p in parameters]


def _fault(op: Op, kernel: object) -> str | None:
    """Why an answer of a hook is no kernel of ``op``."""
    if not isinstance(kernel, Kernel):
        return f"answered with {kernel!r}, not a hal.Kernel"
    wanted = [(p.name, p.kind, p.default) for p in op.signature.parameters.values()]
    for function in (kernel.fn, kernel.inplace):
        if function is not None and _shape(function) != wanted:
            try:
                found = str(inspect.signature(function))
            except (TypeError, ValueError):
                found = "unknown"
            return f"its signature is {found}; the op's is {op.signature}"
    if kernel.inplace is not None and not op.inplace:
        return "offers an in-place form; the op has none of its own"
    return None


def _answers(plugin: Plugin, op: Op, device: Device) -> Iterator[Offer]:
    """What one backend answers, an offer a kernel, malformed ones as refusals."""
    seen = len(plugin.problems)
    answer = registry().ask(plugin, op.name, device)
    if answer is None:
        problems = plugin.problems[seen:] or [p for p in plugin.problems if p.startswith(f"{op.name} ")]
        yield Offer(plugin.name, _band(plugin), reason=" and ".join(problems) or "offers no kernel here")
        return
    names: set[str] = set()
    for order, kernel in enumerate(answer if isinstance(answer, Sequence) else [answer]):
        fault = _fault(op, kernel)
        if fault is None and kernel.name in names:
            fault = f"offers two kernels of the name {kernel.name}"
        if fault:
            registry().problem(plugin, f"{op.name}: {fault}")
        else:
            names.add(kernel.name)
        yield Offer(plugin.name, _band(plugin), order, None if fault else kernel, fault)


def _silent(plugin: Plugin, op: Op, device: Device) -> str | None:
    """Why ``plugin`` is not even asked."""
    if plugin.state is not State.LOADED:
        return f"{plugin.state.value}: {plugin.reason}"
    if not plugin.serves(device.type):
        served = ", ".join((plugin.backend and plugin.backend.devices) or ())
        return f"serves {served} only"
    if f"{plugin.name}:{op.name}" in settings().disable:
        return "denied for this op by HAL_DISABLE"
    return None


def _ask_all(op: Op, device: Device) -> tuple[Offer, ...]:
    found: list[Offer] = []
    registry().load()
    for plugin in registry().plugins:
        reason = _silent(plugin, op, device)
        found += [Offer(plugin.name, _band(plugin), reason=reason)] if reason else _answers(plugin, op, device)
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


def _refusal(offer: Offer, op: Op, policy: Policy, args: Sequence[Any] | None) -> str | None:
    """Why ``offer`` may not serve: nothing offered, not forced, a missing trait, its own condition."""
    if offer.kernel is None:
        return offer.reason
    forced = policy.forced(op.name)
    if forced and not any(offer.matches(spec) for spec in forced):
        return f"{' or '.join(forced)} is forced"
    for trait in policy.traits():
        if not getattr(offer.kernel, trait):
            return f"is not {trait}"
    if args is None or offer.kernel.supports is None:
        return None
    return called(op, offer.kernel.supports, args)


def called(op: Op, function: Any, args: Sequence[Any]) -> Any:
    """Call ``function`` with the op's arguments, given flat in the order of its signature."""
    split = sum(p.kind is not p.KEYWORD_ONLY for p in op.signature.parameters.values())
    names = list(op.signature.parameters)[split:]
    return function(*args[:split], **dict(zip(names, args[split:], strict=True)))


def _rank(offer: Offer, op: Op, policy: Policy) -> tuple[int, ...]:
    """Forced and preferred specs in their order, then the order the offers are in."""

    def place(specs: tuple[str, ...]) -> int:
        return next((i for i, spec in enumerate(specs) if offer.matches(spec)), len(specs))

    return place(policy.forced(op.name)), place(policy.preferred(op.name))


def choose(op: Op, device: Device, policy: Policy, args: Sequence[Any] | None = None) -> Choice:
    """Order the offers and take the first that may serve; without ``args``, conditions count as met."""
    candidates: list[Candidate] = []
    winner: str | None = None
    for offer in sorted(offers(op, device), key=lambda offer: _rank(offer, op, policy)):
        reason = _refusal(offer, op, policy, args)
        kernel = offer.kernel.name if offer.kernel else None
        taken = reason is None and winner is None
        if reason is None:
            reason = _merit(offer, op, policy, args) if taken else f"{winner} comes first"
        candidates.append(Candidate(offer.backend, kernel, reason, taken, offer.kernel))
        winner = str(candidates[-1]) if taken else winner
    return Choice(op.name, device, tuple(candidates))


def _merit(offer: Offer, op: Op, policy: Policy, args: Sequence[Any] | None) -> str:
    if any(offer.matches(spec) for spec in policy.forced(op.name)):
        why = "forced"
    elif any(offer.matches(spec) for spec in policy.preferred(op.name)):
        why = "preferred"
    else:
        why = ("third-party for this device", "for this device", "portable", "reference")[offer.band]
    conditional = offer.kernel is not None and offer.kernel.supports is not None
    return f"{why}, if its condition holds" if conditional and args is None else why


def require_chosen(choice: Choice, op: Op) -> Candidate:
    """The chosen candidate; warns once where the reference serves an accelerator by default.

    Raises:
        NoKernel: None may serve; with all reasons and what went wrong with backends.
        BackendError: A kernel was set aside and HAL_STRICT is set.
    """
    chosen = choice.chosen
    if chosen is None:
        raise NoKernel(f"no kernel can serve {choice}{registry().troubles()}")
    if choice.device.accelerator and chosen.reason == "reference":
        _warn_of_reference(op.name, choice.device, str(choice))
    return chosen


@functools.cache
def _warn_of_reference(op: str, device: Device, choice: str) -> None:
    warnings.warn(f"the reference serves an accelerator, which is slow:\n{choice}", stacklevel=2)


def reference(op: Op, device: Device) -> Kernel:
    """The kernel that defines the op: its gradient, and what a compiler sees where it serves.

    Raises:
        BackendError: The reference is switched off or does not have the op.
    """
    for offer in offers(op, device):
        if offer.band == 3 and offer.kernel is not None:
            return offer.kernel
    raise BackendError(f"{op.name} needs its reference, which backend {REFERENCE} does not give")


