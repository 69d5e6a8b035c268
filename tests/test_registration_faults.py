"""The kit sees faults of declaration, registration and results, each planted in a scratch op."""

from __future__ import annotations

import contextvars
import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from hal.testing.attempt import tried
from hal.testing.checks import CHECKS, Effort
from hal.testing.checks.check import first_alone
from hal.testing.outcome import Cell, Status
from hal.testing.questions import Question
from registration_faults import FAULTS, Fault, planted

# Torch's own checks take a tenth of a second a sample; one in thirty shows what they see.
EFFORTS = {"opcheck": Effort(every=30), "gradients": Effort(every=30)}


def asked(fault: Fault) -> Cell:
    """What the check of a fault says while that is in."""
    with planted(fault) as subject:
        run = functools.partial(CHECKS[fault.check].run, subject)
        question = Question(subject.op.name, subject.spec, fault.check, subject.device, run)
        return contextvars.copy_context().run(answered, question)


def answered(question: Question) -> Cell:
    """The answer, which ends at the first case that fails."""
    first_alone.set(True)
    return tried(question, EFFORTS.get(question.check, Effort()))[0]


@functools.cache
def sound(op: str, check: str, inplace: bool) -> Cell:
    """What the check says of the op without a fault, planted in the same way."""
    fault = next(
        f for f in FAULTS if (f.op, f.check, f.inplace is not None) == (op, check, inplace)
    )
    return asked(fault.control)


TABLE: list[tuple[Fault, Cell]] = []


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show, at the end, what was seen of each fault."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        write = request.config.get_terminal_writer().line
        write()
        for fault, cell in TABLE:
            seen = "caught" if cell.status is Status.REFUTED else "MISSED"
            write(f"{fault.name:58} {fault.op:21} {fault.check:9} {seen} {cell.reason[:120]}")


def case(fault: Fault) -> Any:
    unseen = pytest.mark.xfail(strict=True, raises=AssertionError, reason=fault.missed)
    return pytest.param(
        fault, id=f"{fault.op}: {fault.name}", marks=[unseen] if fault.missed else []
    )


@pytest.mark.parametrize("fault", [case(fault) for fault in FAULTS])
def test_the_kit_refutes(fault: Fault) -> None:
    control = sound(fault.op, fault.check, fault.inplace is not None)
    assert control.status is Status.PROVEN, control.reason
    found = asked(fault)
    TABLE.append((fault, found))
    assert found.status is Status.REFUTED, found
    assert re.search(fault.complaint, found.reason), found.reason


def test_there_are_many_faults() -> None:
    assert sum(not fault.missed for fault in FAULTS) >= 42
    assert len({(fault.op, fault.name) for fault in FAULTS}) == len(FAULTS)
