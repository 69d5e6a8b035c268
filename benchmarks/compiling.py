"""Steps of transformers that torch.compile compiles, as long as there is time for it."""

from __future__ import annotations

import functools
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch._dynamo.utils import counters

from failures import synchronize
from peers import DoesNotFit
from steps import Call, Phase, whole
from subject import Subject
from ways import Took, reserved

# Seconds that a compilation of 32 layers may take.
LONG = 95.0
COUNTED = ("fxgraph_cache_hit", "cudagraph_skips")


@attrs.define
class Clock:
    """The seconds that a run may take, and those that must be left to time the steps of a phase."""

    limit: float
    rest: float = 0.0
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
        left = self.limit - self.now
        if left < LONG + self.rest:
            raise DoesNotFit(f"{left:.0f} s were left, too few to compile it and time its steps")
        return function()


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
        device, known = self.subject.tokens.device, dict(counters["inductor"])
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
        found = {name: counters["inductor"][name] - known.get(name, 0) for name in COUNTED}
        self._took.cached += found["fxgraph_cache_hit"]
        self._took.skipped += found["cudagraph_skips"]
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
