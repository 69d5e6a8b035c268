"""Attention of ragged queries: a program is a tile of a sequence's queries, of one head or some."""

from __future__ import annotations

import triton.language as tl

from hal_triton.kernels.attention_parts import queries, seen
from hal_triton.kernels.attention_rows import blank, finish
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@launcher
def attend(
    out,
    lse,
    q,
    k,
    v,
    table,
    starts_q,
    starts_k,
    sinks,
    k_scales,
    v_scales,
    sequences: tl.int32,
    tiles: tl.int32,
    tokens: tl.int32,
    heads: tl.int32,
    pack: tl.int32,
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
    SIGNED: tl.constexpr,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
    FULL: tl.constexpr,
    PDL: tl.constexpr,
):
    """starts_k: of each sequence in k and v; the keys of each where these are in pages.

    Rows are queries times ``pack`` heads, one of which or all that share keys. The sequence behind
    the last one is the padding. Later tiles see more keys and go first.
    """
    await_previous(PDL)
    sequence = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles
    token = tl.load(starts_q + sequence).to(tl.int32)
    if sequence == sequences:
        others = tl.num_programs(1)
        program = tile * others + tl.program_id(1)
        blank(
            *(out, lse, token * heads, tokens * heads, program, tiles * others),
            *(value_dim, BLOCK_M, BLOCK_V),
        )
        return
    count = tl.load(starts_q + sequence + 1).to(tl.int32) - token
    begin = tile * BLOCK_M
    if begin >= count * pack:
        return
    HINT: tl.constexpr = UNIT if UNIT > 0 else 1
    first = first // HINT * HINT
    value_dim = value_dim // HINT * HINT
    q_stride, q_head = q_stride // HINT * HINT, q_head // HINT * HINT
    k_page, k_slot, k_head = k_page // HINT * HINT, k_slot // HINT * HINT, k_head // HINT * HINT
    v_page, v_slot, v_head = v_page // HINT * HINT, v_slot // HINT * HINT, v_head // HINT * HINT
    kv_head = tl.program_id(1) * pack // group
    k += kv_head * k_head
    v += kv_head * v_head
    if PAGES == 0:
        start = tl.load(starts_k + sequence).to(tl.int64)
        keys = (tl.load(starts_k + sequence + 1) - start).to(tl.int32)
        k += start * k_slot
        v += start * v_slot
    else:
        keys = tl.minimum(tl.load(starts_k + sequence), most).to(tl.int32)
        table += sequence * table_stride
    k_factor = None
    if k_scales is not None:
        k_factor = tl.load(k_scales + kv_head * k_scale_stride).to(tl.float32)
    if v_scales is not None:
        v_factor = tl.load(v_scales + kv_head * v_scale_stride).to(tl.float32)
    sizes, shape = (block_size, shift, first, rest, value_dim), (scale, cap, cap_scale)
    of_q, of_rest = (q_stride, q_head), (rest_stride, rest_head)
    of_k, of_v = (k_page, k_slot, k_column), (v_page, v_slot, v_column)

    row = begin + tl.arange(0, BLOCK_M)
    if PACKED:
        query, head = row // pack, tl.program_id(1) * pack + row % pack
    else:
        query, head = row, tl.full((BLOCK_M,), 0, tl.int32) + tl.program_id(1)
    inside = query < count
    offset = (token + query).to(tl.int64) * q_stride + head * q_head
    tile_q = queries(q, offset, inside, first, sign, SIGNED, BLOCK_D)
    tile_rest = None
    if REST > 0:
        tile_rest = queries(q + first, offset, inside, rest, sign, SIGNED, REST)

    behind = keys - count
    lowest, highest = query + behind - left, query + behind + right
    least = tl.maximum(begin // pack + behind - left, 0)
    last = (tl.minimum(begin + BLOCK_M, count * pack) - 1) // pack
    most_ = tl.maximum(tl.minimum(last + behind + right + 1, keys), 0)
    low = least // BLOCK_N
    high = tl.maximum((most_ + BLOCK_N - 1) // BLOCK_N, low)
    # Tiles of which all rows see all keys, in the middle.
    open_low = (tl.maximum(last + behind - left, 0) + BLOCK_N - 1) // BLOCK_N
    open_low = tl.minimum(tl.maximum(open_low, low), high)
    open_high = tl.maximum(tl.minimum(begin // pack + behind + right + 1, keys), 0) // BLOCK_N
    open_high = tl.minimum(tl.maximum(open_high, open_low), high)

    acc = tl.full((BLOCK_M, BLOCK_V), 0.0, tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_M,), 0.0, tl.float32)
    for i in range(open_low, open_high):
        acc, peak, total = seen(
            *(acc, peak, total, tile_q),
            tile_rest,
            *(k, v),
            table,
            *(i * BLOCK_N, lowest, highest, least, keys),
            k_factor,
            *(sizes, of_k, of_v, shape),
            *(False, CAPPED, PAGES, SPLIT, BLOCK_N, BLOCK_D, REST, BLOCK_V, UNIT, FULL),
        )
    for i in range((open_low - low) + (high - open_high)):
        at = low + i
        if at >= open_low:
            at += open_high - open_low
        acc, peak, total = seen(
            *(acc, peak, total, tile_q),
            tile_rest,
            *(k, v),
            table,
            *(at * BLOCK_N, lowest, highest, least, keys),
            k_factor,
            *(sizes, of_k, of_v, shape),
            *(True, CAPPED, PAGES, SPLIT, BLOCK_N, BLOCK_D, REST, BLOCK_V, UNIT, FULL),
        )
    finish(
        *(out, lse, acc, peak, total, inside, token, query, head, heads),
        sinks,
        *(v_factor, q, q + first, k, v),
        table,
        k_factor,
        *(keys, count, left, right, sizes, of_q, of_rest, of_k, of_v),
        *(sign, shape, CAPPED, PAGES, BLOCK_M, BLOCK_D, REST, BLOCK_V, UNIT),
    )
