"""Streams and events of simulated devices, whose work is done when the call returns."""

from __future__ import annotations

from typing import Any

import torch

from hal.testing.simulated.build import extension
from hal.testing.simulated.place import DeviceIndex, current_device, index_of, kind, set_device

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "set_stream",
    "stream",
]


def _device(device: DeviceIndex = None) -> torch.device:
    return torch.device(kind(), index_of(device))


class Stream(torch.Stream):
    """A stream of a device, by default the current one."""

    def __new__(cls, device: DeviceIndex = None, priority: int = 0, **known: int) -> Any:
        """Make a stream, or with ``stream_id``, ``device_index`` and ``device_type`` name one."""
        if known:
            return super().__new__(cls, **known)
        return super().__new__(cls, _device(device), priority=priority)

    def __repr__(self) -> str:
        return f"<{kind()}.Stream {self.stream_id:#x} on {self.device}>"


class Event(torch.Event):
    """A point in the work of a stream."""

    def __new__(
        cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> Any:
        """Make an event for the current device."""
        del interprocess
        made: Any = super().__new__(cls, _device(), enable_timing=enable_timing, blocking=blocking)
        made.timed = enable_timing
        return made

    # torch's refuses an event of a class of its own.
    def elapsed_time(self, other: Any) -> float:
        """Milliseconds from this event to another, both of which were made with a timer."""
        if not (self.timed and other.timed):  # pyright: ignore
            raise ValueError("both events must be made with enable_timing=True")
        return extension().elapsed(self.event_id, other.event_id)


def _named(found: torch.Stream) -> Stream:
    return Stream(
        stream_id=found.stream_id,
        device_index=found.device_index,
        device_type=found.device_type,
    )


def current_stream(device: DeviceIndex = None) -> Stream:
    """The stream that this thread puts a device's work on."""
    return _named(torch.accelerator.current_stream(_device(device)))


def default_stream(device: DeviceIndex = None) -> Stream:
    """The stream that is current until another is set."""
    known = current_stream(device)
    return Stream(stream_id=0, device_index=known.device_index, device_type=known.device_type)


def set_stream(stream: torch.Stream | None) -> None:
    """Make a stream this thread's on its device, and that device the current one."""
    if stream is not None:
        torch.accelerator.set_stream(stream)


class StreamContext:
    """A block whose work goes on a stream, None for the one it is on."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self._before: tuple[int, Stream] | None = None

    def __enter__(self) -> None:
        if self.stream is not None:
            self._before = current_device(), current_stream(self.stream.device)
            set_stream(self.stream)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            device, stream = self._before
            set_stream(stream)
            set_device(device)


def stream(stream: torch.Stream | None) -> StreamContext:
    """A block whose work goes on a stream, None for the one it is on."""
    return StreamContext(stream)
