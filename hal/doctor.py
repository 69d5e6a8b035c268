"""What is wrong with an installation, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hal.hardware import Device
from hal.plugins import DISTRIBUTION, REFERENCE, BackendInfo, State
from hal.report import Report

__all__ = ["Finding", "findings"]

# Beyond this many names a count says more.
_FEW = 4


@attrs.frozen
class Finding:
    """Something that is not as it should be, with what to do about it."""

    what: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """The fields as plain data."""
        return attrs.asdict(self)


def findings(report: Report) -> list[Finding]:
    """What is wrong: backends that failed, problems on record, ops that nothing good serves."""
    found = list(_reference(report))
    found += [finding for backend in report.backends for finding in _unloaded(backend)]
    found += [_problem(problem) for problem in report.problems]
    for device in report.devices:
        found += _fallbacks(report, device)
    return found


def _reference(report: Report) -> Iterator[Finding]:
    """The reference not registered, or denied; where it failed, it is listed like any other."""
    states = {backend.name: backend for backend in report.backends}
    what = f"the backend {REFERENCE}, which defines every result, is"
    if REFERENCE not in states:
        remedy = f"install hal with pip, which registers its backends: pip install {DISTRIBUTION}"
        yield Finding(f"{what} not registered", remedy)
    elif states[REFERENCE].state == State.DISABLED.value:
        yield Finding(f"{what} disabled: {states[REFERENCE].reason}", "do not deny it")


def _unloaded(backend: BackendInfo) -> Iterator[Finding]:
    what = f"backend {backend.name} ({backend.distribution} {backend.version}) is {backend.state}"
    if backend.state == State.FAILED.value:
        repair = f"repair or reinstall {backend.distribution}"
    elif backend.state == State.INCOMPATIBLE.value:
        repair = f"install a version of {backend.distribution} that fits"
    else:
        return
    yield Finding(
        f"{what}: {backend.reason}", f"{repair}, or do without: HAL_DISABLE={backend.name}"
    )


def _problem(problem: str) -> Finding:
    backend = problem.partition(":")[0]
    return Finding(problem, f"update or mend this backend, or do without: HAL_DISABLE={backend}")


def _fallbacks(report: Report, device: Device) -> Iterator[Finding]:
    choices = [choice for choice in report.choices if choice.device == device]
    without = [choice.op for choice in choices if choice.chosen is None]
    # The reference that a user asked for is no fallback; its reason then says so.
    slow = [
        c.op for c in choices if device.accelerator and c.chosen and c.chosen.reason == "reference"
    ]
    if without:
        yield Finding(f"nothing serves {_listed(without)} on {device}", _why(without, device))
    if slow:
        what = f"the reference, which is slow, serves {_listed(slow)} on {device}"
        yield Finding(what, f"install a backend for {device.type}; {_why(slow, device)}")


def _why(ops: list[str], device: Device) -> str:
    return f"who was asked, and why not: hal explain {ops[0]} --device {device}"


def _listed(ops: list[str]) -> str:
    return ", ".join(ops) if len(ops) <= _FEW else f"{len(ops)} ops"
