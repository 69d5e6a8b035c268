"""What is asked of a backend: each check of each kernel that it offers on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from hal.errors import BackendError, InvalidInput
from hal.evidence import DEVICE
from hal.hardware import Device
from hal.offers import Offer, offers
from hal.op import OPS
from hal.plugins import Plugin, State, registry
from hal.policy import backend_named, op_names
from hal.probe import device as find_device
from hal.probe import devices, present
from hal.testing.capabilities import CAPABILITIES
from hal.testing.checks import CHECKS, Check, Effort
from hal.testing.gaps import Gap
from hal.testing.outcome import NotApplicable, Refuted
from hal.testing.records import RECORDS
from hal.testing.subject import Subject

__all__ = ["OFFER", "Question", "gaps_of", "loaded", "questions", "where"]

OFFER = "offer"
"""The check of what a backend answers for an op where that is no kernel."""


@attrs.frozen(eq=False)
class Question:
    """A claim to be looked into.

    Attributes:
        op: The op, or ``DEVICE`` for what is claimed of a device.
        kernel: Which kernel, as ``backend:kernel``.
        check: The name of the check, or the capability.
        device: Where.
        run: Finds the answer: how many cases were tried, or an exception.
        isolated: Whether it may end the process, and so runs in a child.
    """

    op: str
    kernel: str
    check: str
    device: Device
    run: Callable[[Effort], int]
    isolated: bool = False

    def __str__(self) -> str:
        return f"{self.op} {self.kernel} {self.check}"


def loaded(name: str) -> Plugin:
    """The backend of a name.

    Raises:
        InvalidInput: There is none.
        BackendError: It could not be loaded.
    """
    backend_named(name)
    registry().settle()
    plugin = next(plugin for plugin in registry().plugins if plugin.name == name)
    if plugin.state is not State.LOADED:
        raise BackendError(f"backend {name} is {plugin.state.value}: {plugin.reason}")
    return plugin


def where(name: str, device: str | None = None) -> Device:
    """The device on which a backend is asked: the given one, else the current or first it serves.

    Raises:
        InvalidInput: There is no such backend, or no such device.
        BackendError: The backend could not be loaded, or does not serve a device that is here.
    """
    plugin = loaded(name)
    here = [find_device(device)] if device else [find_device(), *devices()]
    served = [each for each in here if plugin.serves(each.type)]
    if not served:
        found = ", ".join(dict.fromkeys(map(str, here)))
        raise BackendError(f"backend {name} does not serve {found}")
    if not present(served[0]):
        found = ", ".join(map(str, devices()))
        raise InvalidInput(f"there is no device {device!r}; this machine has {found}")
    return served[0]


def gaps_of(name: str) -> list[Gap]:
    """What a backend says is missing, by its hook ``hal_known_gaps``.

    Raises:
        InvalidInput: A gap names an op or a check that does not exist.
    """
    found = registry().collect(loaded(name), "hal_known_gaps", Gap)
    for gap in found:
        if gap.op not in OPS or gap.check not in CHECKS:
            known = f"ops: {', '.join(OPS)}; checks: {', '.join(CHECKS)}"
            raise InvalidInput(f"{gap} names no op or no check; {known}")
    return found


def _named(given: Iterable[str] | None) -> list[Check]:
    names = list(CHECKS) if given is None else list(given)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise InvalidInput(f"there is no check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    return [CHECKS[name] for name in names]


def questions(
    name: str,
    device: Device,
    ops: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> list[Question]:
    """What is asked of a backend on a device: each check of each kernel.

    Args:
        name: The backend.
        device: Where.
        ops: Some ops; without it all.
        checks: Some checks; without it all.

    Raises:
        InvalidInput: An unknown name.
        BackendError: The backend could not be loaded.
    """
    loaded(name)
    wanted = _named(checks)
    found = [
        question
        for op in op_names(None if ops is None else list(ops))
        for offer in offers(OPS[op], device)
        if offer.backend == name
        for question in _of(offer, op, device, wanted)
    ]
    return found + (_of_device(name, device) if ops is None and checks is None else [])


def _of(offer: Offer, op: str, device: Device, checks: Sequence[Check]) -> Iterator[Question]:
    if offer.kernel is None:
        offered = functools.partial(_offered, offer, op)
        yield Question(op, f"{offer.backend}:", OFFER, device, offered)
        return
    subject = Subject(offer.backend, OPS[op], offer.kernel, device, RECORDS[op])
    for check in checks:
        run = functools.partial(check.run, subject)
        yield Question(op, subject.spec, check.name, device, run, check.isolated)


def _offered(offer: Offer, op: str, effort: Effort) -> int:
    """Whether there is no kernel because none is meant, or because what was offered is none."""
    del effort
    problems = loaded(offer.backend).problems
    if any(problem.startswith((f"{op} ", f"{op}:")) for problem in problems):
        raise Refuted([("the hook", offer.reason or "")], 1)
    raise NotApplicable(offer.reason or "")


def _of_device(name: str, device: Device) -> list[Question]:
    """What is claimed of the device itself."""
    return [
        Question(DEVICE, f"{name}:", each.value, device, functools.partial(run, device))
        for each, run in CAPABILITIES.items()
    ]
