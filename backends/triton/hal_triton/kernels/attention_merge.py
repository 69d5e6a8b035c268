"""The second launch of attention that programs share: results from the sums of all chunks."""

from __future__ import annotations

import triton.language as tl

from hal_triton.kernels.attention_rows import blank, finish
from hal_triton.kernels.attention_split import extent, folded
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@launcher
def merge_parts(
    out,
    lse,
    parts,
    q,
    k,
    v,
    table,
    starts_q,
    seq_lens,
    sinks,
    k_scales,
    v_scales,
    q_rest,
    sequences: tl.int32,
    blocks: tl.int32,
    tokens: tl.int32,
    heads: tl.int32,
    chunks: tl.int32,
    rows: tl.int32,
    most: tl.int32,
    group: tl.int32,
    first: tl.int32,
    rest: tl.int32,
    value_dim: tl.int32,
    block_size: tl.int32,
    shift: tl.int32,
    left: tl.int32,
    right: tl.int32,
    q_stride: tl.int64,
    q_head: tl.int64,
    rest_stride: tl.int64,
    rest_head: tl.int64,
    table_stride: tl.int64,
    k_page: tl.int64,
    k_slot: tl.int64,
    k_head: tl.int64,
    k_column: tl.int64,
    v_page: tl.int64,
    v_slot: tl.int64,
    v_head: tl.int64,
    v_column: tl.int64,
    k_scale_stride: tl.int32,
    v_scale_stride: tl.int32,
    sign: tl.float32,
    scale: tl.float32,
    cap: tl.float32,
    cap_scale: tl.float32,
    v_factor: tl.float32,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Results of some rows from the sums of all chunks, AHEAD of which are read at once.

    The sequence behind the last one is the padding.
    """
    await_previous(PDL)
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    kv_head = tl.program_id(1)
    if starts_q is not None:
        if sequence == sequences:
            first_row = tl.load(starts_q + sequence).to(tl.int32) * heads
            others = tl.num_programs(1)
            blank(
                *(out, lse, first_row, tokens * heads, block * others + kv_head, blocks * others),
                *(value_dim, ROWS, BLOCK_V),
            )
            return
    HINT: tl.constexpr = UNIT if UNIT > 0 else 1
    value_dim = value_dim // HINT * HINT
    token, count, keys, low, chunk = extent(starts_q, seq_lens, sequence, most, left, LEAST)
    if block * ROWS >= count * group:
        return
    here = (keys - low + chunk - 1) // chunk
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < count * group
    column = tl.arange(0, BLOCK_V)
    acc = tl.full((ROWS, BLOCK_V), 0.0, tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    per_head = chunks.to(tl.int64) * rows
    every = sequences * tl.num_programs(1) * per_head
    at = (sequence * tl.num_programs(1) + kv_head) * per_head + row
    peaks = parts + every * value_dim
    for begin in range(0, here, AHEAD):
        for i in tl.static_range(AHEAD):
            real = row < tl.where(begin + i < here, count * group, 0)
            part_peak = tl.load(peaks + at, real, float("-inf"))
            part_total = tl.load(peaks + every + at, real, 0.0)
            where = parts + at[:, None] * value_dim + column[None, :]
            part = tl.load(where, real[:, None] & (column < value_dim)[None, :], 0.0)
            acc, peak, total = folded(acc, peak, total, part, part_peak, part_total, scale)
            at += rows

    k += kv_head * k_head
    if v is not None:
        v += kv_head * v_head
    table += sequence * table_stride
    if REST > 0:
        if q_rest is None:
            q_rest = q + first
    k_factor = None
    if k_scales is not None:
        k_factor = tl.load(k_scales + kv_head * k_scale_stride).to(tl.float32)
    if v_scales is not None:
        v_factor = tl.load(v_scales + kv_head * v_scale_stride).to(tl.float32)
    finish(
        *(out, lse, acc, peak, total, inside, token),
        *(row // group, kv_head * group + row % group, heads),
        sinks,
        *(v_factor, q),
        q_rest,
        k,
        v,
        table,
        k_factor,
        *(keys, count, left, right, (block_size, shift, first, rest, value_dim)),
        *((q_stride, q_head), (rest_stride, rest_head)),
        *((k_page, k_slot, k_column), (v_page, v_slot, v_column)),
        *(sign, (scale, cap, cap_scale)),
        *(CAPPED, PAGES, ROWS, BLOCK_D, REST, BLOCK_V, UNIT),
    )
