"""A check of the kit (``Check``), how it is declared, and how it goes through its cases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import TypeVar

import attrs

from hal.plugins import cause
from hal.testing.outcome import NotApplicable, NotTried, Refuted
from hal.testing.record import Sample
from hal.testing.subject import Subject, samples

__all__ = [
    "CHECKS",
    "QUICK",
    "THOROUGH",
    "Check",
    "Effort",
    "accepted",
    "check",
    "claimed",
    "each",
    "first_alone",
    "found",
    "sampled",
    "some",
    "under_way",
]

Case = TypeVar("Case")


@attrs.frozen
class Effort:
    """How much is tried.

    Attributes:
        every: A check that is slow looks at each so-manieth sample, and at one of each dtype.
        samples: The others look at each so-manieth, likewise.
        cases: How many random cases there are for an op.
        examples: How many examples there are for a law.
        draws: How many tokens are drawn for a statistic.
        rows: How many rows a call has at the least that is to have many; 0 leaves it out.
    """

    every: int = 6
    samples: int = 1
    cases: int = 200
    examples: int = 30
    draws: int = 100_000
    # Beyond 65,535, which is what the second dimension of a grid holds on most devices.
    rows: int = 70_000


QUICK = Effort(every=100, samples=3, cases=100, examples=10, rows=0)
"""While one works on something: the same checks of all kernels on fewer samples."""

THOROUGH = Effort(every=1, cases=5_000, examples=500, draws=2_000_000)


@attrs.frozen(eq=False)
class Check:
    """A question to each kernel.

    Attributes:
        name: The head of its column.
        run: Answers for a subject with the number of cases that were tried. It raises what
            ``hal.testing.outcome`` has; any other exception refutes too.
        isolated: Whether it may end the process, and so runs in a child.
    """

    name: str
    run: Callable[[Subject, Effort], int]
    isolated: bool = False

    @property
    def summary(self) -> str:
        """What is asked, in a line."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]


CHECKS: dict[str, Check] = {}
"""Every check by name, in the order of the columns."""


def check(
    name: str, *, isolated: bool = False
) -> Callable[[Callable[[Subject, Effort], int]], Callable[[Subject, Effort], int]]:
    """Declare a check."""

    def declare(run: Callable[[Subject, Effort], int]) -> Callable[[Subject, Effort], int]:
        CHECKS[name] = Check(name, run, isolated)
        return run

    return declare


def found(error: BaseException) -> str:
    """What an error says in one line: an assertion of the kit in its words, others with their kind.

    Torch writes pages, so the middle of a long text goes. Pytest appends the values that an
    assertion compared, on lines of their own.
    """
    text = cause(error)
    if type(error) is AssertionError and error.args:
        text = text.removeprefix("AssertionError: ").partition("\nassert ")[0]
    line = " ".join(text.split())
    return line if len(line) <= 600 else f"{line[:400]} ... {line[-190:]}"


under_way: ContextVar[Callable[[str], object]] = ContextVar("under_way", default=str)
"""Is told the name of each case before it is run, which may be the last that is heard of it."""


first_alone: ContextVar[bool] = ContextVar("first_alone", default=False)
"""Whether a check ends at the first case that fails, for those who ask whether there is one."""


def each(
    cases: Iterable[Case],
    body: Callable[[Case], object],
    named: Callable[[Case], str],
    *,
    alone: bool = False,
) -> int:
    """Run ``body`` on each case, or until one fails if that is ``alone``; how many there were.

    Raises:
        Refuted: Some failed, with any exception; each with its name.
    """
    failures: list[tuple[str, str]] = []
    count = 0
    for case in cases:
        count += 1
        under_way.get()(named(case))
        try:
            body(case)
        except (NotApplicable, NotTried):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # What a kernel raises is found.
            failures.append((named(case), found(error)))
            if alone or first_alone.get():
                break
    if failures:
        raise Refuted(failures, count)
    return count


def _kinds(sample: Sample) -> set[tuple[int | str, object]]:
    """The dtypes of arguments, or the types of those that are no tensors."""
    given = [*enumerate(sample.args), *sample.kwargs.items()]
    return {(name, getattr(value, "dtype", type(value))) for name, value in given}


def some(given: Sequence[Sample], every: int) -> list[Sample]:
    """Each so-manieth sample, and the first that has an argument of some dtype.

    Records go through dtypes in turn, of which a stride alone would leave some out.
    """
    chosen, seen = list[Sample](), set[tuple[int | str, object]]()
    for i, sample in enumerate(given):
        if i % every == 0 or not _kinds(sample) <= seen:
            chosen.append(sample)
            seen |= _kinds(sample)
    return chosen


def accepted(subject: Subject, every: int = 1) -> list[Sample]:
    """The samples that the kernel takes, or some of them.

    Raises:
        NotTried: It takes none.
    """
    given = samples(subject.record)
    refusals = [subject.refusal(sample) for sample in given]
    taken = [s for s, refusal in zip(given, refusals, strict=True) if refusal is None]
    if not taken:
        raise NotTried(f"the kernel refuses all {len(given)} samples: {refusals[0]}")
    return some(taken, every)


def claimed(subject: Subject, trait: str) -> None:
    """Go on only if the kernel claims a trait.

    Raises:
        NotApplicable: It does not.
    """
    if not getattr(subject.kernel, trait):
        raise NotApplicable(f"{trait} is not claimed")


def sampled(subject: Subject, body: Callable[[Sample], object], every: int) -> int:
    """Run ``body`` on the samples that the kernel takes."""
    return each(accepted(subject, every), body, lambda sample: sample.name)
