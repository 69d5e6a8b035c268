"""Running a check: from what it returns or raises to a cell of the table."""

from __future__ import annotations

import warnings

import attrs

from hal.compat import unchanged
from hal.testing.checks import Effort
from hal.testing.checks.check import found
from hal.testing.outcome import Cell, NotApplicable, NotTried, Refuted, Status
from hal.testing.questions import Question

__all__ = ["tried"]


def tried(question: Question, effort: Effort) -> tuple[Cell, Refuted | None]:
    """Run a check in this process."""
    cell = Cell(question.op, question.kernel, question.check, Status.PROVEN)
    try:
        with warnings.catch_warnings(), unchanged() as changes:
            # The verdict is about results; what torch and numpy warn of on the way is not in it.
            warnings.simplefilter("ignore")
            cases = question.run(effort)
        if changes:  # Which would have been for the whole process.
            raise Refuted([("a call", changes[0])], cases)
        return attrs.evolve(cell, cases=cases), None
    except NotApplicable as reason:
        return attrs.evolve(cell, status=Status.NOT_APPLICABLE, reason=str(reason)), None
    except NotTried as reason:
        return attrs.evolve(cell, status=Status.NOT_TRIED, reason=str(reason)), None
    except Refuted as error:
        refuted = attrs.evolve(cell, status=Status.REFUTED, cases=error.cases, reason=str(error))
        return refuted, error
    except (Exception, SystemExit) as error:  # noqa: BLE001  # What a kernel raises is found.
        return attrs.evolve(cell, status=Status.REFUTED, reason=found(error)), None
