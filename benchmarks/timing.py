"""Timing on a device: calls in a graph, a cold cache, providers in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

Call = Callable[[], object]

ROUNDS = 5
REPLAYS = 7
CALLS = 20


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


class Graph:
    """Calls captured into one graph, so that the host's part is not timed."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.count = len(calls)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:3]:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            # Results are dropped one by one, so that the next call has their memory.
            for call in calls:
                call()
        self.graph.replay()

    def times(self) -> list[float]:
        """Microseconds of a call, by replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        found: list[float] = []
        for _ in range(REPLAYS):
            start.record()
            self.graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1e3 / self.count)
        return found


def in_graphs(providers: dict[str, Sequence[Call]]) -> dict[str, Time]:
    """Time each provider's calls; rounds alternate, and so does the order in a round."""
    graphs = {name: Graph(calls) for name, calls in providers.items()}
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(ROUNDS):
        for name in list(graphs)[:: 1 if turn % 2 == 0 else -1]:
            found[name] += graphs[name].times()
    return {name: Time.of(times) for name, times in found.items()}


def eager(call: Call, calls: int = 1000) -> float:
    """Microseconds of the host for a call, while the device has no part in it."""
    import time

    for _ in range(20):
        call()
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls // 5):
            call()
        best = min(best, (time.perf_counter() - began) / (calls // 5) * 1e6)
        torch.cuda.synchronize()
    return best


def copy_time(moved: int, cold: int) -> Time:
    """What a copy takes that reads half of ``moved`` bytes and writes as many."""
    size = max(moved // 2, 16)
    count = copies(moved, cold)
    pairs: list[Any] = [
        torch.empty(2, size, dtype=torch.uint8, device="cuda") for _ in range(count)
    ]
    calls = [lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs]
    return in_graphs({"copy": [calls[i % count] for i in range(max(count, CALLS))]})["copy"]


def copies(moved: int, cold: int) -> int:
    """How many sets of arguments it takes until the first has left the cache."""
    return max(1, min(64, -(-cold // max(moved, 1))))
