"""Products with weights of every kind, as the kernels take them and for any number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from hal_triton.kernels import gemv, matmul
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div, rows_of, unit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "Tiles", "Weight", "by_rows", "of_pairs", "product", "scale_rows", "tiles"]

BLOCK = (128, 128)
"""Rows and columns of 8-bit weights that share a scale, where the op does not say."""

_MOST = 2**31 - 1
_HALVES = (torch.float16, torch.bfloat16)


class Weight(NamedTuple):
    """A matrix [n, k], or [n, k / 2] of packed codes, or one of them for each expert."""

    data: Tensor
    scale: Tensor | None = None
    zeros: Tensor | None = None
    block: tuple[int, int] = (1, _MOST)
    """Rows and columns that share a scale."""

    @property
    def packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.data.dtype == torch.uint8

    def piece(self, columns: int) -> int:
        """A number of columns, of few that there are, which lie in one block."""
        size = self.block[1]
        if self.scale is None or size >= columns:
            return 128
        return next((piece for piece in (128, 64, 32) if size % piece == 0), 1)

    def numbers(self, columns: int) -> tuple[int, ...]:
        """Strides of the scale's rows and columns, of the rows of zeros, and the block."""
        if self.scale is None:
            return 0, 0, 0, 1, _MOST
        zero_stride = 0 if self.zeros is None else self.zeros.stride(0)
        size = _MOST if self.block[1] >= columns else self.block[1]
        return *self.scale.stride()[-2:], zero_stride, min(self.block[0], _MOST), size


class Tiles(NamedTuple):
    """Rows, rows of the weight, and columns that a program has at once, and how it runs."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


def tiles(rows: int, itemsize: int) -> Tiles:
    """What is good for so many rows and a weight of elements of so many bytes."""
    if itemsize == 4:
        return Tiles(16, 64, 64, 4, 3) if rows <= 16 else Tiles(32, 64, 32, 4, 3)
    if rows <= 16:
        # All of the time goes into reading the weight: few rows of it, and many loads under way.
        return Tiles(16, 32, 128, 4, 5 if itemsize == 2 else 6)
    if itemsize == 1:
        # Codes become 16-bit numbers in registers, which hold no larger tiles.
        return Tiles(32 if rows <= 32 else 64, 64, 128, 8, 3)
    if rows <= 64:
        return Tiles(32 if rows <= 32 else 64, 64, 64, 4, 4)
    return Tiles(64, 128, 64, 4, 4) if rows <= 256 else Tiles(128, 128, 64, 8, 3)


def product(
    x: Tensor, x_scale: Tensor | None, weight: Weight, dtype: torch.dtype, activation: str | None
) -> Tensor:
    """Each row of ``x`` times each row of the weight, and what an activation makes of that."""
    outs = weight.data.shape[0] // (1 if activation is None else 2)
    out = x.new_empty((*x.shape[:-1], outs), dtype=dtype)
    if out.numel() == outs:
        of_pairs(out, x, x_scale, weight, activation)
    elif out.numel():
        _of_rows(out, x, x_scale, weight, activation)
    return out


def scale_rows(scale: Tensor, rows: int) -> Tensor:
    """[..., groups] as a matrix, a view if possible."""
    return scale if scale.dim() == 2 else scale.reshape(rows, scale.shape[-1])


def of_pairs(
    out: Tensor,
    x: Tensor,
    x_scale: Tensor | None,
    weight: Weight,
    activation: str | None,
    ids: Tensor | None = None,
    routed: Tensor | None = None,
) -> None:
    """Write ``out`` [..., n], where a row is a pair of a row of ``x`` and the weight of an id.

    As many pairs share a row of ``x`` as there are more of them.
    """
    outs, columns, rows = out.shape[-1], weight.data.shape[-1], x.shape[:-1].numel()
    pairs = out.numel() // outs if outs else 0
    if not pairs:
        return
    x, _, x_stride = rows_of(x)
    data, experts = by_rows(weight.data), weight.data.shape[0] if ids is not None else 1
    by_x = None if x_scale is None else scale_rows(x_scale, rows)
    w_expert, scale_expert = (
        t.stride(0) if t is not None and t.dim() == 3 else 0 for t in (data, weight.scale)
    )
    several, n, k = _pair_tile(ids is not None, data.dtype.itemsize, outs, x.shape[-1])
    numbers = (
        pairs, outs, columns, experts, pairs // rows, x_stride, w_expert, data.stride(-2),
        *((0, 0) if by_x is None else by_x.stride()), scale_expert, *weight.numbers(x.shape[-1]),
    )  # fmt: skip
    constants = (
        activation, weight.piece(x.shape[-1]) > 1, several, n, k,
        unit(columns, x_stride, data.stride(-2), w_expert),
    )  # fmt: skip
    across = ceil_div(outs, n if activation is None else n // 2)
    tensors = out, x, data, by_x, weight.scale, weight.zeros, ids, routed
    gemv.multiply_pairs((ceil_div(pairs, several) * across, 1, 1), tensors, numbers, constants)


def _pair_tile(routed: bool, itemsize: int, outs: int, columns: int) -> tuple[int, int, int]:
    """Pairs, rows of the weight for each, and columns that a program has at once.

    How many pairs there are has no part in it: with the tile the order of a sum may change.
    """
    if not routed:
        return 1, 4 if outs < 8192 else 8, 2048 if itemsize == 1 else 1024
    k = max(128, min(next_power_of_2(columns), 1024))
    return 1024 // k, 8, k


def _of_rows(
    out: Tensor, x: Tensor, x_scale: Tensor | None, weight: Weight, activation: str | None
) -> None:
    outs, columns, rows = out.shape[-1], weight.data.shape[-1], x.shape[:-1].numel()
    x, _, x_stride = rows_of(x)
    data = by_rows(weight.data)
    by_x = None if x_scale is None else scale_rows(x_scale, rows)
    piece = weight.piece(x.shape[-1])
    exact = piece > 1 and not (
        weight.zeros is not None and weight.zeros.is_floating_point() and x.dtype in _HALVES
    )
    wide = not exact or x.dtype == torch.float32
    m, n, k, num_warps, num_stages = tiles(rows, 4 if wide else data.dtype.itemsize)
    if weight.scale is not None and exact:
        k = min(k, piece) if weight.packed or by_x is None else piece
    numbers = (
        rows, outs, columns, x_stride, data.stride(0),
        *((0, 0) if by_x is None else by_x.stride()), *weight.numbers(x.shape[-1]),
    )  # fmt: skip
    constants = activation, exact, m, n, k, unit(columns, x_stride, data.stride(0))
    across = ceil_div(outs, n if activation is None else n // 2)
    tensors = out, x, data, by_x, weight.scale, weight.zeros
    grid = ceil_div(rows, m) * across, 1, 1
    matmul.multiply(grid, tensors, numbers, constants, num_warps, num_stages)


def by_rows(data: Tensor) -> Tensor:
    """A weight whose rows are contiguous."""
    return data if data.stride(-1) == 1 else data.contiguous()
