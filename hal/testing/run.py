"""The answers to what is asked of a backend."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs

from hal.testing.attempt import tried
from hal.testing.checks import Effort
from hal.testing.child import ask
from hal.testing.gaps import Gap
from hal.testing.outcome import Cell
from hal.testing.questions import Question

__all__ = ["answer"]


def answer(
    question: Question, effort: Effort, gaps: Sequence[Gap] = (), apart: bool = False
) -> Cell:
    """Run a check, in a child process if that is wanted or if it is meant to try what ends one."""
    began = time.perf_counter()
    cell, refuted = (ask if apart or question.isolated else tried)(question, effort)
    for gap in gaps:
        if gap.covers(cell):
            cell = gap.applied(cell, refuted)
    return attrs.evolve(cell, seconds=round(time.perf_counter() - began, 3))
