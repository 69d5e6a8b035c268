"""Graphs of simulated devices: operators that a capture recorded, and that a replay runs again."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any, ClassVar

import torch

from hal.testing.simulated.build import extension
from hal.testing.simulated.capture import Node, Recorder
from hal.testing.simulated.place import device, kind
from hal.testing.simulated.streams import Stream, StreamContext

__all__ = [
    "Graph",
    "graph",
    "graph_pool_handle",
    "is_current_stream_capturing",
]

Pool = tuple[int, int]

_pools = itertools.count(1)


class Graph:
    """Operators that were captured, and are run again on the same memory.

    Nothing that is captured takes effect before the first replay, and what the host must not do
    meanwhile is an error. An operator of ``hal`` is captured as those it is made of, or, if it has
    Triton's interpreter run a kernel, as one, and so is a kernel of Inductor's, if the capture
    begins in the compiled code; torch.compile does not enter it in a capture that is under way, and
    what it was made of is captured. What else is no operator runs once, in the capture.

    Attributes:
        limit: How many graphs of the process may be captured and not reset; None for any number.
    """

    limit: ClassVar[int | None] = None
    _alive: ClassVar[weakref.WeakSet[Graph]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._nodes: list[Node] | None = None
        self._recorder: Recorder | None = None
        self._pool: Pool | None = None
        self._device = -1
        self._drop: Any = None
        self._left: list[int] = []

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        """Capture what follows on the current stream.

        Args:
            pool: Where to keep the memory, which graphs that are replayed in the order of their
                captures can share; without it in a pool of its own.
            capture_error_mode: Whether other threads may wait for the device meanwhile: they may
                not if it is ``"global"``, and may if it is ``"thread_local"`` or ``"relaxed"``.

        Raises:
            RuntimeError: The current stream is the default one, a capture is under way, or this
                graph has been captured.
        """
        if self._nodes is not None:
            raise RuntimeError(f"this {type(self).__name__} already owns a captured graph")
        self._pool = pool or (next(_pools), 0)
        extension().begin_capture(max(self._pool), capture_error_mode == "global")
        extension().keep_pool(max(self._pool))
        extension().leave(max(self._pool), [])
        self._drop = weakref.finalize(self, extension().drop_pool, max(self._pool))
        self._drop.atexit = False  # The process takes its memory along.
        self._device = extension().current_device()
        self._recorder = Recorder()
        self._recorder.__enter__()

    def capture_end(self) -> None:
        """End the capture.

        Raises:
            RuntimeError: None was begun, something in it was forbidden, work on another stream was
                not waited for, or there are as many graphs as there may be. What was forbidden or
                not waited for leaves its traces, as it does on other devices: nothing draws from
                the device's generator or is replayed, and what other streams use stays in memory.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise RuntimeError("capture_end() without capture_begin()")
        recorder.__exit__(None, None, None)
        self._left = extension().in_use(max(self.pool()))
        problem = extension().end_capture()
        recorder.undo()
        if problem:
            self._drop.detach()
        else:
            problem = self._full()
        if problem:
            self.reset()
            raise RuntimeError(f"{kind()} error: {problem}")
        self._nodes = recorder.nodes
        Graph._alive.add(self)

    def _full(self) -> str | None:
        alive = len(Graph._alive)
        if self.limit is None or alive < self.limit:
            return None
        return (
            f"there are {alive} captured graphs, and this device holds no more than {self.limit}; "
            "reset() or delete those that are not needed"
        )

    def replay(self) -> None:
        """Run what was captured, on the tensors of the capture as they are now.

        Raises:
            RuntimeError: Nothing was captured, or memory of the capture was freed.
        """
        if self._nodes is None:
            raise RuntimeError("replay() of a graph that was not captured")
        if not extension().is_capturing():
            extension().check_draws(self._device)
        before = extension().replaying(True)
        try:
            # What casts or records gradients did so in the capture. In inference mode all can be
            # written to, also what was captured in it.
            quiet = torch.autocast(kind(), enabled=False)
            with device(self._device), torch.inference_mode(), quiet:
                for node in self._nodes:
                    node.run()
        finally:
            extension().replaying(before)
        # Until the next replay from this pool, it holds what the capture had not freed at its end.
        extension().leave(max(self.pool()), self._left)

    def reset(self) -> None:
        """Forget what was captured, and its share in the pool."""
        self._nodes = None
        Graph._alive.discard(self)
        if self._drop is not None:
            self._drop()

    def pool(self) -> Pool:
        """The pool, for other graphs to share."""
        if self._pool is None:
            raise RuntimeError("pool() of a graph that was not captured")
        return self._pool


def graph_pool_handle() -> Pool:
    """A pool for graphs to share."""
    return 0, next(_pools)


def end_pool(device: int, pool: Pool) -> None:
    """End the use of a pool by a capture that did not end, as torch names it for each device.

    Raises:
        RuntimeError: There is no such capture.
    """
    del device
    extension().end_pool(max(pool))


def release_pool(device: int, pool: Pool) -> None:
    """Give back a share in a pool, which a graph does that was captured."""
    del device
    extension().drop_pool(max(pool))


def is_current_stream_capturing() -> bool:
    """Whether what is put on the current stream is captured."""
    return extension().is_capturing()


class graph:  # noqa: N801  # As every device's module has it.
    """A block that a graph captures.

    Args:
        graph: Where to.
        pool: Where to keep the memory, as for ``Graph.capture_begin``.
        stream: The stream to capture on; without it one that is kept for it.
        capture_error_mode: As for ``Graph.capture_begin``.
    """

    default_capture_stream: ClassVar[Stream | None] = None

    def __init__(
        self,
        graph: Graph,
        pool: Pool | None = None,
        stream: torch.Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        kept = type(self)
        if stream is None and kept.default_capture_stream is None:
            kept.default_capture_stream = Stream()
        self._graph, self._given = graph, (pool, capture_error_mode)
        self._stream = StreamContext(stream or kept.default_capture_stream)

    def __enter__(self) -> None:
        # What was freed but not collected would hold memory.
        gc.collect()
        self._stream.__enter__()
        try:
            self._graph.capture_begin(*self._given)
        except BaseException:
            self._stream.__exit__()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        try:
            self._graph.capture_end()
            if kind is not None:
                self._graph.reset()
        finally:
            self._stream.__exit__()
