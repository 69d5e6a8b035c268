"""How tensors lie in memory, as kernels take them, and how programs are laid over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.configurations import measured
from hal_triton.launch import next_power_of_2

Convert = Callable[[Any], Any]

__all__ = [
    "WIDEST",
    "Rows",
    "ceil_div",
    "element",
    "empty",
    "empty_like",
    "flat",
    "flat_like",
    "rows_like",
    "same",
    "tile",
    "unit",
    "whole_rows",
]


def ceil_div(a: int, b: int) -> int:
    """The number of pieces of ``b`` that hold ``a``, of which the last may be shorter."""
    return -(-a // b)


def rows_of(x: Tensor) -> tuple[Tensor, int, int]:
    """``x`` [..., d] as rows one stride apart, with their number; a copy where it has none."""
    columns = x.shape[-1]
    if x.is_contiguous():
        return x, x.numel() // columns if columns else 0, columns
    if x.stride(-1) != 1:
        x = x.contiguous()
    x = x.reshape(-1, columns) if columns else x.new_empty((0, 0))
    return x, x.shape[0], x.stride(0)


def rows_like(x: Tensor) -> tuple[Convert, int, int]:
    """How to have the rows of tensors like ``x``, with their number and the stride between them."""
    rows, count, stride = rows_of(x)
    return (same if rows.data_ptr() == x.data_ptr() else _rows), count, stride


def empty_like(x: Tensor) -> Convert:
    """What makes contiguous memory of the shape and dtype of tensors like ``x``."""
    # The quicker of the two keeps strides, also those along a single element.
    usual = torch.empty(x.shape, device="meta").stride()
    return torch.empty_like if x.stride() == usual else _new_empty


def empty(
    shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
) -> Callable[[], Tensor]:
    """What makes contiguous memory where ``like`` is, of its dtype unless another is given."""
    one = element(like.device, like.dtype if dtype is None else dtype)
    if 0 in shape or not shape:
        return functools.partial(one.new_empty, shape)
    # To give a shape and where it is to be takes twice as long as an example.
    return functools.partial(torch.empty_like, one.expand(shape))


@functools.cache
def element(device: torch.device, dtype: torch.dtype) -> Tensor:
    """An element of any value, to point to or to make others like it."""
    return torch.empty(1, dtype=dtype, device=device)


def flat(vector: Tensor | None) -> Tensor | None:
    """A vector whose elements lie side by side."""
    return vector if vector is None else vector.contiguous()


def flat_like(vector: Tensor | None) -> Convert:
    """What makes vectors like this one, or None, have their elements side by side."""
    return same if vector is None or vector.is_contiguous() else torch.Tensor.contiguous


def same(x: Any) -> Any:
    """What takes a tensor as it lies."""
    return x


def _rows(x: Tensor) -> Tensor:
    return rows_of(x)[0]


def _new_empty(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def unit(*sizes: int) -> int:
    """16 where it divides every size, so that kernels may access 16 bytes at once; else 1."""
    together = 0
    for size in sizes:
        together |= size
    return 1 if together % 16 else 16


def tile(
    name: str, device: torch.device, rows: int, columns: int
) -> tuple[tuple[int, int, int], tuple[int, int], int]:
    """A grid over [rows, columns], the rows and columns of a program's tile, and its warps."""
    several, block, num_warps = measured(name, device, (rows, columns), _tile(rows, columns))
    grid = ceil_div(rows, several), ceil_div(columns, block), 1
    return grid, (several, block), num_warps


def _tile(rows: int, columns: int) -> tuple[int, int, int]:
    block = min(next_power_of_2(columns), 1024)
    # A few columns past a multiple of the block would take another one.
    while block > 256 and columns % block and columns % (block // 2) == 0:
        block //= 2
    several = max(1, min(1024 // block, next_power_of_2(rows) // 128))
    return several, block, 8 if rows >= 256 else 4


class Rows(NamedTuple):
    """How programs go over rows, of which they need all columns."""

    grid: tuple[int, int, int]
    several: int
    """Rows of a program; 0 if it goes over a single one in pieces."""
    block: int
    """Columns that it has at once."""
    num_warps: int


WIDEST = 16384
"""Columns that the registers of a program hold in float32."""


def whole_rows(device: torch.device, rows: int, columns: int) -> Rows:
    """A plan for programs that need whole rows."""
    block = next_power_of_2(columns)
    if block > WIDEST:
        return Rows((rows, 1, 1), 0, 4096, 16)
    # By the columns alone: how threads share a row decides the order of its sums, and the bits of
    # a row must not depend on how many others there are.
    several = max(1, 1024 // block)
    # Measured on an H100: 8 columns to a thread up to 4096, more beyond.
    usual = (max(1, min(8, block * several // 256)),)
    (num_warps,) = measured("rows", device, (columns,), usual)
    return Rows((ceil_div(rows, several), 1, 1), several, block, num_warps)
