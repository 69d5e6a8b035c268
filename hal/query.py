"""What is asked around a call: which kernel serves, what may be switched on, what was called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal import evidence
from hal.dispatch import Record, copy_results
from hal.hardware import Capability, Device
from hal.op import OPS, Kernel, Op
from hal.plugins import registry
from hal.policy import Entry, Policy, current, entered, op_name, op_names
from hal.probe import device as find_device
from hal.probe import known_capability
from hal.select import Candidate, Choice, choose, require_chosen
from hal.validate import as_tuple, check_targets, first_tensor, validate

__all__ = ["Requirement", "bind", "explain", "require", "trace"]

# What a device's capability asks of each kernel; the others ask nothing.
_TRAIT_OF = {Capability.GRAPH_CAPTURE: "graph_safe", Capability.PDL: "pdl"}

Where = Tensor | torch.device | Device | str | None


def bind(op: Callable[..., Any] | str, like: Tensor) -> Callable[..., Any]:
    """The kernel that serves ``op`` on the device of ``like`` here and now, as a plain callable.

    It skips every check, and autograd unless it is plain torch. Where the kernel has a condition,
    the callable asks it at each call, with the preferences that held when it was bound. The
    function with torch's underscore gives one that overwrites.

    Raises:
        NoKernel: No kernel may serve.

    Example:
        >>> norm = hal.bind(hal.ops.rms_norm, like=torch.zeros(1))
        >>> norm(torch.ones(1, 2), None)
        tensor([[1.0000, 1.0000]])
    """
    declared, policy, where = OPS[op_name(op)], current(), find_device(like)
    chosen = require_chosen(choose(declared, where, policy), declared)
    assert chosen.offered is not None
    conditional = chosen.offered.conditional
    overwrites = bool(declared.inplace) and _overwrites(op)
    if not conditional and not overwrites:
        return chosen.offered.fn

    def bound(*args: Any, **kwargs: Any) -> Any:
        flat, served = declared.flatten(args, kwargs), chosen
        if conditional:
            served = require_chosen(choose(declared, where, policy, flat), declared)
        assert served.offered is not None
        if not overwrites:
            return declared.call(served.offered.fn, flat)
        return _overwrite(declared, served.offered, flat)

    return bound


def _overwrites(op: Callable[..., Any] | str) -> bool:
    return (op if isinstance(op, str) else op.__name__).endswith("_")


def _overwrite(op: Op, kernel: Kernel, flat: Sequence[Any]) -> Any:
    """Run a kernel in place, also one that has no such form, and return what it wrote."""
    results, targets = op.call(kernel.inplace or kernel.fn, flat), [flat[i] for i in op.overwritten]
    if kernel.inplace is None:
        copy_results(as_tuple(results), tuple(targets))
    return tuple(targets) if op.results else targets[0]


def explain(op: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Choice:
    """Which kernel would serve this call, and why not the others, from the code that chooses.

    Args:
        op: A function of ``hal.ops`` or its name.
        args: The op's arguments; meta tensors do, with the choice explained for the current device.
            Without any, conditions count as met.
        kwargs: The same by keyword.

    Raises:
        InvalidInput: Arguments that the op refuses.

    Example:
        >>> hal.explain("silu_and_mul", torch.zeros(2, 8)).chosen.kernel
        'torch'
    """
    declared = OPS[op_name(op)]
    if not args and not kwargs:
        return choose(declared, find_device(), current())
    flat = declared.flatten(args, kwargs)
    validate(declared, flat)
    if _overwrites(op):
        check_targets(declared, flat)
    tensor = first_tensor(flat)
    return choose(
        declared, find_device() if tensor.is_meta else find_device(tensor), current(), flat
    )


@attrs.frozen
class Requirement:
    """The answer of ``hal.require``; true where everything asked for is there.

    Attributes:
        capability: What was asked for.
        device: Where.
        kernels: The kernel that would serve each op, as ``backend:kernel``; None where none may.
        reasons: Why not, for each op that has no such kernel; for the device itself under its name.
        standing: Whether what the kernel of each op claims of itself for the capability is
            ``claimed`` or ``proven``, where it is asked of kernels; refuted is a reason against it.
    """

    capability: Capability
    device: Device
    kernels: dict[str, str | None]
    reasons: dict[str, str]
    standing: dict[str, str] = attrs.field(factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no reasons against it."""
        return not self.reasons

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{self.capability.value} on {self.device}: {'ok' if self.ok else 'no'}"]
        for op, kernel in self.kernels.items():
            word = f" ({self.standing[op]})" if op in self.standing else ""
            lines += [f"  {op}: {kernel}{word}"] if kernel else []
        lines += [f"  {op}: {reason}" for op, reason in self.reasons.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        return {
            "capability": self.capability.value,
            "device": str(self.device),
            "ok": self.ok,
            "kernels": self.kernels,
            "reasons": self.reasons,
            "standing": self.standing,
        }


def require(
    capability: Capability | str,
    ops: Iterable[Any] | Callable[..., Any] | str | None = None,
    device: Where = None,
) -> Requirement:
    """Whether a feature may be switched on: the device has it, and each op a kernel fit for it.

    A kernel with a condition of its own cannot vouch for every call: an op is fit if some
    unconditional kernel is.

    Args:
        capability: What the feature needs.
        ops: Names or functions of ``hal.ops`` that run under it, or one; without it all ops.
        device: Where; without it the current device.

    Raises:
        InvalidInput: An unknown capability, op or device.

    Example:
        >>> answer = hal.require(hal.Capability.FAKE_KERNELS, ops=[hal.ops.rms_norm], device="cpu")
        >>> bool(answer), answer.kernels
        (True, {'rms_norm': 'native:torch'})
    """
    wanted, where = known_capability(capability), find_device(device)
    names = op_names(ops)
    reasons: dict[str, str] = {}
    if wanted not in where.capabilities:
        missing = f"no backend states {wanted.value} for {where} ({where.name})"
        reasons[str(where)] = f"{missing}{registry().troubles()}"
    trait = _TRAIT_OF.get(wanted)
    policy = Policy((*current().entries, *([Entry("trait", None, trait)] if trait else [])))
    kernels: dict[str, str | None] = {}
    standing: dict[str, str] = {}
    for name in names:
        choice = choose(OPS[name], where, policy)
        kernels[name] = str(choice.chosen) if choice.chosen else None
        if not _vouches(choice):
            reasons[name] = "; ".join(f"{c}: {c.reason}" for c in choice.candidates)
        elif trait and choice.chosen:
            standing[name] = _standing(choice, choice.chosen, trait)
            if standing[name] == "refuted":
                reasons[name] = f"{choice.chosen}: what it claims, {trait}, was refuted here"
    return Requirement(wanted, where, kernels, reasons, standing)


def _standing(choice: Choice, chosen: Candidate, trait: str) -> str:
    """How the trait of a chosen kernel stands, by the evidence there is."""
    versions = {plugin.name: plugin.version for plugin in registry().plugins}
    version = versions.get(chosen.backend, "")
    return evidence.standing(choice.op, str(chosen), version, choice.device, trait)


def _vouches(choice: Choice) -> bool:
    """Whether some candidate that is not refused serves every call."""
    return any(c.offered is not None and not c.offered.conditional for c in choice.candidates)


@attrs.frozen(eq=False)
class _Trace:
    records: list[Record]


@contextlib.contextmanager
def trace() -> Generator[list[Record], None, None]:
    """Record each call of an op that runs in this thread or task during the block.

    Slow, for looking. What ``torch.compile`` traced inline is torch code by then, and not recorded.

    Yields:
        A list that grows: op, backend, kernel, dtypes and shapes of each call.

    Example:
        >>> with hal.trace() as records:
        ...     _ = hal.ops.silu_and_mul(torch.zeros(2, 8))
        >>> records[0].op, records[0].kernel, records[0].shapes
        ('silu_and_mul', 'torch', ((2, 8),))
    """
    records: list[Record] = []
    with entered([Entry("trace", None, _Trace(records))]):
        yield records
