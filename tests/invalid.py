"""Captures that something forbidden makes invalid, and what a device still does afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hal

__all__ = ["SPOILERS", "assert_well", "drawing", "spoil", "spoil_the_second_of_three"]

SPOILERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "wait for the device": lambda module, _: module.synchronize(),
    "wait for the stream": lambda module, _: module.current_stream().synchronize(),
    "copy to the host": lambda _, x: x.cpu(),
    "read a number": lambda _, x: x.sum().item(),
    "read one that was drawn": lambda _, x: torch.rand_like(x).sum().item(),
    "go on after it": lambda module, x: _go_on(module, x),
}
"""What no capture survives, by what is done; each also runs where nothing is captured."""

MEGABYTE = 1 << 18  # floats


def _go_on(module: Any, x: Tensor) -> Tensor:
    """Take no notice of the first error, as a library may do."""
    with contextlib.suppress(RuntimeError):
        module.synchronize()
    return x + torch.rand_like(x)


def spoil(module: Any, x: Tensor, name: str) -> None:
    """Capture what one of ``SPOILERS`` makes invalid."""

    def spoiled(x: Tensor) -> Tensor:
        y = x + torch.rand_like(x)
        if module.is_current_stream_capturing():
            SPOILERS[name](module, y)
        return y * 2

    with pytest.raises(RuntimeError):
        hal.graphs.capture(spoiled, x)


def spoil_the_second_of_three(module: Any, x: Tensor) -> None:
    """Break a function at two operators, and make the graph between them invalid."""

    def spoiled(x: Tensor) -> Tensor:
        y = hal.ops.rms_norm(x + torch.rand_like(x), None) + torch.rand_like(x)
        if module.is_current_stream_capturing():
            y.cpu()
        return hal.ops.rms_norm(y, None) * 2

    with pytest.raises(RuntimeError):
        hal.graphs.breakable(spoiled, x, at=hal.ops.rms_norm)


def drawing(x: Tensor) -> hal.graphs.Captured:
    """What adds random numbers, captured before anything goes wrong."""
    return hal.graphs.capture(lambda x: x + torch.rand_like(x), x)


def _taken(module: Any, device: torch.device) -> int:
    """Bytes that are taken after tensors were freed that another stream had used."""
    side = module.Stream()
    for _ in range(16):
        x = torch.empty(MEGABYTE, device=device)
        side.wait_stream(module.current_stream())
        with module.stream(side):
            x.zero_()
        x.record_stream(side)
        side.synchronize()
        del x
    module.synchronize()
    torch.empty(MEGABYTE, device=device)  # Who allocates looks at what was freed.
    return module.memory_reserved(device)


def assert_well(module: Any, earlier: hal.graphs.Captured, x: Tensor) -> None:
    """A device draws, replays, captures, also into a pool that is there, and gives back memory.

    Args:
        module: The device's module in torch.
        earlier: What ``drawing`` has made.
        x: What for.
    """
    assert not module.is_current_stream_capturing()
    assert module.current_stream() == module.default_stream()
    assert torch.rand(8, device=x.device).sum().item() > 0
    assert not torch.equal(earlier(x), earlier(x))
    fast = hal.graphs.capture(lambda x: x + torch.rand_like(x), x, pool=earlier.pool)
    assert not torch.equal(fast(x), fast(x))
    # Without what is to be proven, each round would take 16 megabytes more.
    taken = _taken(module, x.device)
    assert _taken(module, x.device) == taken
