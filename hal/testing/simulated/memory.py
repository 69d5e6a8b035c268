"""The memory of simulated devices: statistics in bytes."""

from __future__ import annotations

from torch import OutOfMemoryError

from hal.testing.simulated.build import extension
from hal.testing.simulated.place import DeviceIndex, index_of

__all__ = [
    "OutOfMemoryError",
    "empty_cache",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_peak_memory_stats",
]


def _of(device: DeviceIndex, what: str) -> int:
    return extension().memory(index_of(device))[what]


def memory_allocated(device: DeviceIndex = None) -> int:
    """Bytes that tensors hold, rounded up for each to 512."""
    return _of(device, "used")


def max_memory_allocated(device: DeviceIndex = None) -> int:
    """The most that ``memory_allocated`` was since its peak was reset."""
    return _of(device, "most_used")


def memory_reserved(device: DeviceIndex = None) -> int:
    """Bytes that tensors hold, or that are kept for graphs."""
    return _of(device, "reserved")


def max_memory_reserved(device: DeviceIndex = None) -> int:
    """The most that ``memory_reserved`` was since its peak was reset."""
    return _of(device, "most_reserved")


def reset_peak_memory_stats(device: DeviceIndex = None) -> None:
    """Let the peaks be what is held now."""
    extension().reset_peaks(index_of(device))


def mem_get_info(device: DeviceIndex = None) -> tuple[int, int]:
    """Bytes that are free, and all."""
    total = _of(device, "total")
    return total - memory_reserved(device), total


def memory_stats(device: DeviceIndex = None) -> dict[str, int]:
    """The statistics under the names that torch gives those of other devices."""
    found = extension().memory(index_of(device))
    return {
        "allocated_bytes.all.current": found["used"],
        "allocated_bytes.all.peak": found["most_used"],
        "reserved_bytes.all.current": found["reserved"],
        "reserved_bytes.all.peak": found["most_reserved"],
        "allocation.all.allocated": found["allocations"],
        "allocation.all.freed": found["frees"],
        "allocation.all.current": found["allocations"] - found["frees"],
    }


def empty_cache() -> None:
    """Give back what is kept without need, which is nothing: pools are graphs'."""
