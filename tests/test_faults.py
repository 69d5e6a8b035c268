"""The kit refutes each planted fault by the check that is meant to see it, and for that reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from faults import FAULTS, Fault, ask, sound
from hal.testing.outcome import Status

PAIRS = sorted({(fault.op, fault.check) for fault in FAULTS})


def _samples(op: str, check: str) -> str:
    """A pattern of all samples on which the faults of an op and a check are tried."""
    return "|".join({fault.only for fault in FAULTS if (fault.op, fault.check) == (op, check)})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_refuted(fault: Fault, record_property: Callable[[str, object], None]) -> None:
    cell = ask(fault.op, fault.check, fault.kernel(), fault.only)
    caught = cell.status is Status.REFUTED and re.search(fault.complaint, cell.reason)
    record_property("fault", [fault.name, fault.op, fault.check, bool(caught), cell.reason])
    assert cell.status is Status.REFUTED, f"{cell.status.value}: {cell.reason}"
    assert caught, f"{cell.reason}; expected was {fault.complaint!r}"


@pytest.mark.parametrize(("op", "check"), PAIRS, ids=lambda value: value)
def test_without_the_fault_it_is_proven(op: str, check: str) -> None:
    cell = ask(op, check, sound(op, check), _samples(op, check))
    assert cell.status is Status.PROVEN, cell.reason
    assert cell.cases


def test_there_are_enough() -> None:
    names = [str(fault) for fault in FAULTS]
    assert len(set(names)) == len(names) >= 75
