"""What stands around an attention that lets NaN and infinities of a value spread over a tile."""

from __future__ import annotations

import torch
import triton
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
    last: tl.int64,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    row = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[None, :]
    end = tl.load(starts + last)
    mask = (row < tokens) & (head < heads)
    known = tl.load(given + head * head_stride + row, mask, 0.0)
    value = tl.load(out + (row * heads + head) * width, mask, 0.0).to(tl.float32)
    # Some kernels say +inf, or -inf, where there is nothing to sum and where a sum is NaN.
    nothing = tl.where(value != value, value, float("-inf"))
    known = tl.where(tl.abs(known) == float("inf"), nothing, known)
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
    starts_q,
    starts_k,
    blocks: tl.int32,
    heads: tl.int32,
    group: tl.int32,
    width: tl.int32,
    token_stride: tl.int64,
    head_stride: tl.int64,
    q_stride: tl.int64,
    k_stride: tl.int64,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEEN: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    found = tl.zeros((SEEN,), tl.int32)
    for i in range(0, blocks, SEEN):
        place = i + tl.arange(0, SEEN)
        found = tl.maximum(found, tl.load(broken + head * blocks + place, place < blocks, 0))
    if tl.max(found, 0) > 0:
        q_first = tl.load(starts_q + sequence * q_stride).to(tl.int64)
        queries = tl.load(starts_q + (sequence + 1) * q_stride).to(tl.int64) - q_first
        k_first = tl.load(starts_k + sequence * k_stride).to(tl.int64)
        keys = (tl.load(starts_k + (sequence + 1) * k_stride).to(tl.int64) - k_first).to(tl.int32)
        column = tl.arange(0, BLOCK)[None, :]
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, keys, ROWS):
            key = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
            at = v + (k_first + key) * token_stride + head * head_stride + column
            x = tl.load(at, (key < keys) & (column < width), 0.0).to(tl.float32)
            x = tl.where(tl.abs(x) < float("inf"), 0.0, x)
            if CAUSAL:
                # The last query stands at the last key.
                query = key + queries - keys
                mask = (query >= 0) & (key < keys) & (column < width)
                seen = tl.cumsum(x, 0) + total[None, :]
                _add(out, seen, q_first + query, head * group, group, heads, width, column, mask)
            total += tl.sum(x, 0)
        if not CAUSAL:
            for first in range(0, queries.to(tl.int32), ROWS):
                query = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
                mask = (query < queries) & (column < width)
                seen = tl.zeros((ROWS, BLOCK), tl.float32) + total[None, :]
                _add(out, seen, q_first + query, head * group, group, heads, width, column, mask)


@triton.jit
def _add(out, x, row, head, group, heads, width, column, mask):
    for member in range(group):
        at = out + (row * heads + head + member) * width + column
        sums = tl.load(at, mask, 0.0).to(tl.float32) + x
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
        starts: [sequences + 1], the last of which is the number of tokens that are no padding.
    """
    tokens, heads, width = out.shape
    lse = given.new_empty((tokens, heads))
    last = (starts.shape[0] - 1) * starts.stride(0)
    numbers = tokens, heads, width, given.stride(0), last
    constants = _ROWS, _HEADS, next_power_of_2(width)
    grid = ceil_div(tokens, _ROWS), ceil_div(heads, _HEADS), 1
    _finish(grid, (out, lse, given, starts), numbers, constants)
    return lse


def spread(out, v, broken, starts_q, starts_k, causal: bool) -> None:
    """Add to ``out`` [tokens, heads, width] what of the values that a query sees is not finite.

    It costs hardly anything where all of them are finite.
    """
    (heads, blocks), (_, all_heads, width) = broken.shape, out.shape
    grid = starts_q.shape[0] - 1, heads, 1
    strides = *v.stride()[:2], starts_q.stride(0), starts_k.stride(0)
    numbers = blocks, all_heads, all_heads // heads, width, *strides
    constants = causal, _ROWS // 2, next_power_of_2(width), 256
    _spread(grid, (out, v, broken, starts_q, starts_k), numbers, constants)
