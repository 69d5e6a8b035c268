"""What runs the parts of a function that was cut: to warm them, to capture them, to replay them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from hal.graphs.breaks import Kept, Recording
from hal.graphs.captured import Program
from hal.graphs.compiled import MISSED, Compiled
from hal.graphs.stitch import Stitched, promised
from hal.policy import uncaptured
from hal.wanted import brought, wanted_in

__all__ = ["Pieces", "Recorder", "Warmup", "after"]

_MISSED = "torch.compile would have to compile it again"
_MOVED = "a tensor that graphs read has moved"


@attrs.define(eq=False)
class Warmup:
    """Runs each part, or returns zeros for the operators between pieces; see ``Warming``."""

    given: dict[str, Any]
    runs: bool
    results: dict[int, Any] = attrs.Factory(dict)

    def start(self, flat: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Nothing has to begin."""
        del flat, key
        return True

    def piece(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run it."""
        del index
        return run(*args)

    def between(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Note what it promises, and run it or return zeros."""
        self.results[index] = promised(run, args)
        if self.runs:
            with uncaptured():
                return run(*args)
        return _new(self.results[index], args, Tensor.zero_)


def _new(results: Any, args: Sequence[Any], make: Callable[..., Any]) -> Any:
    """Memory for what was promised, and the arguments that are returned."""

    def real(fake: Tensor) -> Tensor:
        size, stride = fake.size(), fake.stride()
        return make(torch.empty_strided(size, stride, dtype=fake.dtype, device=fake.device))

    made = tree_map_only(Tensor, real, results)
    return tree_map_only(int, args.__getitem__, made)


@attrs.define(eq=False)
class Recorder:
    """Captures the pieces; what is between them gets memory for its results, and does not run."""

    given: dict[str, Any]
    results: dict[int, Any]
    recording: Recording
    kept: Kept
    flat: tuple[Any, ...] = ()
    key: tuple[Any, ...] = ()
    outputs: dict[int, Any] = attrs.Factory(dict)

    def start(self, flat: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Note the inputs, and begin a capture."""
        self.flat, self.key = flat, key
        self.recording.begin()
        return True

    def _keep(self, index: int, value: Any) -> Any:
        self.outputs[index] = tree_map_only(Tensor, self.kept.alias, value)
        return value

    def piece(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Let it be captured."""
        return self._keep(index, run(*args))

    def between(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """End a graph, with memory for the results in it, and begin the next."""
        del run
        # Before the graph ends: its memory is kept for the results, and apart from the arguments.
        value = self._keep(index, _new(self.results[index], args, lambda made: made))
        self.recording.end()
        self.recording.begin()
        return value


@attrs.define(eq=False)
class _Replaying:
    """Replays the pieces, and calls what is between them."""

    given: dict[str, Any]
    program: Pieces
    moved: bool = False

    def start(self, flat: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Replay the first graph, unless pieces would read elsewhere."""
        del flat
        self.moved = key != self.program.key
        if not self.moved:
            self.program.graphs[0].replay()
        return not self.moved

    def piece(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """What the graph before has computed."""
        del run, args
        return self.program.outputs[index]

    def between(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call it, put its results where the graph after reads them, and replay that."""
        if self.moved:
            return self.program.outputs[index]
        after = self.program.after[index]
        with uncaptured(), wanted_in(after.places):
            found = run(*args)
        brought(tree_leaves(found), after.targets)
        after.graph.replay()
        return self.program.outputs[index]


@attrs.frozen(eq=False)
class Pieces(Program):
    """The graphs for one bucket.

    Attributes:
        compiled: How it is called.
        flat: The inputs with which it is called without guards; None with them.
        key: What the pieces read.
        outputs: What each part returns, without a share in its memory.
        after: What follows each operator between pieces.
    """

    compiled: Compiled
    flat: tuple[Any, ...] | None
    key: tuple[Any, ...]
    outputs: dict[int, Any]
    after: dict[int, After]

    def replay(self, given: dict[str, Any]) -> str | None:
        """Run it once, on the memory of its arguments as it is; or say why not."""
        player = _Replaying(given, self)
        if self.flat is not None:
            self.compiled.unguarded(self.flat, player)
        elif self.compiled.run(self.bucket, player) is MISSED:
            return _MISSED
        return _MOVED if player.moved else None


@attrs.frozen(eq=False)
class After:
    """What follows an operator between pieces.

    Attributes:
        targets: Where what it gives on goes, None for what is an argument.
        places: The same by the numbers of its results.
        graph: The graph that reads it.
    """

    targets: tuple[Tensor | None, ...]
    places: tuple[Tensor | None, ...]
    graph: Any


def after(recorder: Recorder, graphs: Sequence[Any], stitched: Stitched) -> dict[int, After]:
    """What follows each operator between pieces."""
    found: dict[int, After] = {}
    for index, graph in zip(sorted(recorder.results), graphs[1:], strict=True):
        results, made = map(tree_leaves, (recorder.results[index], recorder.outputs[index]))
        pairs = zip(results, made, strict=True)
        targets = tuple(there if isinstance(r, Tensor) else None for r, there in pairs)
        pairs = zip(stitched.orders[index], targets, strict=True)
        wanted = {i: t for i, t in pairs if i is not None and t is not None and t.is_contiguous()}
        places = tuple(map(wanted.get, range(1 + max(wanted, default=-1))))
        found[index] = After(targets, places, graph)
    return found
