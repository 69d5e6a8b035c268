"""Streams and events of a simulated device."""

from __future__ import annotations

import threading

import pytest
import torch

from hal.testing.simulated import simulate

HERE = simulate("musa")


def test_a_stream_is_current_where_it_is_set() -> None:
    first = HERE.current_stream()
    assert first == HERE.default_stream()
    stream = HERE.Stream()
    assert isinstance(stream, torch.Stream)
    assert stream != first
    with HERE.stream(stream):
        assert HERE.current_stream() == stream == torch.accelerator.current_stream()
        with HERE.stream(None):
            assert HERE.current_stream() == stream
    assert HERE.current_stream() == first
    HERE.set_stream(stream)
    assert HERE.current_stream() == stream
    HERE.set_stream(first)


def test_streams_are_of_a_device() -> None:
    stream = HERE.Stream("musa:1")
    assert stream.device == torch.device("musa:1")
    with HERE.stream(stream):
        assert HERE.current_device() == 1
        assert HERE.current_stream() == stream
        assert HERE.current_stream("musa:0") == HERE.default_stream("musa:0")
    assert HERE.current_device() == 0


def test_threads_have_streams_and_devices_of_their_own() -> None:
    found: list[object] = []

    def other() -> None:
        found.extend([HERE.current_device(), HERE.current_stream() == HERE.default_stream()])

    with HERE.stream(HERE.Stream("musa:1")):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [0, True]


def test_events_measure_time() -> None:
    before, after = (HERE.Event(enable_timing=True) for _ in "ab")
    stream = HERE.Stream()
    with pytest.raises(RuntimeError, match="recorded"):
        before.elapsed_time(after)
    before.record()
    torch.ones(200_000, device="musa").sort()
    after.record(stream)
    assert before.query()
    after.synchronize()
    assert 0 < before.elapsed_time(after) < 60_000
    with pytest.raises(ValueError, match="enable_timing"):
        before.elapsed_time(HERE.Event())


def test_streams_wait_for_one_another() -> None:
    stream, event = HERE.Stream(), HERE.Event()
    stream.wait_stream(HERE.current_stream())
    event.record(stream)
    HERE.current_stream().wait_event(event)
    stream.record_event().synchronize()
    stream.synchronize()
    assert stream.query()
    HERE.synchronize()
