"""What a person or an engine asks: the table of choices, the requirements of a feature, a trace of calls."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.dispatch import Record
from hal.hardware import Capability, Device
from hal.op import OPS
from hal.plugins import BackendInfo, registry
from hal.policy import Entry, Policy, current, entered, op_name
from hal.probe import device as find_device
from hal.probe import devices, known_capability
from hal.select import Choice, choose
from hal.version import __version__

__all__ = ["Report", "Requirement", "backends", "fingerprint", "report", "require", "trace"]

_TRAITS = ("graph_safe", "deterministic", "batch_invariant", "pdl")
# What a device's capability asks of each kernel; the others ask nothing.
_TRAIT_OF = {Capability.GRAPH_CAPTURE: "graph_safe", Capability.PDL: "pdl"}

Where = Tensor | torch.device | Device | str | None


@attrs.frozen
class Report:
    """The choices for ops on devices, with the backends they came from."""

    devices: tuple[Device, ...]
    choices: tuple[Choice, ...]
    backends: tuple[BackendInfo, ...]
    repairs: dict[str, str]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "hal": __version__,
            "torch": torch.__version__,
            "devices": [found.to_dict() for found in self.devices],
            "backends": [info.to_dict() for info in self.backends],
            "choices": [choice.to_dict() | {"traits": traits(choice)} for choice in self.choices],
            "repairs": self.repairs,
            "problems": list(self.problems),
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Op, device, kernel, why, and the traits it claims, a row for each choice."""
        return [
            (
                choice.op,
                str(choice.device),
                str(choice.chosen or "none"),
                choice.chosen.reason if choice.chosen else "; ".join(c.reason for c in choice.candidates),
                " ".join(traits(choice)),
            )
            for choice in self.choices
        ]

    def __str__(self) -> str:
        table = [("op", "device", "kernel", "why", "claims"), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in table]
        lines += [f"backend {b.name} is {b.state}: {b.reason}" for b in self.backends if b.reason]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(line.rstrip() for line in lines)


def traits(choice: Choice) -> list[str]:
    """The traits that the chosen kernel claims."""
    offered = choice.chosen.offered if choice.chosen else None
    return [trait for trait in _TRAITS if offered is not None and getattr(offered, trait)]


def report(device: Where = None, ops: Sequence[Any] | None = None) -> Report:
    """The table of what serves each op, and why.

    Args:
        device: One device; without it all devices of the machine.
        ops: Names or functions of ``hal.ops``; without it all ops.

    Example:
        >>> print(hal.report("cpu", ops=["softmax"]))  # doctest: +NORMALIZE_WHITESPACE
        op       device  kernel        why        claims
        softmax  cpu     native:torch  reference  graph_safe deterministic
    """
    places = devices() if device is None else [find_device(device)]
    names = list(OPS) if ops is None else list(dict.fromkeys(op_name(op) for op in ops))
    choices = [choose(OPS[name], where, current()) for where in places for name in names]
    plugins = registry().plugins
    return Report(
        tuple(places),
        tuple(choices),
        tuple(plugin.info() for plugin in plugins),
        {name: done for plugin in plugins for name, done in plugin.repairs.items()},
        tuple(f"{plugin.name}: {problem}" for plugin in plugins for problem in plugin.problems),
    )


def fingerprint(device: Where = None) -> str:
    """A short hash of all choices, for ranks to compare and for caches to key on.

    It covers the order of kernels for every op, their backends' versions, hal and torch, for one device or all.

    Example:
        >>> len(hal.fingerprint("cpu"))
        16
    """
    described = report(device)
    served = {
        (choice.op, str(choice.device)): [str(c) for c in choice.candidates if c.offered is not None]
        for choice in described.choices
    }
    versions = [(b.name, b.distribution, b.version) for b in described.backends if b.state == "loaded"]
    text = json.dumps([__version__, torch.__version__, versions, sorted(served.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@attrs.frozen
class Requirement:
    """The answer of ``hal.require``; true where everything asked for is there.

    Attributes:
        capability: What was asked for.
        device: Where.
        kernels: The kernel that would serve each op, as ``backend:kernel``; None where none may.
        reasons: Why not, for each op that has no such kernel; for the device itself under its name.
    """

    capability: Capability
    device: Device
    kernels: dict[str, str | None]
    reasons: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether there are no reasons against it."""
        return not self.reasons

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{self.capability.value} on {self.device}: {'ok' if self.ok else 'no'}"]
        lines += [f"  {op}: {kernel}" for op, kernel in self.kernels.items() if kernel]
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
        }


def require(
    capability: Capability | str, ops: Sequence[Any] | None = None, device: Where = None
) -> Requirement:
    """Whether a feature may be switched on: the device has the capability, and each op a kernel fit for it.

    A kernel with a condition of its own cannot vouch for every call: an op is fit if some unconditional
    kernel is.

    Args:
        capability: What the feature needs.
        ops: Names or functions of ``hal.ops`` that run under it; without it all ops.
        device: Where; without it the current device.

    Raises:
        InvalidInput: An unknown capability, op or device.

    Example:
        >>> answer = hal.require(hal.Capability.FAKE_KERNELS, ops=[hal.ops.rms_norm], device="cpu")
        >>> bool(answer), answer.kernels
        (True, {'rms_norm': 'native:torch'})
    """
    wanted, where = known_capability(capability), find_device(device)
    names = list(OPS) if ops is None else [op_name(op) for op in ops]
    reasons: dict[str, str] = {}
    if wanted not in where.capabilities:
        reasons[str(where)] = f"no backend states {wanted.value} for {where} ({where.name})"
    trait = _TRAIT_OF.get(wanted)
    policy = Policy((*current().entries, *([Entry("trait", None, trait)] if trait else [])))
    kernels: dict[str, str | None] = {}
    for name in names:
        choice = choose(OPS[name], where, policy)
        kernels[name] = str(choice.chosen) if choice.chosen else None
        if not _vouches(choice):
            reasons[name] = "; ".join(f"{c}: {c.reason}" for c in choice.candidates)
    return Requirement(wanted, where, kernels, reasons)


def _vouches(choice: Choice) -> bool:
    """Whether some candidate that is not refused serves every call."""
    after = False
    for candidate in choice.candidates:
        after = after or candidate.chosen
        passed = candidate.chosen or candidate.reason.endswith(" comes first")
        if after and passed and candidate.offered is not None and candidate.offered.supports is None:
            return True
    return False


def backends() -> list[BackendInfo]:
    """Every discovered backend, with how far it came and why no further.

    Loads the backends that are allowed.

    Example:
        >>> [(b.name, b.state) for b in hal.backends() if b.name == "native"]
        [('native', 'loaded')]
    """
    registry().load()
    return [plugin.info() for plugin in registry().plugins]


@attrs.frozen(eq=False)
class _Trace:
    records: list[Record]


@contextlib.contextmanager
def trace() -> Iterator[list[Record]]:
    """Record each call of an op that runs in this thread or task during the block.

    Slow, for looking. What ``torch.compile`` traced inline is torch code by then, and not recorded.

    Yields:
        A list that grows: op, backend, kernel, dtypes and shapes of each call.

    Example:
        >>> with hal.trace() as records:
        ...     _ = hal.ops.silu_and_mul(torch.zeros(2, 8))
        >>> records
        [Record(op='silu_and_mul', backend='native', kernel='torch', dtypes=('float32',), shapes=((2, 8),))]
    """
    records: list[Record] = []
    with entered([Entry("trace", None, _Trace(records))]):
        yield records


