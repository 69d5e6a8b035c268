"""Calls that are captured into device graphs, and what is looked at when they are replayed."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Generator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.graphs import device
from hal.testing.compare import assert_close
from hal.testing.outcome import NotTried
from hal.testing.subject import HOST, Subject, results

__all__ = ["Captured", "Data", "assert_results", "capture", "graph_class"]


def graph_class(kind: str) -> tuple[Any, Any]:
    """The module of a device type in torch, and the class of its graphs.

    Raises:
        NotTried: It has none.
    """
    found = device.graph_class(kind)
    if found is None:
        raise NotTried(f"torch has no graphs for {kind}")
    return torch.get_device_module(kind), found


@functools.cache
def _stream(module: Any) -> Any:
    """The stream of all captures: vendors' libraries keep memory for each stream they have seen."""
    return module.Stream()


# How many pieces of memory of how many bytes: allocators of accelerators round up to 512, and fill
# the smallest gap first, of which there are more the smaller they are.
_PIECES = {2**power: 64 if power == 9 else 16 if power < 16 else 4 for power in range(20, 8, -1)}


def _not_a_number(device: str) -> list[Tensor]:
    """NaN in memory that is free."""
    sizes = [size // 4 for size, count in _PIECES.items() for _ in range(count)]
    return [torch.full((size,), float("nan"), device=device) for size in sizes]


@attrs.frozen(eq=False)
class Data:
    """The arguments of a call on the host, flat, and what the oracle says of them."""

    values: Sequence[Any]
    want: tuple[Any, ...]


def assert_results(subject: Subject, data: Data, returned: Any) -> None:
    """Compare what a call returned with what the op does with ``data``."""
    for got, want in zip(results(returned), data.want, strict=True):
        assert_close(got.to(HOST), want, subject.record.gates.get(got.dtype, 0.0))


@attrs.frozen(eq=False)
class Captured:
    """A call that was captured, its arguments and what it returned.

    Attributes:
        graphs: The one that filled the memory, and the one of the call.
    """

    subject: Subject
    graphs: tuple[Any, Any]
    static: list[Any]
    returned: Any

    def replay(self, data: Data, times: int = 1) -> None:
        """Run it with other data.

        Raises:
            AssertionError: Its results are not the op's, or it wrote into memory that was freed.
        """
        device = str(self.subject.device)
        module, _ = graph_class(self.subject.device.type)
        for to, value in zip(self.static, data.values, strict=True):
            if isinstance(to, Tensor):
                to.copy_(value)
        free = _not_a_number(device)
        module.synchronize()
        for _ in range(times):
            self.graphs[1].replay()
        module.synchronize()
        assert_results(self.subject, data, self.returned)
        kept = torch.stack([part.isnan().all() for part in free]).all()
        assert bool(kept), "it wrote into memory that was free"


def capture(subject: Subject, static: list[Any], name: str) -> Captured:
    """Capture a call of ``hal.ops.<name>`` into a pool of its own, whose memory held NaN."""
    kind = subject.device.type
    module, graph_type = graph_class(kind)
    pool, graphs = module.graph_pool_handle(), (graph_type(), graph_type())
    _recorded(kind, graphs[0], pool, lambda: _not_a_number(str(subject.device)))
    graphs[0].replay()
    returned = _recorded(kind, graphs[1], pool, lambda: subject.run(static, name))
    return Captured(subject, graphs, static, returned)


def _recorded(kind: str, graph: Any, pool: Any, call: Callable[[], Any]) -> Any:
    module = torch.get_device_module(kind)
    module.synchronize()
    here = torch.device(kind, module.current_device())
    with _uncollected(), module.stream(_stream(module)):
        graph.capture_begin(pool=pool)
        try:
            returned = call()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # It says that there was an error.
                device.end_capture(graph, here, pool)
            raise
        device.end_capture(graph, here, pool)
    return returned


@contextlib.contextmanager
def _uncollected() -> Generator[None, None, None]:
    """Leave garbage alone: a graph or a module of kernels that is freed spoils a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
