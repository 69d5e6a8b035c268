"""Known gaps: what a backend says of itself that a check will refute, and why."""

from __future__ import annotations

import re

import attrs

from hal.testing.outcome import Cell, Refuted, Status

__all__ = ["Gap", "never", "notimpl", "notyet"]


@attrs.frozen
class Gap:
    """A check that is expected to fail, strictly: when it passes, the marker has to go.

    Attributes:
        kind: ``notimpl``, the backend could; ``notyet``, what it stands on must; ``never``, the
            device cannot.
        op: The op.
        check: The name of the check.
        reason: What it waits for.
        kernel: The kernel's name, where the gap is not one of all kernels for the op.
        cases: A regular expression for the names of the cases that fail; others may not.
    """

    kind: str
    op: str
    check: str
    reason: str
    kernel: str | None = None
    cases: str = ".*"

    def covers(self, cell: Cell) -> bool:
        """Whether it is about the claim of ``cell``."""
        kernel = cell.kernel.partition(":")[2]
        return (self.op, self.check) == (cell.op, cell.check) and self.kernel in (None, kernel)

    def applied(self, cell: Cell, refuted: Refuted | None) -> Cell:
        """What ``cell`` is in the light of this gap."""
        said = f"{self.kind}: {self.reason}"
        if cell.status is Status.PROVEN:
            found = f"marked as a known gap ({said}), but it passes; take the marker out"
            return attrs.evolve(cell, status=Status.REFUTED, reason=found)
        if cell.status is not Status.REFUTED:
            return cell
        failed = [name for name, _ in refuted.failures] if refuted else [""]
        other = [name for name in failed if not re.fullmatch(self.cases, name)]
        if other:
            found = f"not only what is marked ({said}) fails, also {other[0]}: {cell.reason}"
            return attrs.evolve(cell, reason=found)
        return attrs.evolve(cell, status=Status.GAP, reason=f"{said}; found: {cell.reason}")


def notimpl(op: str, check: str, reason: str, **where: str) -> Gap:
    """The backend could do it and does not yet; ``where`` is ``kernel`` and ``cases`` of a gap."""
    return Gap("notimpl", op, check, reason, **where)


def notyet(op: str, check: str, reason: str, **where: str) -> Gap:
    """What the backend stands on, such as a driver or a library, has to do it first."""
    return Gap("notyet", op, check, reason, **where)


def never(op: str, check: str, reason: str, **where: str) -> Gap:
    """The device cannot do it."""
    return Gap("never", op, check, reason, **where)
