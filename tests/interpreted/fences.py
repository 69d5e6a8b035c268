"""Memory between pages that fault, and programs in any order, for Triton's interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hal.testing.checks.results import _EMPTIES
from hal.testing.subject import memory

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
SIDES = ("left", "right")

# Dropped mappings would be unmapped under tensors that still point there.
_kept: list[Any] = []


def fenced(size: int, side: str) -> Tensor:
    """``size`` bytes that begin right behind a page that faults, or end right before one."""
    pages = max(1, -(-size // PAGE))
    region = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for guard in (start, start + (pages + 1) * PAGE):
        if LIBC.mprotect(ctypes.c_void_p(guard), PAGE, mmap.PROT_READ * 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = PAGE if side == "left" else PAGE + pages * PAGE - size
    _kept.append(region)
    return torch.frombuffer(region, dtype=torch.uint8, offset=offset, count=max(size, 1))[:size]


def placed(values: list[Any], side: str) -> list[Any]:
    """Copies of tensors in fenced memory, with their strides and what they share."""
    storages: dict[int, Tensor] = {}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = value.untyped_storage()._cdata
        if known not in storages:
            storages[known] = _fenced_copy(value, side)
        whole = storages[known]
        if not value.numel():
            return value.clone()
        last = value.storage_offset() + 1
        last += sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        kept = whole[: last * value.itemsize].view(value.dtype)
        return kept.as_strided(value.shape, value.stride(), value.storage_offset())

    return list(map(place, values))


def _fenced_copy(value: Tensor, side: str) -> Tensor:
    whole = memory(value)
    # A view of a dtype has to begin at a multiple of its size, and so has the end.
    room = fenced(-(-whole.numel() // 16) * 16 if side == "left" else whole.numel(), side)
    room[: whole.numel()].copy_(whole)
    return room[: whole.numel()]


class Fenced(TorchDispatchMode):
    """Gives fenced memory, filled with NaN or 0x7F, to what is allocated without a value."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _EMPTIES or not made.numel():
            return made
        room = fenced(made.untyped_storage().nbytes(), self.side).fill_(0x7F).view(made.dtype)
        if made.dtype.is_floating_point and made.itemsize > 1:
            room.fill_(math.nan)
        return room.as_strided(made.shape, made.stride(), made.storage_offset())


# A mode has torch import hundreds of modules when it is first in use, which each fork would repeat.
with Fenced("left"):
    torch.empty(1)

ORDERS = ("forward", "reversed", "shuffled")


@contextlib.contextmanager
def programs(order: str) -> Iterator[None]:
    """Let the interpreter run the programs of each grid in this order."""
    from triton.runtime.interpreter import interpreter_builder as builder

    given, queue = builder.set_grid_idx, []

    def instead(*index: int) -> None:
        if not any(index):
            queue[:] = _indices(tuple(builder.grid_dim), order)
        given(*queue.pop())

    builder.set_grid_idx = instead
    try:
        yield
    finally:
        builder.set_grid_idx = given


def _indices(grid: tuple[int, ...], order: str) -> list[tuple[int, int, int]]:
    """All programs, the first one last."""
    x, y, z = grid
    found = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
    if order == "forward":
        found.reverse()
    if order == "shuffled":
        random.Random(len(found)).shuffle(found)
    return found
