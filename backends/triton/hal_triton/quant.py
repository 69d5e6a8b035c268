"""Quantisation to 8 bits by Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal import prepared
from hal_triton.configurations import measured
from hal_triton.kernels import quant as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import Rows, ceil_div, empty, rows_like, unit, whole_rows

__all__ = ["Coding", "coding", "per_tensor_quant", "per_token_group_quant", "per_token_quant"]

Run = Callable[..., Any]

_TILES = 2048, 1024, 512
"""Columns of a program, of which those are taken that leave the fewest idle in the last one."""
_FLAT = 2048
_PEAKS = 1024


class Coding(NamedTuple):
    """What codes and scales are to be, and what makes memory for them."""

    device: torch.device
    codes: Callable[[], Tensor]
    scales: Callable[[], Tensor]
    dtype: torch.dtype
    group: int | None
    """How many codes share a scale, None for a whole row."""
    static: bool
    ue8m0: bool
    least: int
    """Columns that are of one program: it shares no scale, nor a word of four packed ones."""
    sizes: tuple[int, ...]
    """Matrices, the rows of one and those that it has scales for; the strides of the scales."""

    def pieces(self, columns: int) -> Rows:
        """A plan for programs that need no more than the columns of a scale."""
        if self.group is None and not self.static:
            return self.whole_rows(columns)
        rows = self.sizes[0] * self.sizes[2]
        block = min(_TILES, key=lambda block: ceil_div(columns, block) * block)
        usual = max(1, min(_TILES[0] // block, next_power_of_2(rows) // 512)), block, 4
        several, block, num_warps = measured("groups", self.device, (rows, columns), usual)
        block = max(min(next_power_of_2(columns), block), self.least)
        grid = ceil_div(rows, several), ceil_div(columns, block), 1
        return Rows(grid, several, block, num_warps)

    def whole_rows(self, columns: int) -> Rows:
        """A plan for programs that need whole rows, with those of padding."""
        return whole_rows(self.device, self.sizes[0] * self.sizes[2], max(columns, self.least))

    def bind(
        self,
        of: str,
        plan: Rows,
        columns: int,
        strides: tuple[int, int],
        eps: float = 0.0,
        experts: int = 0,
    ) -> Run:
        """A launch of the kernel for what ``of`` says of rows and residuals of these strides."""
        tiles = ceil_div(self.sizes[2], plan.several)
        least = int(self.static)  # A given scale is copied even if it has no codes.
        grid = max(self.sizes[0] * tiles, least), max(plan.grid[1], least), 1
        numbers = columns, *strides, max(tiles, 1), *self.sizes[1:], experts, eps
        group = plan.block if self.group is None else self.group
        shape = group, plan.several, plan.block, unit(columns, *strides)
        constants = of, largest(self.dtype), self.ue8m0, *shape
        return kernels.quantise.bind(grid, numbers, constants, plan.num_warps)


def coding(
    x: Tensor,
    columns: int,
    scale: Tensor | None,
    group: int | None,
    dtype: torch.dtype,
    layout: str = "row",
    ue8m0: bool = False,
) -> Coding:
    """How to make codes [..., columns], which have the rows of ``x``, and their scales."""
    leading = x.shape[:-1]
    rows, packed = leading.numel(), ue8m0 and layout == "tma"
    width = 1 if group is None else ceil_div(columns, group)
    width, kind = (ceil_div(width, 4), torch.int32) if packed else (width, torch.float32)
    if scale is not None:
        scales, sizes = empty((1,), x, kind), (1, rows, rows, 0, 0, 0)
    elif layout == "row":
        # Those without columns have a scale only if it is the whole row's.
        rows = rows if width else 0
        scales, sizes = empty((*leading, width), x, kind), (1, rows, rows, 0, width, 1)
    else:
        inner = leading[-1]
        room = ceil_div(inner, 4) * 4 if layout == "tma" else inner
        scales = _columns((*leading[:-1], width, room), inner, x, kind)
        matrices = leading[:-1].numel() if width else 0
        sizes = matrices, inner, room, width * room, 1, room
    codes, least = empty((*leading, columns), x, dtype), (group or 1) * (4 if packed else 1)
    return Coding(x.device, codes, scales, dtype, group, scale is not None, ue8m0, least, sizes)


def _columns(
    shape: Sequence[int], rows: int, like: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """What makes scales that lie by columns, of which the first rows are shown."""
    made, shown = empty(shape, like, dtype), torch.empty(shape, device="meta")
    shown = shown.narrow(-1, 0, rows).mT
    size, stride = shown.shape, shown.stride()
    return lambda: made().as_strided(size, stride)


@prepared
def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> Run:
    return _quantised(x, coding(x, x.shape[-1], None, group_size, dtype, scale_layout, ue8m0))


@prepared
def per_token_quant(x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Run:
    return _quantised(x, coding(x, x.shape[-1], None, None, dtype))


def _quantised(x: Tensor, into: Coding) -> Run:
    columns, (rows_in, rows, stride) = x.shape[-1], rows_like(x)
    plan = into.pieces(columns)
    if plan.several:
        launch, rest = into.bind("x", plan, columns, (stride, 0)), (None,) * 5
    else:
        constants = largest(into.dtype), plan.block, unit(columns, stride)
        how = (rows, 1, 1), (columns, stride), constants
        launch, rest = kernels.quantise_long.bind(*how, plan.num_warps), ()

    def run(x: Tensor, *_: Any, **_named: Any) -> tuple[Tensor, Tensor]:
        q, scale = into.codes(), into.scales()
        launch(q, scale, rows_in(x), *rest)
        return q, scale

    return run


@prepared
def per_tensor_quant(
    x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> Run:
    count, blocks = x.numel(), max(ceil_div(x.numel(), _FLAT), 1)
    some = 0 if scale is not None else min(blocks, _PEAKS)
    codes, scales = empty(x.shape, x, dtype), empty((1,), x, torch.float32)
    peaks_of = empty((some,), x, torch.float32)
    shape = _FLAT, unit(count)
    find = kernels.find_peaks.bind((some, 1, 1), (count,), shape)
    constants = scale is not None, largest(dtype), _PEAKS, *shape
    launch = kernels.quantise_all.bind((blocks, 1, 1), (count, some), constants)

    def run(x: Tensor, scale: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        x, q, made, peaks = x.contiguous(), codes(), scales(), scale
        if peaks is None:
            peaks = peaks_of()
            find(peaks, x)
        launch(q, made, x, peaks)
        return q, made

    return run


def largest(dtype: torch.dtype) -> float:
    """The largest code."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 127.0
