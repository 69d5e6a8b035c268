"""A run of the kit under pytest: what is collected, what became of it, and the table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hal.arguments import words
from hal.errors import HalError
from hal.testing.checks import QUICK, THOROUGH, Effort
from hal.testing.outcome import Cell
from hal.testing.questions import gaps_of, questions, where
from hal.testing.run import answer
from hal.testing.verdict import Verdict

__all__ = ["PROPERTY", "Session"]

PROPERTY = "hal-cell"
"""The property of a test's report that holds its cell; reports travel between processes."""


class Session:
    """What the options ask for, and the cells that came of it."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.backend: str = str(option("--hal-backend"))
        self.output: str | None = option("--hal-output")
        quick = QUICK if option("--hal-quick") else Effort()
        self.effort = THOROUGH if option("--hal-thorough") else quick
        try:
            self.device = where(self.backend, option("--hal-device"))
            self.gaps = gaps_of(self.backend)
            ops, checks = words(option("--hal-ops")), words(option("--hal-checks"))
            self.questions = questions(self.backend, self.device, ops, checks)
        except HalError as error:
            raise pytest.UsageError(f"hal: {error}") from None
        self.cells: dict[str, Cell] = {}

    def cell(self, index: int) -> Cell:
        """The answer to one of the questions."""
        return answer(self.questions[index], self.effort, self.gaps)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each question."""
        if "hal_question" in metafunc.fixturenames:
            ids = [f"{q.op}-{q.kernel}-{q.check}" for q in self.questions]
            metafunc.parametrize("hal_question", range(len(self.questions)), ids=ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the cell of a test."""
        for name, data in report.user_properties:
            if name == PROPERTY:
                self.cells[report.nodeid] = Cell.from_dict(data)  # pyright: ignore[reportArgumentType]

    @property
    def verdict(self) -> Verdict:
        """What the run says as a whole, in the order of the questions."""
        order = {(q.op, q.kernel, q.check): i for i, q in enumerate(self.questions)}
        cells = sorted(self.cells.values(), key=lambda c: order[c.op, c.kernel, c.check])
        return Verdict(self.backend, self.device, self.effort, cells)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that proved nothing is no success."""
        if self.cells and not hasattr(session.config, "workerinput"):
            if self.output:
                self.verdict.write(Path(self.output))
            if not self.verdict.ok and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The table, what stands out in it, and the outcome in a line."""
        if not self.cells:
            return
        verdict = self.verdict
        terminalreporter.section(f"conformance of {self.backend} on {self.device}")
        heads, rows = verdict.table()
        width = max(len(row[0]) for row in [heads, *rows])
        for first, *marks in [heads, *rows]:
            terminalreporter.write_line(f"{first:<{width}} " + " ".join(f"{m:<3}" for m in marks))
        terminalreporter.write_line("")
        for line in (*verdict.marks(), *verdict.device_lines(), *verdict.remarks()):
            terminalreporter.write_line(line)
        terminalreporter.write_line(verdict.summary())
