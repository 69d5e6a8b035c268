"""Repairs to the framework that a backend asks for: bounded, probed, and listed in ``hal.report()``."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

__all__ = ["Repair", "repair", "torch_version"]


@attrs.frozen
class Repair:
    """A change to torch that some device needs.

    Args:
        name: What is repaired, a few words.
        torch: The versions of torch in which the fault was seen, as in a requirement.
        needed: Looks for the fault; False where it is mended, whatever the version.
        apply: Mends it for the whole process.

    Example:
        >>> hal.Repair("a name", torch="<2", needed=lambda: True, apply=lambda: None).torch
        '<2'
    """

    name: str
    torch: str = attrs.field(validator=lambda _, __, text: SpecifierSet(text))
    needed: Callable[[], bool]
    apply: Callable[[], None]


def torch_version() -> Version:
    """The installed torch, without its local part (``+cu130``), which no range should have to name."""
    return Version(Version(torch.__version__).public)


def repair(wanted: Repair) -> str:
    """Apply ``wanted`` where it is called for, and say what was done."""
    if not SpecifierSet(wanted.torch, prereleases=True).contains(torch_version()):
        return f"not applied: for torch {wanted.torch}"
    if not wanted.needed():
        return "not needed: the fault is not there"
    wanted.apply()
    return "applied" if not wanted.needed() else "applied without effect"
