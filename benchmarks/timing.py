"""Timing on a device: calls in a graph, a cold cache, providers in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import attrs
import torch

Call = Callable[[], object]
K = TypeVar("K", bound=Hashable)

ROUNDS = 5
REPLAYS = 7
CALLS = 20
# Microseconds: what the calls of a graph take together, and the replays of a provider's turn. They
# bound only what is slow: 20 calls of 100 us are 2 ms, and their seven replays 14.
GRAPH = 4e3
TURN = 4e4


@attrs.frozen
class Time:
    """Microseconds of a call: the median, and what separates the slow tenth from the fast tenth."""

    us: float
    spread: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Time:
        """From all that was measured."""
        ordered = sorted(times)
        tenth = len(ordered) // 10
        return cls(statistics.median(ordered), ordered[-1 - tenth] - ordered[tenth])


def elapsed(call: Call) -> float:
    """Microseconds from before to after a call on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def require_cuda() -> None:
    """End with a word on what is missing, where there is no device to time."""
    if not torch.cuda.is_available():
        raise SystemExit("what is timed runs on a CUDA device, and torch finds none here")


class Graph:
    """Calls captured into one graph, so that the host's part is not timed.

    Each is made at least once, and all of them often enough that there are 20 unless that would
    take long.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls  # They hold the memory that the graph reads.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
            each = elapsed(calls[0])
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.count = max(len(calls), min(CALLS, int(GRAPH / each)), 1)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            # Results are dropped one by one, so that the next call has their memory.
            for index in range(self.count):
                calls[index % len(calls)]()
        self.graph.replay()
        self.replays = max(1, min(REPLAYS, int(TURN / elapsed(self.graph.replay))))

    def times(self) -> list[float]:
        """Microseconds of a call, by replay."""
        return [elapsed(self.graph.replay) / self.count for _ in range(self.replays)]


def in_turn(graphs: Mapping[K, Graph]) -> dict[K, Time]:
    """Time each provider's calls; rounds alternate, and so does the order in a round."""
    found: dict[K, list[float]] = {name: [] for name in graphs}
    for turn in range(ROUNDS):
        for name in list(graphs)[:: 1 if turn % 2 == 0 else -1]:
            found[name] += graphs[name].times()
    return {name: Time.of(times) for name, times in found.items()}


def eager(call: Call, calls: int = 1000) -> float:
    """Microseconds of the host for a call, while the device has no part in it."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    # A fifth of a second, so that slow calls are made a few times only.
    calls = max(5, min(calls, int(0.2 / (time.perf_counter() - began))))
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls // 5):
            call()
        best = min(best, (time.perf_counter() - began) / (calls // 5) * 1e6)
    torch.cuda.synchronize()
    return best


def copy_time(moved: int, cold: int, device: torch.device) -> Time:
    """What a copy takes that reads half of ``moved`` bytes and writes as many."""
    size = max(moved // 2, 16)
    pairs = [
        torch.empty(2, size, dtype=torch.uint8, device=device) for _ in range(copies(moved, cold))
    ]
    calls: list[Call] = [lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs]
    return in_turn({"copy": Graph(calls)})["copy"]


def copies(moved: int, cold: int) -> int:
    """How many sets of arguments it takes until the first has left the cache."""
    return max(1, min(64, -(-cold // max(moved, 1))))
