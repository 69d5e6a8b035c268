"""What stands around an attention that lets NaN and infinities of a value spread over a tile."""

from __future__ import annotations

import torch
import triton.language as tl

from hal_triton.launch import launcher, next_power_of_2
from hal_triton.layout import ceil_div

_ROWS, _HEADS = 32, 16
_UNIT = tl.constexpr(8)
"""What divides the width and every stride of the values, so that 16 bytes are loaded at once."""


@launcher
def _clean(
    out,
    broken,
    v,
    tokens: tl.int32,
    longest: tl.int32,
    heads: tl.int32,
    width: tl.int32,
    token_stride: tl.int64,
    head_stride: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1)
    token_stride, head_stride = token_stride // _UNIT * _UNIT, head_stride // _UNIT * _UNIT
    width = width // _UNIT * _UNIT
    row = (block * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < tokens) & (column < width)
    x = tl.load(v + row * token_stride + head * head_stride + column, mask, 0.0)
    finite = tl.abs(x.to(tl.float32)) < float("inf")
    at = out + (row * heads + head) * width + column
    tl.store(at, tl.where(finite, x, 0.0), (row < longest) & (column < width))
    found = tl.max(tl.max(tl.where(finite, 0, 1), 1), 0)
    tl.store(broken + head * tl.num_programs(0) + block, found)


@launcher
def _finish(
    out,
    lse,
    given,
    starts,
    tokens: tl.int32,
    heads: tl.int32,
    width: tl.int32,
    head_stride: tl.int64,
    start_stride: tl.int64,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    row = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[None, :]
    end = tl.load(starts + start_stride)
    mask = (row < tokens) & (head < heads)
    known = tl.load(given + head * head_stride + row, mask, 0.0)
    value = tl.load(out + (row * heads + head) * width, mask, 0.0).to(tl.float32)
    # Some kernels say +inf where there is nothing to sum, and where a sum is NaN.
    nothing = tl.where(value != value, value, float("-inf"))
    known = tl.where(known == float("inf"), nothing, known)
    tl.store(lse + row * heads + head, tl.where(row < end, known, float("-inf")), mask)
    if first + ROWS > end:
        width = width // _UNIT * _UNIT
        begin = tl.program_id(1) * HEADS * width
        for i in range(0, HEADS * width, BLOCK):
            column = begin + i + tl.arange(0, BLOCK)[None, :]
            past = (row >= end) & (row < tokens) & (column < heads * width)
            # The last columns are the first ones of the next heads, where the same is written.
            at = out + row * heads * width + column
            tl.store(at, tl.zeros((ROWS, BLOCK), out.dtype.element_ty), past)


@launcher
def _spread(
    out,
    v,
    broken,
    starts,
    blocks: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    width: tl.int32,
    token_stride: tl.int64,
    head_stride: tl.int64,
    start_stride: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEEN: tl.constexpr,
):
    head = tl.program_id(0)
    found = tl.zeros((SEEN,), tl.int32)
    for i in range(0, blocks, SEEN):
        place = i + tl.arange(0, SEEN)
        found = tl.maximum(found, tl.load(broken + head * blocks + place, place < blocks, 0))
    if tl.max(found, 0) > 0:
        end = tl.load(starts + start_stride).to(tl.int32)
        column = tl.arange(0, BLOCK)[None, :]
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, end, ROWS):
            row = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
            mask = (row < end) & (column < width)
            x = tl.load(v + row * token_stride + head * head_stride + column, mask, 0.0)
            x = x.to(tl.float32)
            x = tl.where(tl.abs(x) < float("inf"), 0.0, x)
            seen = tl.cumsum(x, 0) + total[None, :]
            total += tl.sum(x, 0)
            for member in range(group):
                at = out + (row * heads + head * group + member) * width + column
                sums = tl.load(at, mask, 0.0).to(tl.float32) + seen
                tl.store(at, sums.to(out.dtype.element_ty), mask)


def cleaned(v, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values without what is not finite, and in which blocks of them, and heads, there was any.

    Args:
        v: [tokens, heads, width].
        longest: Rows of the result, of which those past the tokens are 0.

    Returns:
        values: [longest, heads, width], the dtype of ``v``.
        broken: [heads, blocks], int32.
    """
    tokens, heads, width = v.shape
    out = v.new_empty((longest, heads, width))
    grid = ceil_div(longest, _ROWS), heads, 1
    broken = v.new_empty((heads, grid[0]), dtype=torch.int32)
    numbers = tokens, longest, heads, width, *v.stride()[:2]
    _clean(grid, (out, broken, v), numbers, (_ROWS, next_power_of_2(width)))
    return out, broken


def finish(out, given, starts) -> torch.Tensor:
    """The logs of the sums [tokens, heads]; ``out`` [tokens, heads, width] of the padding is 0.

    Args:
        out: Overwritten where there is padding.
        given: [heads, tokens or more], float32, as a library returns them.
        starts: [2]: 0, and the number of tokens that are no padding.
    """
    tokens, heads, width = out.shape
    lse = given.new_empty((tokens, heads))
    numbers = tokens, heads, width, given.stride(0), starts.stride(0)
    constants = _ROWS, _HEADS, next_power_of_2(width)
    grid = ceil_div(tokens, _ROWS), ceil_div(heads, _HEADS), 1
    _finish(grid, (out, lse, given, starts), numbers, constants)
    return lse


def spread(out, v, broken, starts) -> None:
    """Add to ``out`` [tokens, heads, width] what of the values that a query sees is not finite.

    It costs hardly anything where all of them are finite.
    """
    heads, blocks = broken.shape
    numbers = (
        blocks, out.shape[1], out.shape[1] // heads, out.shape[2], *v.stride()[:2],
        starts.stride(0),
    )  # fmt: skip
    constants = _ROWS, next_power_of_2(out.shape[2]), 256
    _spread((heads, 1, 1), (out, v, broken, starts), numbers, constants)
