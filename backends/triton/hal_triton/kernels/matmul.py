"""Products with matrices stored as a linear layer has its weight: a program is a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.activation import gated
from hal_triton.kernels.pdl import await_previous
from hal_triton.kernels.sums import (
    packed_sums,
    scaled_sums,
    spread_packed_sums,
    spread_sums,
    sums,
)
from hal_triton.launch import launcher


@triton.jit
def tile_at(down, across):
    """A program's place in down x across tiles.

    Programs go down bands of 8, so that those near in time share factors of both sides.
    """
    band, within = tl.program_id(0) // (8 * across), tl.program_id(0) % (8 * across)
    height = tl.minimum(down - band * 8, 8)
    return band * 8 + within % height, within // height


@triton.jit
def weight_rows(place, outs, ACTIVATION: tl.constexpr):
    """The rows of the weight at each place, gate and up in turn, and whether they exist."""
    if ACTIVATION is None:
        row, valid = place, place < outs
    else:
        row, valid = place // 2 + place % 2 * outs, place // 2 < outs
    return row.to(tl.int64), valid


@triton.jit
def activated(total, ACTIVATION: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Results of the sums [M, N] for the rows that ``weight_rows`` names."""
    if ACTIVATION is not None:
        gate, up = tl.split(tl.reshape(total, (M, N // 2, 2)))
        total = gated(gate, up, ACTIVATION)
    return total


@triton.jit
def put(out, result, row, valid, tile, outs, M: tl.constexpr, WIDTH: tl.constexpr):
    """Store a tile [M, WIDTH] in the given rows of out [..., outs]."""
    column = tile * WIDTH + tl.arange(0, WIDTH)
    where = out + row.to(tl.int64)[:, None] * outs + column[None, :]
    tl.store(where, result.to(out.dtype.element_ty), valid[:, None] & (column < outs)[None, :])


@launcher
def multiply(
    out,
    x,
    weight,
    x_scale,
    w_scale,
    w_zero,
    rows: tl.int32,
    outs: tl.int32,
    columns: tl.int32,
    x_stride: tl.int64,
    w_stride: tl.int64,
    x_scale_stride: tl.int64,
    x_step: tl.int64,
    w_scale_stride: tl.int64,
    w_step: tl.int64,
    zero_stride: tl.int64,
    rows_of_block: tl.int32,
    size: tl.int32,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [rows, outs] of x [rows, columns] and weight [outs or twice as many, columns].

    columns are those of the weight: bytes, if it is packed. Its rows_of_block rows by size columns
    have a scale each; EXACT says that K goes into size.
    """
    await_previous(PDL)
    WIDTH: tl.constexpr = N if ACTIVATION is None else N // 2
    columns, outs = columns // UNIT * UNIT, outs // UNIT * UNIT
    down, across = tile_at((rows + M - 1) // M, (outs + WIDTH - 1) // WIDTH)
    row = down * M + tl.arange(0, M)
    x_in, at = row < rows, row.to(tl.int64)
    w_row, w_in = weight_rows(across * N + tl.arange(0, N), outs, ACTIVATION)
    x_at = x + at * (x_stride // UNIT * UNIT)
    w_at = weight + w_row * (w_stride // UNIT * UNIT)
    if w_scale is None:
        total = sums(x_at, None, x_in, w_at, w_in, columns, M, N, K)
    else:
        scale_at = w_scale + w_row // rows_of_block * w_scale_stride
        if x_scale is not None:
            by = x_scale + at * x_scale_stride
            if EXACT:
                total = scaled_sums(
                    x_at, x_in, by, x_step, w_at, w_in, scale_at, w_step, columns, size, M, N, K
                )
            else:
                total = spread_sums(
                    x_at, x_in, by, x_step, w_at, w_in, scale_at, w_step, columns, size, M, N, K
                )
        else:
            zero_at = None if w_zero is None else w_zero + w_row * zero_stride
            if EXACT:
                total = packed_sums(
                    x_at, x_in, w_at, w_in, scale_at, w_step, zero_at, columns, size, M, N, K
                )
            else:
                total = spread_packed_sums(
                    x_at, x_in, w_at, w_in, scale_at, w_step, zero_at, columns, size, M, N, K
                )
    result = activated(total, ACTIVATION, M, N)
    put(out, result, row, x_in, across, outs, M, WIDTH)
