"""What torch has for graphs of a type of device, under the names that it gives them."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
import weakref
from collections.abc import Generator
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.errors import HalError

__all__ = ["Maker", "end_capture", "graph_class", "recover", "weak_ref_tensor"]


def graph_class(kind: str) -> Any:
    """The class of the graphs of a type of device, by torch's name for it; None without one."""
    module = getattr(torch, kind, None)
    return getattr(module, f"{kind.upper()}Graph", None) if hasattr(module, "graph") else None


def weak_ref_tensor(tensor: Tensor) -> Tensor:
    """The same elements without a share in their memory, which may be freed and used again.

    Only who knows that the memory is there may read it. So it is with what a graph computes: its
    pool keeps the memory, and until the next replay the results are in it.

    Args:
        tensor: Any dense tensor.

    Returns:
        An alias: same shape, strides, dtype and device, without gradient.

    Example:
        >>> x = torch.ones(2)
        >>> alias = hal.graphs.weak_ref_tensor(x)
        >>> x.fill_(3.0), alias.sum()
        (tensor([3., 3.]), tensor(6.))
    """
    storage = tensor.untyped_storage()
    # A tensor of inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        unowned: Any = torch._C._construct_storage_from_data_pointer(  # pyright: ignore
            storage.data_ptr(), tensor.device, storage.nbytes()
        )
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(unowned, tensor.storage_offset(), tensor.size(), tensor.stride())


def _beside(kind: type, *names: str) -> Any:
    """A function that torch, or who extends it, has beside a class or its base; None without it."""
    torch_c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    modules = [torch_c, *(sys.modules.get(base.__module__) for base in kind.__mro__)]
    found = (getattr(module, name, None) for name in names for module in modules)
    return next((each for each in found if each is not None), None)


def _end(graph: Any) -> None:
    with warnings.catch_warnings():
        # A part that runs nothing on the device is a graph all the same.
        warnings.filterwarnings("ignore", message=".*[Gg]raph is empty")
        graph.capture_end()


# A host's allocator goes on to ask the graph of a capture which stream that is on (torch 2.13).
_failed: list[Any] = []


def recover(graph: Any, device: torch.device, pool: Any) -> None:
    """Undo what is left of a capture on the current stream that could not be ended.

    So it is with one that something forbidden has made invalid. Torch (2.7 to 2.13) ends the
    capture of the stream first, and when that fails it leaves out what would follow: memory is kept
    back whenever another stream has used it, the pool counts as used, and the device's generator as
    capturing (2.7, not 2.13), so that nothing draws and no graph is replayed.

    Args:
        graph: The graph whose ``capture_end`` has failed.
        device: Where; the current device.
        pool: What its ``capture_begin`` was given.
    """
    kind, prefix = type(graph), f"_{device.type}_"
    ends = f"{prefix}endAllocateToPool", f"{prefix}endAllocateCurrentStreamToPool"
    end, release = _beside(kind, *ends), _beside(kind, f"{prefix}releasePool")
    if end is not None and release is not None:
        with contextlib.suppress(RuntimeError):  # It had ended this itself.
            end(device.index, pool)
            release(device.index, pool)
    graph.reset()
    _failed.append(graph)
    # The generator is told that a capture has ended by one that can be: of nothing.
    spare = kind()
    with contextlib.suppress(RuntimeError):  # The device has failed.
        spare.capture_begin(capture_error_mode="thread_local")
        _end(spare)
    spare.reset()


def end_capture(graph: Any, device: torch.device, pool: Any) -> None:
    """End a capture on the current stream, and leave nothing of one that cannot be ended.

    Args:
        graph: The graph.
        device: Where; the current device.
        pool: What its ``capture_begin`` was given.

    Raises:
        RuntimeError: It was made invalid, or there are too many.
    """
    try:
        _end(graph)
    except RuntimeError:
        recover(graph, device, pool)
        raise


_streams: dict[Any, Any] = {}
_alive: dict[str, weakref.WeakSet[Any]] = {}


@attrs.frozen(eq=False)
class Maker:
    """Makes the graphs of one device, all of them on one stream and from one pool.

    Nothing but captures is on that stream, and none of another pool. What a library of products
    keeps for a stream is then made in the first of them, from the pool, and lies there as long as
    the graphs, even if torch is told to let go of it, as its own graphs of compiled code do.

    Attributes:
        device: Where.
        module: The device's module in torch.
        kind: The class of its graphs.
        pool: The memory that the graphs share.
    """

    device: torch.device
    module: Any
    kind: Any
    pool: Any

    @classmethod
    def of(cls, device: torch.device, pool: Any = None) -> Maker:
        """A maker for a device, with a pool of its own or that of others.

        Raises:
            HalError: torch has no graphs there, or one is being captured.
        """
        kind, module = graph_class(device.type), getattr(torch, device.type)
        if kind is None:
            raise HalError(f"torch has no graphs for {device}")
        if module.is_current_stream_capturing():
            raise HalError("a graph is being captured; capture before, and call the result there")
        return cls(device, module, kind, pool or module.graph_pool_handle())

    @property
    def alive(self) -> weakref.WeakSet[Any]:
        """The graphs of this process that were made here, for this type of device."""
        return _alive.setdefault(self.device.type, weakref.WeakSet())

    def reserved(self) -> int:
        """Bytes of the device that are taken, for tensors and graphs."""
        return self.module.memory_reserved(self.device)

    def _stream(self, key: Any) -> Any:
        return _streams.get(key) or _streams.setdefault(key, self.module.Stream())

    @contextlib.contextmanager
    def aside(self) -> Generator[None, None, None]:
        """Put what follows on a stream of its own, after and before all on the current one."""
        with self.module.device(self.device):
            stream, before = self._stream(self.device), self.module.current_stream()
            stream.wait_stream(before)
            try:
                with self.module.stream(stream):
                    yield
            finally:
                before.wait_stream(stream)

    def tidy(self) -> None:
        """Let go of what nobody holds, so that none of it ends in the middle of a capture."""
        gc.collect()
        self.module.synchronize()
        self.module.empty_cache()

    def begin(self) -> tuple[Any, Any]:
        """A graph that captures what follows, and what ``end`` wants to know of it.

        What other threads do, such as loading, is not part of it, and does not disturb it.
        """
        # A cast of a weight that autocast keeps would go before the graph that reads it.
        torch.clear_autocast_cache()
        graph, stream = self.kind(), self._stream((self.device, self.pool))
        stream.wait_stream(self.module.current_stream())
        current = self.module.stream(stream)
        current.__enter__()
        try:
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        except BaseException:
            current.__exit__(None, None, None)
            raise
        return graph, current

    def end(self, begun: tuple[Any, Any]) -> Any:
        """End a capture, and return its graph.

        Raises:
            RuntimeError: It was made invalid; of that nothing is left.
        """
        graph, current = begun
        torch.clear_autocast_cache()  # One that is captured is nothing yet.
        try:
            end_capture(graph, self.device, self.pool)
        finally:
            current.__exit__(None, None, None)
        self.alive.add(graph)
        return graph

    def drop(self, graph: Any) -> None:
        """Give back what a graph holds."""
        self.alive.discard(graph)
        graph.reset()
