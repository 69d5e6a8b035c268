"""What a check found: a cell of the table, and the exceptions that a check ends with."""

from __future__ import annotations

import enum
from typing import Any

import attrs

__all__ = ["Cell", "NotApplicable", "NotTried", "Refuted", "Status"]


class Status(enum.Enum):
    """What became of a claim."""

    PROVEN = "proven"
    REFUTED = "refuted"
    GAP = "known gap"
    NOT_APPLICABLE = "not applicable"
    NOT_TRIED = "not tried"


@attrs.frozen
class Cell:
    """One claim about one kernel, and what a check says of it.

    Attributes:
        op: The op.
        kernel: Which kernel, as ``backend:kernel``.
        check: The name of the check.
        status: What became of it.
        cases: How many cases were run.
        reason: Why it is so; empty if it is proven.
        seconds: How long it took.
    """

    op: str
    kernel: str
    check: str
    status: Status
    cases: int = 0
    reason: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The cell as plain data."""
        return attrs.asdict(self) | {"status": self.status.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cell:
        """The inverse of ``to_dict``."""
        fields: dict[str, Any] = {**data, "status": Status(data["status"])}
        return cls(**fields)


class NotApplicable(Exception):
    """The check says nothing of this kernel, and why."""


class NotTried(Exception):
    """The check could not be run here, and why."""


class Refuted(AssertionError):
    """The claim does not hold; ``failures`` are the cases by name, with what was found."""

    def __init__(self, failures: list[tuple[str, str]], cases: int) -> None:
        self.failures = failures
        self.cases = cases
        name, found = failures[0]
        super().__init__(f"{len(failures)} of {cases} cases, the first: {name}: {found}")
