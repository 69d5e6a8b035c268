"""Products with weights of every kind, as the kernels take them and for any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.configurations import measured
from hal_triton.kernels import gemv, matmul
from hal_triton.layout import Convert, ceil_div, empty, rows_like, same, unit
from hal_triton.target import has_fp8, processors, shared_memory
from hal_triton.tiles import Tiles, native_tiles, pair_tile, pairs_win, parts, tiles

__all__ = ["BLOCK", "Weight", "by_rows", "native", "of_pairs", "product"]

Run = Callable[..., Any]

BLOCK = (128, 128)
"""Rows and columns of 8-bit weights that share a scale, where the op does not say."""

_MOST = 2**31 - 1
_HALVES = (torch.float16, torch.bfloat16)
_FEW = 2**18
"""Sums of a part, of which fewer are added up by a program for each 256 of a row."""


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

    def kind(self, x: Tensor) -> str:
        """What ``multiply`` takes scales for."""
        if self.scale is None:
            return "none"
        if not self.packed and self.block[0] == 1 and self.block[1] >= x.shape[-1]:
            return "rows"
        floating = self.zeros is not None and self.zeros.is_floating_point()
        if self.piece(x.shape[-1]) == 1 or (floating and x.dtype in _HALVES):
            return "spread"
        return "blocks"

    def bits(self, x: Tensor) -> int:
        """Those of an element, 32 where all is multiplied in float32."""
        if x.dtype == torch.float32 or self.kind(x) == "spread":
            return 32
        return 4 if self.packed else 8 * self.data.dtype.itemsize

    def shared(self, outs: int, n: int, activation: str | None) -> int:
        """How many scales n rows of the weight have in a block, 0 if each may have its own."""
        width, rows = (n, self.block[0]) if activation is None else (n // 2, self.block[0])
        if self.packed or rows % width or (activation is not None and outs % width):
            return 0
        return 1 if activation is None else 2

    def step(self, columns: int, k: int) -> int:
        """Of what the columns of a part are a multiple."""
        return k if self.block[1] >= columns or self.block[1] % k else self.block[1]

    def numbers(self, columns: int) -> tuple[int, ...]:
        """Strides of the scale's rows and columns, of the rows of zeros, and the block."""
        if self.scale is None:
            return 0, 0, 0, 1, _MOST
        zero_stride = 0 if self.zeros is None else self.zeros.stride(0)
        size = _MOST if self.block[1] >= columns else self.block[1]
        return *self.scale.stride()[-2:], zero_stride, min(self.block[0], _MOST), size


def native(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether tensor cores may multiply codes as they are, for results of a dtype."""
    if weight.dtype.itemsize > 1 or weight.dtype == torch.uint8:
        return False
    return weight.dtype == torch.int8 or (dtype in _HALVES and has_fp8(weight.device))


def product(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Weight,
    dtype: torch.dtype,
    activation: str | None = None,
    fast: bool = False,
) -> Run:
    """What multiplies each row of tensors like ``x`` with each row of weights like this one.

    It takes x, x_scale, and the weight's data, scale and zeros, and a bias; an activation is of the
    product. If fast, codes are multiplied as they are, for which see ``native``.
    """
    outs = weight.data.shape[0] // (1 if activation is None else 2)
    made = empty((*x.shape[:-1], outs), x, dtype)
    if x.shape[:-1].numel() == 1 and _by_pairs(x, weight):
        multiply = of_pairs(x, x_scale, weight, outs, activation, 1)
    else:
        multiply = _of_rows(x, x_scale, weight, outs, activation, fast)

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


def _factors(x: Tensor, x_scale: Tensor | None, data: Tensor, paired: bool = False) -> _Factors:
    x_in, _, x_stride = (_paired, 0, x.shape[-1]) if paired else rows_like(x)
    data_in, by_x_in, by_x = by_rows(data), same, (0, 0)
    if x_scale is not None:
        scales = _matrix(x_scale)
        by_x_in = same if scales.data_ptr() == x_scale.data_ptr() else _matrix
        by_x = scales.stride(0), scales.stride(1)
    return _Factors(x_in, by_x_in, data_in, x_stride, by_x, data_in(data).stride())


def by_rows(data: Tensor) -> Convert:
    """What makes weights like this one have contiguous rows."""
    return same if data.stride(-1) == 1 else Tensor.contiguous


def _paired(x: Tensor) -> Tensor:
    """Rows whose numbers may be read two at once."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


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
    the weight's data, scale and zeros, a bias, the ids, and what the results are multiplied with.
    """
    factors, columns = _factors(x, x_scale, weight.data), x.shape[-1]
    *w_expert, w_stride, _ = factors.w_strides
    scale_expert = weight.scale.stride(0) if routed and weight.scale is not None else 0
    choices = pairs // max(x.shape[:-1].numel(), 1)
    numbers = (
        pairs, outs, weight.data.shape[-1], weight.data.shape[0] if routed else 1, choices,
        factors.x_stride, *(w_expert or (0,)), w_stride, *factors.by_x, scale_expert,
        *weight.numbers(columns),
    )  # fmt: skip
    aligned = unit(weight.data.shape[-1], factors.x_stride, w_stride, *w_expert)
    several, n, k, num_warps = pair_tile(routed, weight.data.dtype.itemsize, outs, columns)
    if aligned > 1:
        # Not by the number of pairs, for which see ``pair_tile``.
        name, sizes = "routed pairs" if routed else "pairs", (outs, columns, weight.bits(x))
        several, n, k, num_warps = measured(name, x.device, sizes, (several, n, k, num_warps))
    constants = activation, weight.piece(columns) > 1, several, n, k, aligned
    across = ceil_div(outs, n if activation is None else n // 2)
    grid = ceil_div(pairs, several) * across, 1, 1
    launch = factors.launched(gemv.multiply_pairs.bind(grid, numbers, constants, num_warps))
    return launch if routed else lambda *given: launch(*given, None, None)


def _by_pairs(x: Tensor, weight: Weight) -> bool:
    # Programs that go along rows of the weight add up no integers.
    return weight.data.dtype != torch.int8 and (
        weight.kind(x) == "spread" or pairs_win(weight.data.shape[0], weight.bits(x))
    )


def _of_rows(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Weight,
    outs: int,
    activation: str | None,
    fast: bool,
) -> Run:
    """What writes [rows, outs]; it takes what ``of_pairs`` says, without the last two."""
    factors, kind = _factors(x, x_scale, weight.data, weight.packed), weight.kind(x)
    rows, columns, width = x.shape[:-1].numel(), x.shape[-1], weight.data.shape[-1]
    w_stride = factors.w_strides[0]
    aligned = unit(outs, width, factors.x_stride, w_stride)
    # Registers hold no large tiles of which each row has a scale, or each number an address.
    large = aligned > 1 and (
        kind != "blocks" or weight.packed or weight.shared(outs, 128, activation)
    )
    plan, count = _tiles(x, weight, fast, bool(large))
    part, count = _divided(count, columns, weight.step(columns, plan.k))
    programs = ceil_div(rows, plan.m) * plan.across(outs, activation)
    numbers = (
        rows, outs, width, part * width // max(columns, 1), factors.x_stride, w_stride,
        *factors.by_x, *weight.numbers(columns),
    )  # fmt: skip
    shared = weight.shared(outs, plan.n, activation) if kind == "blocks" else 0
    constants = activation, kind, shared, fast, count == 1, *plan[:3], aligned
    launch = matmul.multiply.bind((programs, count, 1), numbers, constants, *plan[3:])
    if count > 1:
        launch = _added(launch, x, factors, weight, count, activation)
    return factors.launched(launch)


def _tiles(x: Tensor, weight: Weight, fast: bool, large: bool) -> tuple[Tiles, int]:
    """What programs have at once, and into how many parts columns are to be divided."""
    rows, columns, n = x.shape[:-1].numel(), x.shape[-1], weight.data.shape[0]
    kind, bits, most = weight.kind(x), weight.bits(x), processors(x.device)

    def held(plan: Tiles) -> Tiles:
        if kind == "blocks":
            plan = plan._replace(k=min(plan.k, weight.piece(columns)))
        return plan.fitted(8 * x.dtype.itemsize, bits, shared_memory(x.device))

    few = rows if large else min(rows, 64)
    plan = held(native_tiles(few, n, most) if fast and bits == 8 else tiles(few, bits))
    programs = ceil_div(rows, plan.m) * ceil_div(n, plan.n)
    count = parts(programs, columns, bits, plan.num_warps, most)
    # Codes that become other numbers in registers take more of them than what was measured.
    if large and (fast or bits != 8):
        sizes = rows, n, columns, bits
        *tile, count = measured(f"product {kind}", x.device, sizes, (*plan, count))
        plan = held(Tiles(*tile))
    return plan, count


def _divided(count: int, columns: int, step: int) -> tuple[int, int]:
    """Columns of a part, a multiple of a step, and how many parts there are."""
    part = max(ceil_div(ceil_div(columns, count), step), 1) * step
    return part, max(ceil_div(columns, part), 1)


def _added(
    launch: Run, x: Tensor, factors: _Factors, weight: Weight, count: int, activation: str | None
) -> Run:
    """What adds up the parts that are launched."""
    rows, places = x.shape[:-1].numel(), weight.data.shape[0]
    outs, ends = places // (1 if activation is None else 2), weight.kind(x) == "rows"
    integers = weight.data.dtype == torch.int8
    made = empty((count, rows, places), x, torch.int32 if integers else torch.float32)
    m, n = 1 if rows * places < _FEW else 4, 256
    grid = ceil_div(rows, m) * ceil_div(places, n), 1, 1
    numbers = rows, outs, count, factors.by_x[0], weight.numbers(x.shape[-1])[0]
    add = matmul.add_parts.bind(grid, numbers, (activation, m, n, unit(outs)))

    def run(out: Tensor, x: Tensor, data: Tensor, *scales: Tensor | None) -> None:
        sums, (by_x, by_w, zeros, bias) = made(), scales
        launch(sums, x, data, by_x, by_w, zeros, None)
        add(out, sums, by_x if ends else None, by_w if ends else None, bias)

    return run
