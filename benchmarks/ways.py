"""The ways to run the steps of a model: as they are written, or from graphs."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch

import hal
from failures import synchronize
from hal.graphs import Captured
from model import FEW
from steps import Call, Phase, theirs
from subject import FREE, NAMES, PAD, WHOLE, Subject

AT = (hal.ops.varlen_attention, hal.ops.paged_attention)


@attrs.define
class Took:
    """What it took to make a way ready.

    Attributes:
        seconds: Of captures, or of the first calls of what compiles.
        bytes: Of the device, that it keeps.
        buckets: The numbers of tokens that it is ready for.
        graphs: How many graphs hal has for them.
        cached: How many graphs torch found compiled on the disk.
        skipped: How many it did not capture although it was to.
    """

    seconds: float = 0.0
    bytes: int = 0
    buckets: tuple[int, ...] = ()
    graphs: int = 0
    cached: int = 0
    skipped: int = 0


def reserved(device: torch.device) -> int:
    """Bytes that torch has of a device, after it gave back what nobody holds."""
    gc.collect()
    if device.type == "cpu":
        return 0
    module = torch.get_device_module(device)
    synchronize()
    module.empty_cache()
    return module.memory_reserved(device)


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

    def _args(self, phase: Phase) -> list[Any]:
        step = self.subject.step(phase)
        return [getattr(step, name) for name in NAMES[self.subject.kind]]

    def ready(self, phase: Phase) -> Call:
        """A replay.

        Raises:
            HalError: The function itself is called instead.
        """
        captured, args = self._of(phase), self._args(phase)
        before = captured.stats().fallbacks
        captured(*args)
        if reasons := captured.stats().fallbacks.items() - before.items():
            raise hal.HalError(f"not from graphs: {', '.join(reason for reason, _ in reasons)}")
        return functools.partial(captured, *args)

    def calibrated(self, phase: Phase) -> str | None:
        """Let it do what is quicker; why that is not a replay, if it is not."""
        captured, args = self._of(phase), self._args(phase)
        graphs, function = (seconds * 1e6 for seconds in captured.calibrate(*args))
        if captured.stats().least.get(self.bucket(phase), 0) <= phase.tokens:
            return None
        return f"graphs take {graphs:.0f} µs, and the function itself {function:.0f}"

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


def in_pieces(
    subject: Subject, buckets: Sequence[int], compiler: Any = "eager", guards: bool = True
) -> Graphs:
    """With attention between graphs, by way of torch.compile.

    A model takes other operators for up to ``FEW`` tokens, and what is traced is for one kind.
    """
    kinds = [[b for b in buckets if b <= FEW], [b for b in buckets if b > FEW]]
    given: dict[str, Any] = {"at": AT, "eager": FREE[subject.kind], "pad": PAD[subject.kind]}
    made = Graphs(subject, [])
    for some in filter(None, kinds):
        example = subject.example(max(some[-1], 2))
        options = {"buckets": some, "compiler": compiler, "guards": guards}
        one = hal.graphs.piecewise(subject.function(), *example, **options, **given)
        made.captured.append(one)
    return made
