"""The experts of a mixture: products of blocks of pairs that share one, and their sum."""

from __future__ import annotations

import triton.language as tl

from hal_triton.kernels.matmul import activated, put, tile_at, tile_scales, weight_rows
from hal_triton.kernels.pdl import await_previous
from hal_triton.kernels.sums import halves, scaled_sums, sums
from hal_triton.launch import launcher


@launcher
def multiply_blocks(
    out,
    out_rest,
    x,
    x_rest,
    weight,
    x_scale,
    w_scale,
    expert_of,
    pair_of,
    blocks: tl.int32,
    pairs: tl.int32,
    outs: tl.int32,
    columns: tl.int32,
    experts: tl.int32,
    choices: tl.int32,
    x_stride: tl.int64,
    w_expert: tl.int64,
    w_stride: tl.int64,
    x_scale_stride: tl.int64,
    scale_expert: tl.int64,
    w_scale_stride: tl.int64,
    w_step: tl.int64,
    rows_of_block: tl.int32,
    size: tl.int32,
    ACTIVATION: tl.constexpr,
    SHARED: tl.constexpr,
    NATIVE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [pairs, outs], of the rows of x, choices pairs each, and their expert's weight.

    Block i has the expert expert_of[i] and the pairs pair_of[i * M] and on; without pair_of it has
    pair i alone. Pairs that no block has are not written. out and x may be in two parts of 16 bits,
    of which the second has what the first leaves. For the rest see ``multiply``.
    """
    await_previous(PDL)
    WIDTH: tl.constexpr = N if ACTIVATION is None else N // 2
    columns, outs = columns // UNIT * UNIT, outs // UNIT * UNIT
    block, across = tile_at(blocks, (outs + WIDTH - 1) // WIDTH)
    expert = tl.load(expert_of + block).to(tl.int64)
    if (expert >= 0) & (expert < experts):
        place = tl.arange(0, M)
        if pair_of is None:
            pair, x_in = block + place, place < 1
        else:
            pair = tl.load(pair_of + block.to(tl.int64) * M + place)
            x_in = pair < pairs
        row = (pair // choices).to(tl.int64)
        w_row, w_in = weight_rows(across * N + tl.arange(0, N), outs, ACTIVATION)
        x_at = x + row * (x_stride // UNIT * UNIT)
        w_at = weight + expert * (w_expert // UNIT * UNIT) + w_row * (w_stride // UNIT * UNIT)
        if w_scale is None:
            rest_at = None if x_rest is None else x_rest + row * (x_stride // UNIT * UNIT)
            total = sums(x_at, rest_at, x_in, w_at, w_in, 0, columns, M, N, K)
        else:
            by, up = x_scale + row * x_scale_stride, None
            by_w = w_scale + expert * scale_expert
            if SHARED > 0:
                by_w, up = tile_scales(by_w, w_scale_stride, across * WIDTH, outs, rows_of_block)
            else:
                by_w += w_row.to(tl.int32) // rows_of_block * w_scale_stride
            total = scaled_sums(
                x_at, x_in, by, 1, w_at, w_in, by_w, up, w_step, 0, columns, size,
                SHARED, NATIVE, M, N, K,
            )  # fmt: skip
        total = activated(total, ACTIVATION, M, N)
        if out_rest is not None:
            total, rest = halves(total, 16)
            put(out_rest, rest, pair, x_in, across, outs, M, WIDTH)
        put(out, total, pair, x_in, across, outs, M, WIDTH)


@launcher
def add_choices(
    out,
    parts,
    routed,
    ids,
    rows: tl.int32,
    columns: tl.int32,
    experts: tl.int32,
    choices: tl.int32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write out [rows, columns] of parts [rows, choices, columns], less those of no expert."""
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    total = tl.full((ROWS, BLOCK), 0, tl.float32)
    for choice in range(choices):
        pair = row.to(tl.int64) * choices + choice
        expert = tl.load(ids + pair, row < rows, -1)
        known = (expert >= 0) & (expert < experts)
        by = tl.load(routed + pair, known, 0.0).to(tl.float32)
        part = tl.load(parts + pair * columns + column, mask & known, 0.0)
        total += tl.where(known, by * part, 0.0)
    tl.store(out + row.to(tl.int64) * columns + column, total.to(out.dtype.element_ty), mask)
