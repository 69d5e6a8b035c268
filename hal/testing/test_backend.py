"""The kit under pytest: a test for each claim of the backend that ``--hal-backend`` names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hal.testing.outcome import Status
from hal.testing.session import PROPERTY, Session


@pytest.fixture
def hal_question() -> int:
    """The number of a question; each is one where a backend is named."""
    pytest.skip("no backend is named by --hal-backend")


def test_claim(
    hal_question: int,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """A claim holds, or is known not to."""
    session = request.config.pluginmanager.get_plugin("hal-session")
    assert isinstance(session, Session)
    cell = session.cell(hal_question)
    record_property(PROPERTY, cell.to_dict())
    if cell.status is Status.REFUTED:
        pytest.fail(cell.reason, pytrace=False)
    if cell.status is Status.GAP:
        pytest.xfail(cell.reason)
    if cell.status is not Status.PROVEN:
        pytest.skip(f"{cell.status.value}: {cell.reason}")
