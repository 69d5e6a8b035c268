"""Quantisation to 8 bits by Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from hal_triton.kernels import quant as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import Rows, ceil_div, rows_of, unit, whole_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Coding", "coding", "per_tensor_quant", "per_token_group_quant", "per_token_quant"]

_TILE = 2048
_FLAT = 1024
_PEAKS = 1024


class Coding(NamedTuple):
    """What codes and scales are to be, and the memory they go to."""

    q: Tensor
    scale: Tensor
    group: int | None
    """How many codes share a scale, None for a whole row."""
    static: bool
    ue8m0: bool
    numbers: tuple[int, ...]
    """Matrices, the rows of one and those that it has scales for; the strides of the scales."""

    def constants(self, rows: Rows) -> tuple[object, ...]:
        """What kernels are compiled for."""
        group = rows.block if self.group is None else self.group
        return largest(self.q.dtype), self.ue8m0, self.static, group, rows.several, rows.block

    def whole_rows(self, columns: int) -> Rows:
        """A plan for programs that need whole rows, with those of padding."""
        return whole_rows(self._rows, max(columns, self._least))

    def pieces(self, columns: int) -> Rows:
        """A plan for programs that need no more than the columns of a scale."""
        if self.group is None and not self.static:
            return self.whole_rows(columns)
        rows = self._rows
        block = max(min(next_power_of_2(columns), _TILE), self._least)
        several = max(1, min(_TILE // block, next_power_of_2(rows) // 512))
        return Rows((ceil_div(rows, several), ceil_div(columns, block), 1), several, block, 4)

    @property
    def _rows(self) -> int:
        # Those without columns have a scale only if it is the whole row's.
        return self.numbers[0] * self.numbers[2] if self.scale.numel() else 0

    @property
    def _least(self) -> int:
        # Programs must not share a scale, nor a word of four packed ones.
        return (self.group or 1) * (4 if self.scale.dtype == torch.int32 else 1)


def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    return _quantised(x, coding(x, x.shape[-1], None, group_size, dtype, scale_layout, ue8m0))


def per_token_quant(
    x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    return _quantised(x, coding(x, x.shape[-1], None, None, dtype))


def per_tensor_quant(
    x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    q, x, count = x.new_empty(x.shape, dtype=dtype), x.contiguous(), x.numel()
    grid, constants = (max(ceil_div(count, _FLAT), 1), 1, 1), (largest(dtype), _PEAKS, _FLAT)
    if scale is not None:
        kept = _static(scale)
        kernels.quantise_all(grid, (q, kept, x, None), (count, 0), constants)
        return q, kept
    made = x.new_empty((1,), dtype=torch.float32)
    peaks = x.new_empty((min(grid[0], _PEAKS),), dtype=torch.float32)
    kernels.find_peaks((peaks.numel(), 1, 1), (peaks, x), (count,), (_FLAT,))
    kernels.quantise_all(grid, (q, made, x, peaks), (count, peaks.numel()), constants)
    return q, made


def largest(dtype: torch.dtype) -> float:
    """The largest code."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 127.0


def coding(
    x: Tensor,
    columns: int,
    scale: Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
    layout: str = "row",
    ue8m0: bool = False,
) -> Coding:
    """Memory for the codes of [..., columns], which has the rows of ``x``, and for their scales."""
    leading = x.shape[:-1]
    q = x.new_empty((*leading, columns), dtype=dtype)
    rows = leading.numel()
    if scale is not None:
        return Coding(q, _static(scale), group_size, True, ue8m0, (1, rows, rows, 0, 0, 0))
    packed = ue8m0 and layout == "tma"
    groups = 1 if group_size is None else ceil_div(columns, group_size)
    width, kind = (ceil_div(groups, 4), torch.int32) if packed else (groups, torch.float32)
    if layout == "row":
        made = x.new_empty((*leading, width), dtype=kind)
        return Coding(q, made, group_size, False, ue8m0, (1, rows, rows, 0, width, 1))
    inner = leading[-1]
    room = ceil_div(inner, 4) * 4 if layout == "tma" else inner
    padded = x.new_empty((*leading[:-1], width, room), dtype=kind)
    numbers = leading[:-1].numel(), inner, room, width * room, 1, room
    return Coding(q, padded.narrow(-1, 0, inner).mT, group_size, False, ue8m0, numbers)


def _static(scale: Tensor) -> Tensor:
    return scale.reshape(1).clone(memory_format=torch.contiguous_format)


def _quantised(x: Tensor, into: Coding) -> tuple[Tensor, Tensor]:
    columns = x.shape[-1]
    x, rows, stride = rows_of(x)
    plan, tensors = into.pieces(columns), (into.q, into.scale, x)
    if plan.several:
        numbers = columns, stride, *into.numbers
        constants = *into.constants(plan), unit(columns, stride)
        kernels.quantise(plan.grid, tensors, numbers, constants, plan.num_warps)
    else:
        constants = largest(into.q.dtype), plan.block
        kernels.quantise_long((rows, 1, 1), tensors, (columns, stride), constants, plan.num_warps)
    return into.q, into.scale
