"""Repairs to torch that a device needs: what one is, applying and undoing it, and hal's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import attrs
import torch
from torch.fx import graph as fx

from hal.errors import BackendError

__all__ = ["DEVICE_CONSTANTS", "UNDONE", "Repair", "fits_torch", "mend", "take_back", "torch_range"]

APPLIED = "applied"
UNDONE = "undone"


def torch_range(_: object, __: object, text: str) -> None:
    """Require ``text`` to be a range of versions, as in a requirement."""
    from packaging.specifiers import SpecifierSet  # Slow, and needed by no import of hal.

    SpecifierSet(text)


@attrs.frozen
class Repair:
    """A change to torch that some device needs.

    Args:
        name: What is repaired, a few words.
        torch: The versions of torch in which the fault was seen, as in a requirement.
        needed: Looks for the fault; False where it is mended, whatever the version. It is asked
            again and again, and changes nothing.
        apply: Mends it for the whole process.
        undo: Takes back what ``apply`` did; None if nothing can.

    Example:
        >>> hal.Repair("a name", torch="<2", needed=lambda: True, apply=lambda: None).torch
        '<2'
    """

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    torch: str = attrs.field(validator=torch_range)
    needed: Callable[[], bool] = attrs.field(validator=attrs.validators.is_callable())
    apply: Callable[[], None] = attrs.field(validator=attrs.validators.is_callable())
    undo: Callable[[], None] | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.is_callable())
    )


def fits_torch(text: str) -> bool:
    """Whether the installed torch is in a range; its local part (``+cu130``) does not count."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    public = Version(torch.__version__).public
    return SpecifierSet(text, prereleases=True).contains(Version(public))


def mend(wanted: Repair, before: str = "") -> str:
    """Apply ``wanted`` where it is called for, and say what was done, ``before`` included.

    Raises:
        BackendError: The fault is still there; what was done against it is taken back.
    """
    if not fits_torch(wanted.torch):
        return f"not applied: for torch {wanted.torch}"
    if not wanted.needed():
        return APPLIED if before == APPLIED else "not needed: the fault is not there"
    with contextlib.ExitStack() as failed:
        if wanted.undo is not None:
            failed.callback(wanted.undo)
        wanted.apply()
        if wanted.needed():
            raise BackendError("it was applied without effect")
        failed.pop_all()
    return APPLIED


def take_back(wanted: Repair, before: str) -> str:
    """Undo ``wanted`` if it is ``before`` applied and can be undone, and say how it stands."""
    if before != APPLIED or wanted.undo is None:
        return before
    wanted.undo()
    return UNDONE


def _unbound() -> bool:
    """Whether code that FX generates does not find the ``device`` that its constants call."""
    constant, graph = torch.device("meta"), fx.Graph()
    graph.output(constant)
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    try:
        return names["forward"](None) != constant
    except NameError:
        return True


def _bind(name: type) -> None:
    """Have the ``device`` of FX's code be ``name``."""
    register = fx._register_custom_builtin  # pyright: ignore[reportPrivateUsage]
    register("device", "from torch import device", name)


# FX writes a device as ``device(type=...)`` and gives its code the ``torch.device`` of the time
# when FX was imported, which it takes, once another is in that place, for a name that needs none.
# An instance has the class that was there at first, whatever has taken its place.
DEVICE_CONSTANTS = Repair(
    "device constants in FX's code",
    torch=">=2.7,<2.14",
    needed=_unbound,
    apply=lambda: _bind(torch.device),
    undo=lambda: _bind(type(torch.device("meta"))),
)
"""For where something replaces ``torch.device``: no code that FX generates then finds ``device``.

``torch.compile``, ``make_fx`` and ``export`` fail with a NameError at each constant that is a
device. It was seen with torch 2.7 to 2.13.
"""
