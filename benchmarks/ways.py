"""The ways to run the steps of a model: as they are written, from graphs, or compiled."""

from __future__ import annotations

import functools
import gc
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch._dynamo.utils import counters

import hal
from failures import synchronize
from hal.graphs import Captured
from model import FEW
from peers import DoesNotFit
from steps import Call, Phase, theirs, whole
from subject import FREE, NAMES, PAD, WHOLE, Subject

AT = (hal.ops.varlen_attention, hal.ops.paged_attention)
# Seconds that a compilation of 32 layers may take, before one has shown it, and that must be left
# to time its steps.
LONG, REST = 75.0, 20.0


@attrs.define
class Took:
    """What it took to make a way ready.

    Attributes:
        seconds: Of captures, or of the first calls of what compiles.
        bytes: Of the device, that it keeps.
        buckets: The numbers of tokens that it is ready for.
        graphs: How many graphs hal has for them.
        cached: How many graphs torch found compiled on the disk.
    """

    seconds: float = 0.0
    bytes: int = 0
    buckets: tuple[int, ...] = ()
    graphs: int = 0
    cached: int = 0


class Way(Protocol):
    """One way to run the steps of a phase."""

    def ready(self, phase: Phase) -> Call:
        """A step, made ready; it returns logits [sequences, vocab]."""
        ...

    def took(self) -> Took:
        """What it took until now."""
        ...

    def bucket(self, phase: Phase) -> int:
        """The number of tokens that it computes for a step."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@attrs.define
class Clock:
    """The seconds that a run may take, and the longest that a compilation took."""

    limit: float
    longest: float = 0.0
    _began: float = attrs.field(factory=time.perf_counter)

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._began

    def compiles(self, function: Callable[[], Any]) -> Any:
        """Call what compiles.

        Raises:
            DoesNotFit: It might not end in time.
        """
        left, began = self.limit - self.now, time.perf_counter()
        if left < (self.longest or LONG) + REST:
            raise DoesNotFit(f"{left:.0f} s were left, too few to compile it and time its steps")
        found = function()
        self.longest = max(self.longest, time.perf_counter() - began)
        return found


def reserved(device: torch.device) -> int:
    """Bytes that torch has of a device, after it gave back what nobody holds."""
    gc.collect()
    if device.type == "cpu":
        return 0
    module = torch.get_device_module(device)
    synchronize()
    module.empty_cache()
    return module.memory_reserved(device)


@attrs.define(eq=False)
class Plain:
    """Steps as they are written; the first call of each compiles what kernels it needs."""

    make: Callable[[Phase], Call]
    _took: Took = attrs.field(factory=Took)

    def ready(self, phase: Phase) -> Call:
        """Call it once."""
        call, began = self.make(phase), time.perf_counter()
        call()
        synchronize()
        self._took.seconds += time.perf_counter() - began
        return call

    def took(self) -> Took:
        """The seconds of first calls."""
        return self._took

    def bucket(self, phase: Phase) -> int:
        """Its own number of tokens."""
        return phase.tokens

    def close(self) -> None:
        """There is nothing to give back."""


def hals(subject: Subject) -> Plain:
    """Steps of hal as they are written."""
    return Plain(lambda p: functools.partial(subject.model, subject.step(p), subject.cache))


def written(subject: Subject) -> Plain:
    """Steps of transformers as they are written."""

    def make(phase: Phase) -> Call:
        return theirs(subject.peer, phase, subject.tokens[: phase.rows, : phase.keys])

    return Plain(make)


@attrs.frozen(eq=False)
class Graphs:
    """Steps of hal from graphs.

    Attributes:
        captured: One, or one for few tokens and one for more.
    """

    subject: Subject
    captured: list[Captured]

    def _of(self, phase: Phase) -> Captured:
        return next(c for c in self.captured if phase.tokens <= c.stats().buckets[-1])

    def ready(self, phase: Phase) -> Call:
        """A replay.

        Raises:
            HalError: The function itself is called instead.
        """
        step, captured = self.subject.step(phase), self._of(phase)
        args = [getattr(step, name) for name in NAMES[self.subject.kind]]
        captured(*args)
        if reasons := captured.stats().fallbacks:
            raise hal.HalError(f"not from graphs: {', '.join(reasons)}")
        return functools.partial(captured, *args)

    def took(self) -> Took:
        """What its captures say."""
        each = [captured.stats() for captured in self.captured]
        buckets = tuple(bucket for stats in each for bucket in stats.buckets)
        seconds, taken = sum(s.seconds for s in each), sum(s.bytes for s in each)
        return Took(seconds, taken, buckets, sum(s.graphs for s in each))

    def bucket(self, phase: Phase) -> int:
        """The next larger one."""
        return next(b for b in self._of(phase).stats().buckets if b >= phase.tokens)

    def close(self) -> None:
        """Give back its graphs."""
        for captured in self.captured:
            captured.close()
        self.captured.clear()


def captured_whole(subject: Subject, buckets: Sequence[int]) -> Graphs:
    """With attention in the graph."""
    pad = PAD[subject.kind] | WHOLE[subject.kind]
    example = subject.example(buckets[-1])
    capture = hal.graphs.capture(subject.function(), *example, pad=pad, buckets=buckets)
    return Graphs(subject, [capture])


def broken(subject: Subject, buckets: Sequence[int]) -> Graphs:
    """With attention between graphs."""
    given: dict[str, Any] = {"at": AT, "eager": FREE[subject.kind], "pad": PAD[subject.kind]}
    example = subject.example(buckets[-1])
    made = hal.graphs.breakable(subject.function(), *example, buckets=buckets, **given)
    return Graphs(subject, [made])


def in_pieces(subject: Subject, buckets: Sequence[int], compiler: Any) -> Graphs:
    """With attention between graphs, by way of torch.compile.

    A model takes other operators for up to ``FEW`` tokens, and what is traced is for one kind.
    """
    kinds = [[b for b in buckets if b <= FEW], [b for b in buckets if b > FEW]]
    given: dict[str, Any] = {"at": AT, "eager": FREE[subject.kind], "pad": PAD[subject.kind]}
    made = Graphs(subject, [])
    for some in filter(None, kinds):
        example = subject.example(max(some[-1], 2))
        one = hal.graphs.piecewise(
            subject.function(), *example, buckets=some, compiler=compiler, **given
        )
        made.captured.append(one)
    return made


def _own(function: Any) -> Any:
    """The same with a code object of its own, by which torch.compile finds what it compiled."""
    code = function.__code__.replace()
    made = types.FunctionType(code, function.__globals__, "step", None, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


@attrs.define(eq=False)
class Compiled:
    """Steps of transformers, compiled.

    Attributes:
        mode: That of torch.compile.
        dynamic: Whether it is compiled once for any number of tokens from 2 on, or for each.
        sizes: The numbers of tokens that it is for.
        steps: The steps of transformers, by phase.
    """

    subject: Subject
    mode: str
    dynamic: bool
    sizes: Sequence[int]
    steps: dict[Phase, Call]
    clock: Clock
    _took: Took = attrs.field(factory=Took)
    _any: Any = None
    _made: bool = False

    def _compiled(self, function: Any) -> Any:
        return torch.compile(_own(function), mode=self.mode, dynamic=self.dynamic)

    def _step(self, phase: Phase) -> Call:
        if phase.new != phase.keys:
            return self._compiled(self.steps[phase])
        if self._any is None or not self.dynamic:
            self._any = self._compiled(whole)
        return functools.partial(self._any, self.subject.peer, self.subject.tokens[:1, : phase.new])

    def ready(self, phase: Phase) -> Call:
        """Compile it, and call it until it is warm.

        Raises:
            DoesNotFit: It is not for this number of tokens, or might not be compiled in time.
        """
        if phase.tokens not in self.sizes:
            raise DoesNotFit("not compiled for this number of tokens")
        device, found = self.subject.tokens.device, counters["inductor"]["fxgraph_cache_hit"]
        before = reserved(device)
        function = self._step(phase)

        def run() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return function()

        def warm() -> None:
            for _ in range(3):
                run()
            synchronize()

        began = time.perf_counter()
        if self._made and self.dynamic:
            warm()
        else:
            self.clock.compiles(warm)
        self._made = True
        self._took.seconds += time.perf_counter() - began
        self._took.bytes += reserved(device) - before
        self._took.cached += counters["inductor"]["fxgraph_cache_hit"] - found
        self._took.buckets += (phase.tokens,)
        return run

    def took(self) -> Took:
        """The seconds of all first calls, and what memory grew by."""
        return self._took

    def bucket(self, phase: Phase) -> int:
        """Its own number of tokens."""
        return phase.tokens

    def close(self) -> None:
        """Let go of what was compiled; torch keeps it until it is reset."""
        self._any = None
