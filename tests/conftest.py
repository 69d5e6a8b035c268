"""What is collected, when garbage is, and the table of the faults that a run has planted."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

# Triton decides when it is imported whether its kernels are interpreted; these tests want that.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


# A simulated device cannot be taken out of a process again; its tests run in one of their own.
SIMULATED = Path(__file__).parent / "simulated"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them out unless they are asked for."""
    if collection_path != SIMULATED:
        return None
    asked = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    return None if any(SIMULATED in (path, *path.parents) for path in asked) else True


def pytest_collection_finish() -> None:
    """Let what is imported alone: to look for garbage in it took a fourth of the tests' time."""
    gc.collect()
    gc.freeze()
    # Tests make cycles of tensors too, so some of it there has to be.
    gc.set_threshold(20_000, 20, 20)


def _rows(reporter: pytest.TerminalReporter) -> list[Any]:
    reports = [r for name in ("passed", "failed") for r in reporter.stats.get(name, [])]
    properties = [item for r in reports for item in getattr(r, "user_properties", ())]
    return [row for key, row in properties if key == "fault"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write a line for each fault: what it is, who has to see it, whether it did, what it said."""
    rows = _rows(terminalreporter)
    if not rows:
        return
    terminalreporter.section(f"planted faults: {sum(row[3] for row in rows)} of {len(rows)} caught")
    for name, op, check, caught, said in sorted(rows, key=lambda row: row[1:3]):
        found = "caught" if caught else "MISSED"
        terminalreporter.write_line(f"{found} {op:24.24} {check:13} {name:46.46} {said:.90}")
