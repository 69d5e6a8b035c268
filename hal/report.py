"""The table of what serves each op, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.evidence import evidence, standing, standing_of_device
from hal.hardware import Device
from hal.op import OPS
from hal.plugins import BackendInfo, State, registry
from hal.policy import current, op_names
from hal.probe import device as find_device
from hal.probe import devices
from hal.repairs import UNDONE
from hal.select import Choice, choose
from hal.version import __version__

__all__ = ["Report", "backends", "capabilities", "fingerprint", "report"]

_TRAITS = ("graph_safe", "deterministic", "batch_invariant", "pdl")

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
            "choices": [
                choice.to_dict() | {"traits": self.traits(choice)} for choice in self.choices
            ],
            "capabilities": {str(found): capabilities(found) for found in self.devices},
            "repairs": self.repairs,
            "problems": list(self.problems),
        }

    def traits(self, choice: Choice) -> dict[str, str]:
        """The traits that the chosen kernel claims, each ``claimed``, ``proven`` or ``refuted``."""
        chosen = choice.chosen
        if chosen is None or chosen.offered is None:
            return {}
        versions = {info.name: info.version for info in self.backends}
        told = choice.op, str(chosen), versions.get(chosen.backend, ""), choice.device
        held = [trait for trait in _TRAITS if getattr(chosen.offered, trait)]
        return {trait: standing(*told, trait) for trait in held}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Op, device, kernel, why, and how its traits stand, a row for each choice."""
        return [
            (
                choice.op,
                str(choice.device),
                str(choice.chosen or "none"),
                choice.chosen.reason
                if choice.chosen
                else "; ".join(c.reason for c in choice.candidates),
                ", ".join(f"{trait} {word}" for trait, word in self.traits(choice).items()),
            )
            for choice in self.choices
        ]

    def __str__(self) -> str:
        table = [("op", "device", "kernel", "why", "claims"), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in table
        ]
        # A backend that is loaded and found no device of its own has done what it should.
        told = [b for b in self.backends if b.reason and b.state != State.LOADED.value]
        lines += [f"backend {b.name} is {b.state}: {b.reason}" for b in told]
        simulated = [str(device) for device in self.devices if device.simulated]
        lines += [f"{each} is simulated: nothing here is of hardware" for each in simulated]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(line.rstrip() for line in lines)


def capabilities(device: Device) -> dict[str, str]:
    """What a device is said to be capable of, each ``claimed``, ``proven`` or ``refuted``."""
    ordered = sorted(device.capabilities, key=lambda capability: capability.value)
    return {each.value: standing_of_device(device, each) for each in ordered}


def report(
    device: Where = None, ops: Iterable[Any] | Callable[..., Any] | str | None = None
) -> Report:
    """The table of what serves each op, and why.

    Args:
        device: One device; without it all devices of the machine.
        ops: Names or functions of ``hal.ops``, or one; without it all ops.

    Raises:
        InvalidInput: An unknown device or op, or a file of evidence that is none.

    Example:
        >>> print(hal.report("cpu", ops=["softmax"]))  # doctest: +NORMALIZE_WHITESPACE
        op       device  kernel        why        claims
        softmax  cpu     native:torch  reference  graph_safe claimed, deterministic claimed
    """
    evidence()
    places = devices() if device is None else [find_device(device)]
    choices = [choose(OPS[name], where, current()) for where in places for name in op_names(ops)]
    plugins = registry().plugins
    return Report(
        tuple(places),
        tuple(choices),
        tuple(plugin.info() for plugin in plugins),
        registry().repair(but=UNDONE),
        tuple(f"{plugin.name}: {problem}" for plugin in plugins for problem in plugin.problems),
    )


def fingerprint(device: Where = None) -> str:
    """A short hash of all choices, for ranks to compare and for caches to key on.

    It covers the kernels that may serve every op, in their order, their backends' versions, hal and
    torch, for one device or all. That of one is the same for another that is served alike, such as
    the one that the next rank has.

    Example:
        >>> len(hal.fingerprint("cpu"))
        16
    """
    described = report(device)
    served = {
        (choice.op, str(choice.device) if device is None else choice.device.type): [
            str(c) for c in choice.candidates if c.offered is not None
        ]
        for choice in described.choices
    }
    versions = [
        (b.name, b.distribution, b.version) for b in described.backends if b.state == "loaded"
    ]
    known = [__version__, torch.__version__, sorted(versions), sorted(served.items())]
    text = json.dumps(known)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def backends() -> list[BackendInfo]:
    """Every discovered backend, with how far it came and why no further.

    Loads the backends that are allowed.

    Example:
        >>> [(b.name, b.state) for b in hal.backends() if b.name == "native"]
        [('native', 'loaded')]
    """
    return [plugin.info() for plugin in registry().settle()]
