"""A simulated card for all tests of this folder, before anything asks hal for devices."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

import hal
from hal.graphs import device as graphs_device
from hal.testing.simulated import simulate

# Empty for the card that the backend takes as the usual one.
HERE = simulate("musa", os.environ.get("SIMULATED_CARD", "S5000") or None, devices=2)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Whatever happens: no capture, no stream, no policy, no breaker, no graph."""
    gc.collect()  # What a test before has left in cycles is not of this one.
    yield
    gc.collect()
    assert not HERE.is_current_stream_capturing()
    assert HERE.current_stream() == HERE.default_stream()
    assert hal.policy.active.get() is hal.policy.breaker.get() is None
    assert not graphs_device._alive.get("musa")
