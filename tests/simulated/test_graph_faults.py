"""The check of captures refutes kernels that are not safe in graphs, and no other."""

from __future__ import annotations

import pytest

from graph_faults import CASES, FAULTS, SOUND, answer


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_right(name: str) -> None:
    cell = answer(name, "musa", "fork")
    assert CASES[name].caught(cell), f"{cell.status.value}: {cell.reason}"


def test_there_are_enough() -> None:
    assert len(CASES) == len(FAULTS) + len(SOUND)
    assert len(FAULTS) >= 12
    assert len(SOUND) >= 3
