"""Products with weights of every kind, as the kernels take them and for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.kernels import gemv, matmul
from hal_triton.launch import next_power_of_2
from hal_triton.layout import Convert, ceil_div, empty, rows_like, same, unit

__all__ = ["BLOCK", "Tiles", "Weight", "by_rows", "of_pairs", "product", "tiles"]

Run = Callable[..., Any]

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
) -> Run:
    """What multiplies each row of tensors like ``x`` with each row of weights like this one.

    It takes x, x_scale, and the weight's data, scale and zeros; an activation is of the product.
    """
    outs = weight.data.shape[0] // (1 if activation is None else 2)
    made = empty((*x.shape[:-1], outs), x, dtype)
    if x.shape[:-1].numel() == 1:
        multiply = of_pairs(x, x_scale, weight, outs, activation, 1)
    else:
        multiply = _of_rows(x, x_scale, weight, outs, activation)

    def run(*given: Tensor | None) -> Tensor:
        out = made()
        multiply(out, *given)
        return out

    return run


class _Factors(NamedTuple):
    """Rows of x, the scales for them, and a weight, as kernels take them."""

    x_in: Convert
    by_x_in: Convert
    data_in: Convert
    x_stride: int
    by_x: tuple[int, int]
    """Strides of the scales."""
    w_strides: tuple[int, ...]

    def launched(self, launch: Run) -> Run:
        """What gives factors to a kernel, and what follows them."""
        x_in, by_x_in, data_in, *_ = self

        def run(out: Tensor, x: Tensor, by_x: Any, data: Tensor, *rest: Tensor | None) -> None:
            launch(out, x_in(x), data_in(data), by_x_in(by_x), *rest)

        return run


def _factors(x: Tensor, x_scale: Tensor | None, data: Tensor) -> _Factors:
    x_in, _, x_stride = rows_like(x)
    data_in, by_x_in, by_x = by_rows(data), same, (0, 0)
    if x_scale is not None:
        scales = _matrix(x_scale)
        by_x_in = same if scales.data_ptr() == x_scale.data_ptr() else _matrix
        by_x = scales.stride(0), scales.stride(1)
    return _Factors(x_in, by_x_in, data_in, x_stride, by_x, data_in(data).stride())


def by_rows(data: Tensor) -> Convert:
    """What makes weights like this one have contiguous rows."""
    return same if data.stride(-1) == 1 else Tensor.contiguous


def _matrix(scale: Tensor) -> Tensor:
    return scale.reshape(scale.shape[:-1].numel(), scale.shape[-1])


def of_pairs(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Weight,
    outs: int,
    activation: str | None,
    pairs: int,
    routed: bool = False,
) -> Run:
    """What writes [pairs, outs], where a pair is of a row of ``x`` and, if routed, of an expert.

    As many pairs share a row of ``x`` as there are more of them. It takes the result, x, x_scale,
    the weight's data, scale and zeros, the ids, and what the results are multiplied with.
    """
    factors, columns = _factors(x, x_scale, weight.data), x.shape[-1]
    *w_expert, w_stride, _ = factors.w_strides
    scale_expert = weight.scale.stride(0) if routed and weight.scale is not None else 0
    several, n, k = _pair_tile(routed, weight.data.dtype.itemsize, outs, columns)
    choices = pairs // max(x.shape[:-1].numel(), 1)
    numbers = (
        pairs, outs, weight.data.shape[-1], weight.data.shape[0] if routed else 1, choices,
        factors.x_stride, *(w_expert or (0,)), w_stride, *factors.by_x, scale_expert,
        *weight.numbers(columns),
    )  # fmt: skip
    aligned = unit(weight.data.shape[-1], factors.x_stride, w_stride, *w_expert)
    constants = activation, weight.piece(columns) > 1, several, n, k, aligned
    across = ceil_div(outs, n if activation is None else n // 2)
    grid = ceil_div(pairs, several) * across, 1, 1
    launch = factors.launched(gemv.multiply_pairs.bind(grid, numbers, constants))
    return launch if routed else lambda *given: launch(*given, None, None)


def _pair_tile(routed: bool, itemsize: int, outs: int, columns: int) -> tuple[int, int, int]:
    """Pairs, rows of the weight for each, and columns that a program has at once.

    How many pairs there are has no part in it: with the tile the order of a sum may change.
    """
    if not routed:
        return 1, 4 if outs < 8192 else 8, 2048 if itemsize == 1 else 1024
    k = max(128, min(next_power_of_2(columns), 1024))
    return 1024 // k, 8, k


def _of_rows(
    x: Tensor, x_scale: Tensor | None, weight: Weight, outs: int, activation: str | None
) -> Run:
    """What writes [rows, outs]; it takes what ``of_pairs`` says, without the last two."""
    factors = _factors(x, x_scale, weight.data)
    rows, columns, piece = x.shape[:-1].numel(), x.shape[-1], weight.piece(x.shape[-1])
    exact = piece > 1 and not (
        weight.zeros is not None and weight.zeros.is_floating_point() and x.dtype in _HALVES
    )
    wide = not exact or x.dtype == torch.float32
    m, n, k, num_warps, num_stages = tiles(rows, 4 if wide else weight.data.dtype.itemsize)
    if weight.scale is not None and exact:
        k = min(k, piece) if weight.packed or x_scale is None else piece
    width, w_stride = weight.data.shape[-1], factors.w_strides[0]
    numbers = (
        rows, outs, width, factors.x_stride, w_stride, *factors.by_x, *weight.numbers(columns),
    )  # fmt: skip
    constants = activation, exact, m, n, k, unit(outs, width, factors.x_stride, w_stride)
    grid = ceil_div(rows, m) * ceil_div(outs, n if activation is None else n // 2), 1, 1
    launch = matmul.multiply.bind(grid, numbers, constants, num_warps, num_stages)
    return factors.launched(launch)
