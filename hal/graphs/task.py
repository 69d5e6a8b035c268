"""Capturing: a function is watched once, then warmed and captured for each bucket."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from hal.errors import HalError, InvalidInput
from hal.graphs.arguments import Arguments, prepared
from hal.graphs.breaks import Kept, Recording, Warming, capturing
from hal.graphs.buckets import checked, ladder
from hal.graphs.captured import Captured, Program, Stats
from hal.graphs.device import Maker
from hal.graphs.pads import Fill, Pad
from hal.graphs.ranks import check_ranks, telling
from hal.graphs.watch import Watch
from hal.hardware import Capability
from hal.query import require, trace

__all__ = ["Options", "Task", "captured"]

# Fewer graphs than this are there at once, for who looks.
_LONG = 8


@attrs.frozen
class Options:
    """What ``capture`` and ``breakable`` take besides the function and the example."""

    at: tuple[str, ...]
    eager: Sequence[str]
    pad: Mapping[str, Fill | Pad]
    buckets: Sequence[int] | None
    copy: bool
    pool: Any
    progress: bool | None
    group: Any


def _place(given: Arguments) -> torch.device:
    """The one device of all that graphs read."""
    read = {a.example.device: a.name for a in given.each if a.kind in ("padded", "fixed")}
    if len(read) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in read.items())
        raise InvalidInput(f"{given.who}: what graphs read is on one device; found {where}")
    tensors = [a.example.device for a in given.each if isinstance(a.example, Tensor)]
    if not tensors:
        raise InvalidInput(f"{given.who}: no tensor in the example says on which device to capture")
    return next(iter(read), tensors[0])


def _limit(device: torch.device) -> int | None:
    """How many graphs a process can hold, None for any number.

    Raises:
        HalError: No backend says that graphs can be captured there.
    """
    answer = require(Capability.GRAPH_CAPTURE, ops=[], device=device)
    if not answer:
        raise HalError(str(answer))
    return answer.device.max_graphs


def _buckets(
    given: Arguments, count: int, wanted: Sequence[int] | None, least: int
) -> tuple[int, ...]:
    """The buckets from small to large; 0 alone where nothing counts tokens."""
    if not given.padded:
        if wanted is not None:
            raise InvalidInput(f"{given.who}: buckets need pad, which says what counts tokens")
        return (0,)
    sizes = ladder(count) if wanted is None else checked(wanted)
    return tuple(sorted({max(size, least) for size in sizes}))


@attrs.frozen(eq=False)
class Task:
    """A function that is being captured.

    Attributes:
        count: The tokens of the example.
        others: The operators of torch, not of hal, that are not captured.
    """

    fn: Callable[..., Any]
    arguments: Arguments
    at: tuple[str, ...]
    count: int
    buckets: tuple[int, ...]
    maker: Maker
    others: tuple[Any, ...] = ()

    @property
    def names(self) -> dict[int, str]:
        """The names of what operators between graphs are given anew, by identity."""
        return {id(a.example): a.name for a in self.arguments.each if a.kind == "eager"}

    def fits(self, bucket: int) -> bool:
        """Whether it is the bucket of the example, whose size what is in ``eager`` has."""
        return bucket == next((b for b in self.buckets if b >= self.count), None)

    def taker(self, bucket: int) -> Warming:
        """What takes the operators between graphs before a capture: it runs those that fit."""
        return Warming(self.names, self.fits(bucket))

    def run(self, bucket: int, taker: Any) -> Any:
        """Call the function with what the graphs of a bucket read."""
        with capturing(self.at, taker):
            return self.arguments.call(self.fn, self.arguments.inputs(bucket))

    def watch(self) -> int:
        """Run it for the smallest bucket, see that it can be captured, and count its parts."""
        bucket = self.buckets[0]
        self.arguments.clear(bucket)
        self.run(bucket, self.taker(bucket))  # What is compiled is, before anything watches.
        inputs = self.arguments.inputs(bucket)
        watched = list(zip(self.arguments.each, inputs, strict=True))
        watch = Watch(self.arguments.who, watched, self.others)
        counting = Warming(self.names, runs=False, changes=watch.check_written)
        with watch:
            returned = self.run(bucket, counting)
        watch.check_returned(returned)
        for leaf in tree_leaves(returned):
            if leaf is not None and not isinstance(leaf, Tensor):
                who = self.arguments.who
                raise InvalidInput(f"{who} returns {leaf!r}; a replay renews nothing but tensors")
        self.check_breaks(counting)
        return counting.count + 1

    def check_breaks(self, seen: Warming) -> None:
        """Refuse to break nowhere, and numbers that are not handed on as they are."""
        if self.at and not seen.count:
            raise InvalidInput(f"{self.arguments.who} calls none of {', '.join(self.at)}")
        for argument in self.arguments.each:
            number = argument.kind == "eager" and not isinstance(argument.example, Tensor)
            if number and argument.name not in seen.taken:
                raise InvalidInput(
                    f"{self.arguments.who}: eager names {argument.name}, which no op at which it "
                    "breaks takes as it is; pass what is computed from it instead"
                )

    def warm(self, bucket: int) -> list[str]:
        """Run it twice for a bucket, and say what ran."""
        self.arguments.clear(bucket)
        self.run(bucket, self.taker(bucket))
        with trace() as records:
            self.run(bucket, self.taker(bucket))
        return [f"{record.op}: {record.backend}:{record.kernel}" for record in records]

    def program(self, bucket: int) -> Program:
        """Capture it for a bucket."""
        kept = Kept(self.maker.device)
        recording = Recording(self.maker, self.names, kept)
        try:
            recording.begin()
            flat, spec = tree_flatten(self.run(bucket, recording))
            recording.end()
        except BaseException:
            recording.abandon()
            raise
        results = tuple(map(kept.alias, flat))
        flat.clear()
        graphs, breaks = tuple(recording.graphs), tuple(recording.breaks)
        return Program(bucket, graphs, breaks, results, spec, tuple(kept.lasting()))

    def programs(self, parts: int, progress: bool | None) -> tuple[list[Program], set[str]]:
        """Capture it for all buckets, the largest first, whose memory does for the others."""
        made: list[Program] = []
        warmed: set[str] = set()
        try:
            for bucket in _shown(self.buckets[::-1], parts, progress):
                warmed.update(self.warm(bucket))
                self.maker.tidy()
                made.append(self.program(bucket))
        except BaseException:
            for graph in [graph for program in made for graph in program.graphs]:
                self.maker.drop(graph)
            raise
        return made, warmed


def _shown(buckets: Sequence[int], parts: int, progress: bool | None) -> Iterable[int]:
    """The buckets, with a bar if it is asked for or takes long."""
    long = len(buckets) * parts >= _LONG and sys.stderr.isatty()
    if not (long if progress is None else progress):
        return buckets
    from hal.terminal import progress as bar  # What draws it takes longer to import than hal.

    return bar(buckets, lambda bucket: f"graphs for {bucket} tokens" if bucket else "graphs")


def _check_limit(task: Task, parts: int, limit: int | None) -> None:
    """Refuse what would end in the middle, for lack of graphs."""
    there, needed = len(task.maker.alive), parts * len(task.buckets)
    if limit is not None and there + needed > limit:
        raise HalError(
            f"{task.arguments.who} needs {needed} graphs: {parts} for each of {len(task.buckets)} "
            f"buckets; a process holds {limit} on {task.maker.device}, and there are {there}: give "
            "fewer buckets, break at fewer ops, or close what is not needed"
        )


def captured(
    fn: Callable[..., Any],
    example: Sequence[Any],
    options: Options,
    make: Callable[..., Task] = Task,
    least: int = 1,
) -> Captured:
    """Do what ``capture`` and ``breakable`` say; by other means, and with larger buckets."""
    start = time.perf_counter()
    with telling(options.group):
        given = Arguments.of(fn, example, options.pad, options.eager)
        device, count = _place(given), given.count(given.examples)
        given.check(given.examples, count)
        limit, buckets = _limit(device), _buckets(given, count, options.buckets, least)
    check_ranks(device, options.group, function=given.who, at=options.at, buckets=buckets)
    maker = Maker.of(device, options.pool)
    maker.tidy()  # What the allocator keeps for nobody is not given back by capturing.
    before = maker.reserved()
    task = make(fn, prepared(given, buckets[-1]), options.at, count, buckets, maker)
    with torch.no_grad(), maker.aside():
        parts = task.watch()
        _check_limit(task, parts, limit)
        programs, warmed = task.programs(parts, options.progress)
    taken, seconds = maker.reserved() - before, time.perf_counter() - start
    graphs = sum(len(program.graphs) for program in programs)
    stats = Stats(buckets, graphs, taken, seconds, tuple(sorted(warmed)), {}, {}, {})
    return Captured(fn, task.arguments, maker, programs, stats, options.copy, options.group)
