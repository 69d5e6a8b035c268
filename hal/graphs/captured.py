"""A captured function as it is called: the bucket that fits, its replay, its results."""

from __future__ import annotations

import bisect
import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from hal.errors import HalError, InvalidInput
from hal.graphs.arguments import Arguments
from hal.graphs.breaks import Break
from hal.graphs.device import Maker
from hal.graphs.ranks import slowest
from hal.policy import active
from hal.select import CAPTURED

__all__ = ["Captured", "Program", "Stats"]

_TURNS, _TIMES = 4, 3
_CAPTURING = "another graph is being captured"
_QUICKER = "the function itself is quicker"


@attrs.frozen
class Stats:
    """What a captured function took and did.

    Attributes:
        buckets: The numbers of tokens it was captured for; (0,) where nothing counts tokens.
        graphs: How many graphs there are.
        bytes: Bytes of the device that capturing took, buffers for arguments included.
        seconds: How long it took.
        warmed: What ran before the captures, as ``op: backend:kernel``.
        replays: How often each bucket was replayed.
        fallbacks: How often the function itself was called instead, by reason.
        least: By bucket, the fewest tokens for which graphs are replayed, as far as ``calibrate``
            has found them slower.
    """

    buckets: tuple[int, ...]
    graphs: int
    bytes: int
    seconds: float
    warmed: tuple[str, ...]
    replays: dict[int, int]
    fallbacks: dict[str, int]
    least: dict[int, int]


@attrs.frozen(eq=False)
class Program:
    """The graphs for one bucket.

    Attributes:
        bucket: The number of tokens, 0 where nothing counts them.
        graphs: In order.
        breaks: What runs after each but the last.
        results: What the function returns, flat, without a share in its memory.
        spec: How that was nested.
        lasting: Memory of others' that the operators between graphs use.
    """

    bucket: int
    graphs: tuple[Any, ...]
    breaks: tuple[Break, ...]
    results: tuple[Any, ...]
    spec: TreeSpec
    lasting: tuple[Any, ...]

    def replay(self, given: dict[str, Any]) -> str | None:
        """Run it once, on the memory of its arguments as it is; or say why not."""
        self.graphs[0].replay()
        for between, graph in zip(self.breaks, self.graphs[1:], strict=True):
            between.run(given)
            graph.replay()
        return None


class Captured:
    """A function that runs from graphs, as ``capture``, ``breakable`` and ``piecewise`` make it.

    One call at a time: all of them use the same memory. Where a call cannot be replayed, the
    function itself is called, and ``stats`` counts it by its reason: there are more tokens than in
    the largest bucket, an argument records gradients, another graph is or will be captured, what
    torch.compile traced does not fit any more, or ``calibrate`` has found that graphs are slower.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        arguments: Arguments,
        maker: Maker,
        programs: Sequence[Program],
        stats: Stats,
        copy: bool,
        group: Any = None,
    ) -> None:
        self.__name__ = arguments.who
        self.__wrapped__ = fn
        self._arguments, self._maker = arguments, maker
        self._programs = {program.bucket: program for program in programs}
        self._buckets = sorted(self._programs)
        self._eager = [a.name for a in arguments.each if a.kind == "eager"]
        self._dims = _counting(arguments.who, programs)
        # What is an argument would be lost as the next call's arguments are filled in.
        results = zip(*(program.results for program in programs), strict=True)
        self._copied = [copy or any(map(arguments.hold, each)) for each in results]
        self._stats, self._group = stats, group
        self._replays: Counter[int] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._least: dict[int, int] = {}

    @property
    def pool(self) -> Any:
        """The memory of its graphs, for other captures to share, which end their use of it."""
        return self._maker.pool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the function does.

        Raises:
            InvalidInput: Arguments that it was not captured for.
            HalError: It was closed.
        """
        values, count = self._checked(args, kwargs)
        reason = self._unfit(values, count)
        if reason is None:
            program = self._programs[self._bucket(count)]
            with torch.no_grad():
                self._arguments.fill(values, program.bucket, count)
                reason = program.replay(self._given(values))
                if reason is None:
                    self._replays[program.bucket] += 1
                    return self._results(program, count)
        self._fallbacks[reason] += 1
        return self.__wrapped__(*args, **kwargs)

    def calibrate(self, *args: Any, **kwargs: Any) -> tuple[float, float]:
        """Time a call, from graphs and of the function itself, and do what is quicker from now on.

        So for its number of tokens, for fewer in the same bucket if the function is quicker, and
        for more if graphs are, since they compute the whole bucket. Both run sixteen times, for
        real: each replay also writes to an argument that is an earlier result without a copy. All
        ranks that have captured together call it together, and the slowest of them decides. One
        that fails tells the others; in collectives of the function's own they wait for it.

        Returns:
            Seconds from graphs, infinite where the call cannot be replayed, and of the function.

        Raises:
            InvalidInput: Arguments that it was not captured for, or more tokens than that.
            HalError: It was closed, or another graph is being captured; or, with several ranks, one
                has failed, in any way, which all of them say.

        Example:
            >>> for batch in batches:  # doctest: +SKIP
            ...     fast.calibrate(batch)
        """
        graphs, function = slowest(lambda: self._timed(args, kwargs), self._group)
        count = self._checked(args, kwargs)[1]
        bucket = self._bucket(count)
        least = self._least.pop(bucket, 0)
        least = max(least, count + 1) if graphs > function else min(least, count)
        self._least |= {bucket: least} if least else {}
        return graphs, function

    def _timed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
        """Seconds of a call from graphs, whatever was found before, and of the function."""
        _, count = self._checked(args, kwargs)
        if count > self._buckets[-1]:
            most = self._buckets[-1]
            raise InvalidInput(f"{self.__name__} was captured for up to {most} tokens, not {count}")
        module, device = self._maker.module, self._maker.device
        if module.is_current_stream_capturing():
            raise HalError(f"{self.__name__} cannot be timed while another graph is being captured")
        calls = (lambda: self(*args, **kwargs)), (lambda: self.__wrapped__(*args, **kwargs))
        before, least, self._least = self._fallbacks.total(), self._least, {}
        try:
            graphs, function = _seconds(calls, functools.partial(module.synchronize, device))
        finally:
            self._least = least
        return [graphs if self._fallbacks.total() == before else math.inf, function]

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], int]:
        """A call's arguments in order, and its tokens, if it is one that was captured for."""
        if not self._programs:
            raise HalError(f"{self.__name__} was closed; capture it again")
        values = self._arguments.bound(args, kwargs)
        count = self._arguments.count(values)
        self._arguments.check(values, count)
        return values, count

    def _bucket(self, count: int) -> int:
        return self._buckets[bisect.bisect_left(self._buckets, count)]

    def _given(self, values: Sequence[Any]) -> dict[str, Any]:
        if not self._eager:
            return {}
        pairs = zip(self._arguments.each, values, strict=True)
        return {a.name: value for a, value in pairs if a.kind == "eager"}

    def _unfit(self, values: Sequence[Any], count: int) -> str | None:
        """Why a call cannot be replayed."""
        if count > self._buckets[-1]:
            return f"more than {self._buckets[-1]} tokens"
        if (policy := active.get()) is not None and CAPTURED in policy.entries:
            return _CAPTURING  # Or is about to be: what it needs has to be there before.
        if self._maker.module.is_current_stream_capturing():
            return _CAPTURING
        if torch.is_grad_enabled() and any(
            isinstance(v, Tensor) and v.requires_grad for v in values
        ):
            return "gradients are recorded"
        if self._least and count < self._least.get(self._bucket(count), 0):
            return _QUICKER
        return None

    def _results(self, program: Program, count: int) -> Any:
        """What the function returns, without the rows that are padding."""
        found: list[Any] = []
        for value, dim, copied in zip(program.results, self._dims, self._copied, strict=True):
            if isinstance(value, Tensor):
                value = value if dim is None else value.narrow(dim, 0, count)
                value = value.clone() if copied else value
            found.append(value)
        return tree_unflatten(found, program.spec)

    def stats(self) -> Stats:
        """What it took, and what it has done until now."""
        return attrs.evolve(
            self._stats,
            replays=dict(self._replays),
            fallbacks=dict(self._fallbacks),
            least=dict(self._least),
        )

    def close(self) -> None:
        """Give back its graphs and their memory; results that are not copies become invalid."""
        for program in self._programs.values():
            for graph in program.graphs:
                self._maker.drop(graph)
        self._programs = {}
        self._arguments = attrs.evolve(self._arguments, each=())


def _seconds(calls: Sequence[Callable[[], Any]], wait: Callable[[], Any]) -> list[float]:
    """What each call takes until its results are there: the median of some turns, each of a few."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_TURNS):
        for call, found in zip(calls, times, strict=True):
            call()  # After another it is slower than after itself.
            for _ in range(_TIMES):
                wait()
                began = time.perf_counter()
                call()
                wait()
                found.append(time.perf_counter() - began)
    return list(map(statistics.median, times))


def _counting(who: str, programs: Sequence[Program]) -> list[int | None]:
    """For each result its first dimension with the size of every bucket, if it has one.

    Raises:
        InvalidInput: Results change with the bucket in another way, and would keep their padding.
    """
    buckets = [program.bucket for program in programs]
    if any(program.spec != programs[0].spec for program in programs):
        raise InvalidInput(f"{who} returns results nested otherwise for some of {buckets} tokens")
    found: list[int | None] = []
    for results in zip(*(program.results for program in programs), strict=True):
        shapes = [list(r.shape) if isinstance(r, Tensor) else [] for r in results]
        sizes = [list(each) for each in zip(*shapes, strict=False)]
        dims = [d for d, each in enumerate(sizes) if each == buckets and each != [0]][:1]
        changing = [d for d, each in enumerate(sizes) if len(set(each)) > 1]
        if len(set(map(len, shapes))) > 1 or changing not in ([], dims):
            said = ", ".join(f"{s} for {b}" for s, b in zip(shapes, buckets, strict=True))
            raise InvalidInput(
                f"{who} returns shapes in which not one dimension counts tokens, so that padding "
                f"would stay: {said}; return what has one that does"
            )
        found.append(next(iter(dims), None))
    return found
