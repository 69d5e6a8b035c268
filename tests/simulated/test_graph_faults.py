"""The check of captures refutes kernels that are not safe in graphs, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graph_faults import CASES, FAULTS, SOUND, judged


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_right(name: str, record_property: Callable[[str, object], None]) -> None:
    judged(name, "musa", "fork", record_property)


def test_there_are_enough() -> None:
    assert len(CASES) == len(FAULTS) + len(SOUND)
    assert len(FAULTS) >= 12
    assert len(SOUND) >= 3
