"""Products with matrices stored as a linear layer has its weight: a program is a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.activation import gated
from hal_triton.kernels.packed import packed_sums, spread_packed_sums
from hal_triton.kernels.pdl import await_previous
from hal_triton.kernels.sums import scaled_sums, spread_sums, sums, sums_of_codes
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


@triton.jit
def tile_scales(w_scale, stride, column, outs, rows_of_block):
    """Where the scales of a tile at a column begin, and those of the rows of up."""
    gate, up = column // rows_of_block, (outs + column) // rows_of_block
    return w_scale + gate * stride, w_scale + up * stride


@triton.jit
def finished(
    total,
    x_scale,
    w_scale,
    bias,
    row,
    x_in,
    w_row,
    w_in,
    x_scale_stride,
    w_scale_stride,
    ACTIVATION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """What follows the sums [M, N]: scales of rows, a bias, and an activation."""
    total = total.to(tl.float32)
    if x_scale is not None:
        total *= tl.load(x_scale + row.to(tl.int64) * x_scale_stride, x_in, 0.0)[:, None]
        total *= tl.load(w_scale + w_row * w_scale_stride, w_in, 0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + w_row, w_in, 0.0).to(tl.float32)[None, :]
    return activated(total, ACTIVATION, M, N)


@launcher
def multiply(
    out,
    x,
    weight,
    x_scale,
    w_scale,
    w_zero,
    bias,
    rows: tl.int32,
    outs: tl.int32,
    columns: tl.int32,
    part: tl.int32,
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
    KIND: tl.constexpr,
    SHARED: tl.constexpr,
    NATIVE: tl.constexpr,
    WHOLE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [rows, outs] of x [rows, columns] and weight [outs or twice as many, columns].

    columns are those of the weight: bytes, if it is packed. KIND says where scales are: "none";
    "rows", one for each; or for rows_of_block rows by size columns, "blocks" that K goes into or
    "spread" over any. SHARED is 1 if all rows of a tile have one, 2 if those of gate have one and
    those of up another one; see ``product_of_codes`` for NATIVE. Unless WHOLE, out [parts, rows,
    outs or twice as many] has the sums of each part of the columns, and ``add_parts`` does the
    rest.
    """
    await_previous(PDL)
    WIDTH: tl.constexpr = N if ACTIVATION is None else N // 2
    outs = outs // UNIT * UNIT
    down, across = tile_at((rows + M - 1) // M, (outs + WIDTH - 1) // WIDTH)
    first = tl.program_id(1) * (part // 16 * 16)
    columns = tl.minimum(columns, first + part) // UNIT * UNIT
    row = down * M + tl.arange(0, M)
    x_in, at = row < rows, row.to(tl.int64)
    w_row, w_in = weight_rows(across * N + tl.arange(0, N), outs, ACTIVATION)
    x_at = x + at * (x_stride // UNIT * UNIT)
    w_at = weight + w_row * (w_stride // UNIT * UNIT)
    by, by_w = x_scale, w_scale
    if KIND == "blocks" or KIND == "spread":
        by_w = w_scale + w_row.to(tl.int32) // rows_of_block * w_scale_stride
        if x_scale is not None:
            by = x_scale + at * x_scale_stride
    if KIND == "none":
        total = sums(x_at, None, x_in, w_at, w_in, first, columns, M, N, K)
    elif KIND == "rows":
        total = sums_of_codes(x_at, x_in, w_at, w_in, first, columns, NATIVE, M, N, K)
    elif x_scale is None:
        zero_at = None if w_zero is None else w_zero + w_row * zero_stride
        if KIND == "blocks":
            # Devices that have PDL understand PTX.
            total = packed_sums(
                x_at, x_in, w_at, w_in, by_w, w_step, zero_at, first, columns, size, PDL, M, N, K
            )
        else:
            total = spread_packed_sums(
                x_at, x_in, w_at, w_in, by_w, w_step, zero_at, first, columns, size, M, N, K
            )
    elif KIND == "blocks":
        up = None
        if SHARED > 0:
            by_w, up = tile_scales(w_scale, w_scale_stride, across * WIDTH, outs, rows_of_block)
        total = scaled_sums(
            x_at, x_in, by, x_step, w_at, w_in, by_w, up, w_step, first, columns, size,
            SHARED, NATIVE, M, N, K,
        )  # fmt: skip
    else:
        total = spread_sums(
            x_at, x_in, by, x_step, w_at, w_in, by_w, w_step, first, columns, size, M, N, K
        )
    if WHOLE:
        of_x, of_w = x_scale, w_scale
        if KIND != "rows":
            of_x, of_w = None, None
        result = finished(
            total, of_x, of_w, bias, row, x_in, w_row, w_in, x_scale_stride, w_scale_stride,
            ACTIVATION, M, N,
        )  # fmt: skip
        put(out, result, row, x_in, across, outs, M, WIDTH)
    else:
        places = outs if ACTIVATION is None else 2 * outs
        out += tl.program_id(1).to(tl.int64) * rows * places
        put(out, total, row, x_in, across, places, M, N)


@launcher
def add_parts(
    out,
    parts,
    x_scale,
    w_scale,
    bias,
    rows: tl.int32,
    outs: tl.int32,
    count: tl.int32,
    x_scale_stride: tl.int64,
    w_scale_stride: tl.int64,
    ACTIVATION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [rows, outs] of count parts, as ``multiply`` writes them."""
    await_previous(PDL)
    WIDTH: tl.constexpr = N if ACTIVATION is None else N // 2
    outs = outs // UNIT * UNIT
    places = outs if ACTIVATION is None else 2 * outs
    across = (outs + WIDTH - 1) // WIDTH
    row, tile = tl.program_id(0) // across * M + tl.arange(0, M), tl.program_id(0) % across
    place, x_in = tile * N + tl.arange(0, N), row < rows
    at = parts + row.to(tl.int64)[:, None] * places + place[None, :]
    mask = x_in[:, None] & (place < places)[None, :]
    total = tl.load(at, mask, 0)
    for _ in range(1, count):
        at += rows.to(tl.int64) * places
        total += tl.load(at, mask, 0)
    w_row, w_in = weight_rows(place, outs, ACTIVATION)
    result = finished(
        total, x_scale, w_scale, bias, row, x_in, w_row, w_in, x_scale_stride, w_scale_stride,
        ACTIVATION, M, N,
    )  # fmt: skip
    put(out, result, row, x_in, tile, outs, M, WIDTH)
