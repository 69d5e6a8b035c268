"""Products of single rows: a program goes along some rows of the weight."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.activation import gated
from hal_triton.kernels.matmul import weight_rows
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def row_sums(x, w, w_in, columns, N: tl.constexpr, K: tl.constexpr):
    """[N] of rows that begin at the pointers x, [N] or one for all, and w [N], where w_in."""
    total = tl.full((N, K), 0, tl.float32)
    for start in range(0, columns, K):
        k = (start + tl.arange(0, K))[None, :]
        value = tl.load(x[:, None] + k, k < columns, 0.0).to(tl.float32)
        mask = w_in[:, None] & (k < columns)
        factor = tl.load(w[:, None] + k, mask, 0.0, eviction_policy="evict_first")
        total += factor.to(tl.float32) * value
    return tl.sum(total, 1)


@triton.jit
def scaled_row_sums(
    x,
    x_scale,
    x_step,
    w,
    w_in,
    w_scale,
    w_step,
    columns,
    size,
    EXACT: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same of codes; size columns, in which 16 go exactly if EXACT, have a scale each.

    16 codes are what a thread loads at once and adds up on its own, before they are scaled.
    """
    PIECE: tl.constexpr = 16 if EXACT else 1
    total = tl.full((N, K // PIECE), 0, tl.float32)
    for start in range(0, columns, K):
        piece = (start + tl.arange(0, K // PIECE) * PIECE)[None, :]
        k = piece[:, :, None] + tl.arange(0, PIECE)[None, None, :]
        value = tl.load(x[:, None, None] + k, k < columns, 0.0).to(tl.float32)
        mask = w_in[:, None, None] & (k < columns)
        factor = tl.load(w[:, None, None] + k, mask, 0.0, eviction_policy="evict_first")
        group, some = piece // size, piece < columns
        by_x = tl.load(x_scale[:, None] + group * x_step, some, 0.0)
        by_w = tl.load(w_scale[:, None] + group * w_step, w_in[:, None] & some, 0.0)
        total += tl.sum(factor.to(tl.float32) * value, 2) * by_x * by_w
    return tl.sum(total, 1)


@triton.jit
def packed_row_sums(
    x,
    w,
    w_in,
    w_scale,
    w_step,
    w_zero,
    width,
    size,
    EXACT: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same of x and codes of 4 bits, of which 32 go into size, or the two of a byte differ."""
    PIECE: tl.constexpr = 16 if EXACT else 1
    PIECES: tl.constexpr = K // 2 // PIECE
    total = tl.full((N, PIECES), 0, tl.float32)
    for start in range(0, width, K // 2):
        piece = (start + tl.arange(0, PIECES) * PIECE)[None, :]
        byte = piece[:, :, None] + tl.arange(0, PIECE)[None, None, :]
        even = tl.load(x[:, None, None] + 2 * byte, byte < width, 0.0).to(tl.float32)
        odd = tl.load(x[:, None, None] + 2 * byte + 1, byte < width, 0.0).to(tl.float32)
        mask = w_in[:, None, None] & (byte < width)
        codes = tl.load(w[:, None, None] + byte, mask, 0, eviction_policy="evict_first")
        low, high = (codes & 15).to(tl.float32), (codes >> 4).to(tl.float32)
        some = w_in[:, None] & (piece < width)
        scale, zero = of_groups(w_scale, w_step, w_zero, 2 * piece // size, some)
        low = (low - zero[:, :, None]) * even
        if EXACT:
            total += tl.sum(low + (high - zero[:, :, None]) * odd, 2) * scale
        else:
            total += tl.sum(low, 2) * scale
            scale, zero = of_groups(w_scale, w_step, w_zero, (2 * piece + 1) // size, some)
            total += tl.sum((high - zero[:, :, None]) * odd, 2) * scale
    return tl.sum(total, 1)


@triton.jit
def of_groups(w_scale, w_step, w_zero, group, mask):
    """The scales and zeros [N, PIECES] of the groups [1, PIECES] of each row."""
    scale = tl.load(w_scale[:, None] + group * w_step, mask, 0.0).to(tl.float32)
    zero = tl.full(scale.shape, 8, tl.float32)
    if w_zero is not None:
        zero = tl.load(w_zero[:, None] + group, mask, 0).to(tl.float32)
    return scale, zero


@launcher
def multiply_pairs(
    out,
    x,
    weight,
    x_scale,
    w_scale,
    w_zero,
    bias,
    ids,
    routed,
    pairs: tl.int32,
    outs: tl.int32,
    columns: tl.int32,
    experts: tl.int32,
    choices: tl.int32,
    x_stride: tl.int64,
    w_expert: tl.int64,
    w_stride: tl.int64,
    x_scale_stride: tl.int64,
    x_step: tl.int64,
    scale_expert: tl.int64,
    w_scale_stride: tl.int64,
    w_step: tl.int64,
    zero_stride: tl.int64,
    rows_of_block: tl.int32,
    size: tl.int32,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    PAIRS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [pairs, outs], of the rows of x, choices pairs each, and weight [outs, columns].

    With ids a pair has an expert, whose weight it is; without a known one the result is 0. routed
    is what a pair's result is multiplied with. For the rest see ``multiply``; EXACT says that 32
    columns go into size. A program has N rows of the weight for each of PAIRS.
    """
    await_previous(PDL)
    WIDTH: tl.constexpr = N if ACTIVATION is None else N // 2
    columns = columns // UNIT * UNIT
    across = (outs + WIDTH - 1) // WIDTH
    first, tile = tl.program_id(0) // across * PAIRS, tl.program_id(0) % across
    place = tl.arange(0, PAIRS * N)
    pair = first + place // N
    w_row, w_in = weight_rows(tile * N + place % N, outs, ACTIVATION)
    w_in = w_in & (pair < pairs)
    w_at, scale_at = weight + w_row * (w_stride // UNIT * UNIT), w_scale
    if w_scale is not None:
        scale_at = w_scale + w_row // rows_of_block * w_scale_stride
    if ids is not None:
        expert = tl.load(ids + pair, w_in, -1).to(tl.int64)
        w_in = w_in & (expert >= 0) & (expert < experts)
        w_at += expert * (w_expert // UNIT * UNIT)
        if w_scale is not None:
            scale_at += expert * scale_expert
    # A single pair's row is loaded once for all rows of the weight.
    of = first + (place // N if PAIRS > 1 else tl.arange(0, 1))
    row = tl.where(of < pairs, of // choices, 0).to(tl.int64)
    x_at = x + row * (x_stride // UNIT * UNIT)
    if w_scale is None:
        total = row_sums(x_at, w_at, w_in, columns, PAIRS * N, K)
    elif x_scale is not None:
        by = x_scale + row * x_scale_stride
        total = scaled_row_sums(
            x_at, by, x_step, w_at, w_in, scale_at, w_step, columns, size, EXACT, PAIRS * N, K
        )
    else:
        zero_at = None if w_zero is None else w_zero + w_row * zero_stride
        total = packed_row_sums(
            x_at, w_at, w_in, scale_at, w_step, zero_at, columns, size, EXACT, PAIRS * N, K
        )
    # What an unknown expert was not multiplied with may be NaN.
    total = tl.where(w_in, total, 0.0)
    if bias is not None:
        total += tl.load(bias + w_row, w_in, 0.0).to(tl.float32)
    if ACTIVATION is not None:
        gate, up = tl.split(tl.reshape(total, (PAIRS * WIDTH, 2)))
        total = gated(gate, up, ACTIVATION)
    place = tl.arange(0, PAIRS * WIDTH)
    pair, column = first + place // WIDTH, tile * WIDTH + place % WIDTH
    mask = (pair < pairs) & (column < outs)
    if routed is not None:
        expert = tl.load(ids + pair, mask, -1)
        total *= tl.load(routed + pair, (expert >= 0) & (expert < experts), 0.0).to(tl.float32)
    tl.store(out + pair.to(tl.int64) * outs + column, total.to(out.dtype.element_ty), mask)
