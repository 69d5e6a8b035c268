"""Graphs of simulated devices: operators recorded by a capture, and run again by a replay."""

from __future__ import annotations

import functools
import gc
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils._python_dispatch import TorchDispatchMode

from hal.testing.simulated.build import extension
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

# They have no part in a replay: memory, and how it is looked at, is the same in each.
_LAYOUT = {
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"),
        *("new_empty_strided", "resize_", "resize_as_", "set_"),
    )
}


@functools.cache
def _is_layout(op: Any) -> bool:
    """Whether an operator computes nothing: it allocates, or returns a view of an argument."""
    aliases = [r.alias_info for r in op._schema.returns if r.alias_info]
    return op._schema.name in _LAYOUT or any(not alias.is_write for alias in aliases)


def _here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == kind()


def _base(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _unowned(value: Any) -> Any:
    return extension().unowned(value) if _here(value) else value


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of the device in arguments or results."""
    return [leaf for leaf in tree_leaves(values) if _here(leaf)]


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operator writes into, also of the host."""
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


@attrs.frozen(eq=False)
class _Node:
    """One operator of a graph; its tensors have no share in their memory.

    Attributes:
        results: What the operator returned: where a replay puts what it returns then.
        serials: Which allocation was at the address of each tensor.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Any]
    serials: dict[int, int]

    def run(self) -> None:
        """Do it again."""
        for address, serial in self.serials.items():
            if extension().serial_at(address) != serial:
                raise RuntimeError(
                    f"{kind()} error: illegal memory access: a replay runs {self.op} on memory "
                    "that was freed after the capture"
                )
        found = tree_leaves(self.op(*self.args, **self.kwargs))
        for kept, new in zip(self.results, found, strict=True):
            if _here(kept) and kept.data_ptr() != new.data_ptr():
                kept.copy_(new)


class _Recorder(TorchDispatchMode):
    """Runs what is captured, and remembers what the caller's tensors held before."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[_Node] = []
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, bytes]] = {}
        self._states = [(g, g.get_state()) for g in _generators()]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # What runs on a stream outside of the capture just runs, and so does what is the host's.
        if not extension().takes_part():
            return func(*args, **kwargs)
        self._remember(func, args, kwargs)
        results = func(*args, **kwargs)
        given, returned = _tensors((args, kwargs)), _tensors(results)
        if given or returned:
            self._record(func, args, kwargs, results)
            bases = {_base(tensor) for tensor in given}
            fresh = {_base(t): _unowned(t) for t in returned if _base(t) not in bases}
            self._made.update(fresh)
        return results

    def _remember(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Generator) and leaf not in [g for g, _ in self._states]:
                self._states.append((leaf, leaf.get_state()))
        for tensor in _written(op, args, kwargs):
            base = _base(tensor)
            if base not in self._made and base not in self._before:
                self._before[base] = tensor, extension().contents(tensor)

    def _record(self, op: Any, args: Any, kwargs: Any, results: Any) -> None:
        if _is_layout(op):
            return
        used = [_base(t) for t in _tensors((args, kwargs, results))]
        serials = {base: extension().serial_at(base) for base in used if base}
        leaves = [_unowned(leaf) for leaf in tree_leaves(results)]
        self.nodes.append(
            _Node(op, tree_map(_unowned, args), tree_map(_unowned, kwargs), leaves, serials)
        )

    def undo(self) -> None:
        """Leave the caller's tensors as they were, and no result that was computed."""
        for made in self._made.values():
            if extension().serial_at(_base(made)):
                extension().spoil(made)
        for tensor, contents in self._before.values():
            extension().overwrite(tensor, contents)
        for generator, state in self._states:
            generator.set_state(state)


def _generators() -> list[torch.Generator]:
    return [extension().default_generator(i) for i in range(extension().device_count())]


class Graph:
    """Operators that were captured, and are run again on the same memory.

    Nothing that is captured takes effect before the first replay, and what the host must not do
    meanwhile is an error. An operator of ``hal`` is captured as one. What is no operator of torch,
    such as a kernel that is launched outside of ``hal.ops``, runs once, in the capture.

    Attributes:
        limit: How many graphs of the process may be captured and not reset; None for any number.
    """

    limit: ClassVar[int | None] = None
    _alive: ClassVar[weakref.WeakSet[Graph]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._nodes: list[_Node] | None = None
        self._recorder: _Recorder | None = None
        self._pool: Pool | None = None
        self._device = -1
        self._drop: Any = None

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        """Capture what follows on the current stream.

        Args:
            pool: Where to keep the memory, which graphs that are replayed in the order of their
                captures can share; without it in a pool of its own.
            capture_error_mode: Whether other threads may wait for the device meanwhile: they may
                not if it is ``"global"``, and may if it is ``"thread_local"`` or ``"relaxed"``.

        Raises:
            RuntimeError: The current stream is the default one, a capture is under way, this graph
                has been captured, or there are as many graphs as there may be.
        """
        if self._nodes is not None:
            raise RuntimeError(f"this {type(self).__name__} already owns a captured graph")
        self._check_limit()
        self._pool = pool or (next(_pools), 0)
        extension().begin_capture(max(self._pool), capture_error_mode == "global")
        extension().keep_pool(max(self._pool))
        self._drop = weakref.finalize(self, extension().drop_pool, max(self._pool))
        self._device = extension().current_device()
        self._recorder = _Recorder()
        self._recorder.__enter__()

    def _check_limit(self) -> None:
        alive = len(Graph._alive)
        if self.limit is not None and alive >= self.limit:
            raise RuntimeError(
                f"{kind()} error: there are {alive} captured graphs, and this device holds no more "
                f"than {self.limit}; reset() or delete those that are not needed"
            )

    def capture_end(self) -> None:
        """End the capture.

        Raises:
            RuntimeError: None was begun, or work on another stream was not waited for.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise RuntimeError("capture_end() without capture_begin()")
        recorder.__exit__(None, None, None)
        joined = extension().end_capture()
        recorder.undo()
        if not joined:
            self.reset()
            raise RuntimeError(
                f"{kind()} error: capturing stream has unjoined work: wait for the other stream "
                "before the capture ends"
            )
        self._nodes = recorder.nodes
        Graph._alive.add(self)

    def replay(self) -> None:
        """Run what was captured, on the tensors of the capture as they are now.

        Raises:
            RuntimeError: Nothing was captured, or memory of the capture was freed.
        """
        if self._nodes is None:
            raise RuntimeError("replay() of a graph that was not captured")
        extension().replaying(True)
        try:
            # What casts or records gradients did so in the capture.
            with device(self._device), torch.no_grad(), torch.autocast(kind(), enabled=False):
                for node in self._nodes:
                    node.run()
        finally:
            extension().replaying(False)

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
