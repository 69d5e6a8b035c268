"""Attention of few queries to many keys: programs share the keys of a sequence.

The rows of a sequence are its queries times the query heads that share a head of the keys. Its keys
lie in chunks; how, its own lengths say alone. Sums of a chunk start anew and are folded into those
of all chunks before it, by the same arithmetic in a program that goes over all of them as where
others have stored theirs: so the number of programs leaves no trace in the results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.attention_parts import halved, queries, seen
from hal_triton.kernels.attention_rows import blank, finish
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher

# Chunks of a sequence at most, and up to how many they are as short as may be.
_CHUNKS = tl.constexpr(64)
_SHORT = tl.constexpr(16)
# Chunks are multiples of a number of keys that holds whole tiles; long ones, and where the first
# begins, of this.
_STEP = tl.constexpr(128)


@triton.jit
def extent(starts_q, seq_lens, sequence, most, left, LEAST: tl.constexpr):
    """The first query of a sequence, its queries, its keys, where chunks begin and their size."""
    if starts_q is None:
        token, count = sequence, 1
    else:
        token = tl.load(starts_q + sequence).to(tl.int32)
        count = tl.load(starts_q + sequence + 1).to(tl.int32) - token
    keys = tl.minimum(tl.load(seq_lens + sequence), most).to(tl.int32)
    low = tl.maximum(keys - count - left, 0) // _STEP * _STEP
    chunk = tl.maximum((keys - low + _CHUNKS * _STEP - 1) // (_CHUNKS * _STEP) * _STEP, 2 * LEAST)
    chunk = tl.where(keys - low <= _SHORT * LEAST, LEAST, chunk)
    return token, count, keys, low, chunk


@triton.jit
def folded(acc, peak, total, part, part_peak, part_total, scale):
    """Sums and those of one more chunk.

    No compiler has a choice of what to fuse: fma is spelled, and peaks are scaled after they are
    subtracted.
    """
    top = tl.maximum(peak, part_peak)
    level = tl.where(top == float("-inf"), 0.0, top)
    kept, added = tl.exp2((peak - level) * scale), tl.exp2((part_peak - level) * scale)
    total = tl.fma(total, kept, part_total * added)
    kept, added = tl.expand_dims(kept, -1), tl.expand_dims(added, -1)
    acc = tl.fma(acc, tl.broadcast_to(kept, acc.shape), part * added)
    return acc, top, total


@triton.jit
def keep(parts, every, at, inside, columns, acc, peak, total):
    """Store the sums of a chunk, rows ``at`` of ``every``."""
    peaks = parts + every * columns
    tl.store(peaks + at, peak, inside)
    tl.store(peaks + every + at, total, inside)
    column = tl.arange(0, acc.shape[1])[None, :]
    where = parts + at[:, None] * columns + column
    tl.store(where, acc, inside[:, None] & (column < columns))


@launcher
def attend_parts(
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
    tokens: tl.int32,
    heads: tl.int32,
    slots: tl.int32,
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
    SIGNED: tl.constexpr,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    SEVERAL: tl.constexpr,
    WHOLE: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
    FULL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Results, if WHOLE, or the sums of each chunk; slots programs share those of a sequence.

    parts: [sequences, kv_heads, chunks, rows, value_dim], then the peak of each row of it, then the
    total of each; starts_q and q_rest may be None. WHOLE: a program has all chunks, and results are
    written, with the padding as the sequence behind the last one. SEVERAL: a program may have more
    than one chunk. Without v, values are the first part of keys.
    """
    await_previous(PDL)
    # Heads of the same keys lie side by side in memory, and are read at about the same time.
    kv_heads = heads // group
    kv_head, share = tl.program_id(0) % kv_heads, tl.program_id(0) // kv_heads
    sequence, slot = share // slots, share % slots
    if WHOLE and starts_q is not None:
        if sequence == sequences:
            first_row = tl.load(starts_q + sequence).to(tl.int32) * heads
            program = tl.program_id(1) * kv_heads + kv_head
            blank(
                *(out, lse, first_row, tokens * heads, program),
                *(kv_heads * tl.num_programs(1), value_dim, BLOCK_M, BLOCK_V),
            )
            return
    token, count, keys, low, chunk = extent(starts_q, seq_lens, sequence, most, left, LEAST)
    begin, end, unit = low, keys, 0
    if not WHOLE:
        here = (keys - low + chunk - 1) // chunk
        run = (here + slots - 1) // slots
        unit = slot * run
        begin = low + unit * chunk
        end = tl.minimum(begin + run * chunk, keys)
        if begin >= end:
            return
    limit = tl.minimum(count * group, rows)
    if tl.program_id(1) * BLOCK_M >= limit:
        return
    HINT: tl.constexpr = UNIT if UNIT > 0 else 1
    first = first // HINT * HINT
    value_dim = value_dim // HINT * HINT
    q_stride, q_head = q_stride // HINT * HINT, q_head // HINT * HINT
    rest_stride, rest_head = rest_stride // HINT * HINT, rest_head // HINT * HINT
    k_page, k_slot, k_head = k_page // HINT * HINT, k_slot // HINT * HINT, k_head // HINT * HINT
    k += kv_head * k_head
    if v is not None:
        v_page, v_slot, v_head = v_page // HINT * HINT, v_slot // HINT * HINT, v_head // HINT * HINT
        v += kv_head * v_head
    table += sequence * table_stride
    k_factor = None
    if k_scales is not None:
        k_factor = tl.load(k_scales + kv_head * k_scale_stride).to(tl.float32)
    sizes, shape = (block_size, shift, first, rest, value_dim), (scale, cap, cap_scale)
    of_q, of_rest = (q_stride, q_head), (rest_stride, rest_head)
    of_k, of_v = (k_page, k_slot, k_column), (v_page, v_slot, v_column)

    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < limit
    query, head = row // group, kv_head * group + row % group
    place = (token + query).to(tl.int64)
    tile_q = queries(q, place * q_stride + head * q_head, inside, first, sign, SIGNED, BLOCK_D)
    tile_rest = None
    if REST > 0:
        if q_rest is None:
            q_rest = q + first
        offset = place * rest_stride + head * rest_head
        tile_rest = queries(q_rest, offset, inside, rest, sign, SIGNED, REST)
    factor = k_factor
    # Triton 3.3 has no ``and`` of what types say.
    if q.dtype.element_ty == tl.bfloat16:
        if k.dtype.element_ty.primitive_bitwidth == 8:
            power, factor = halved(tile_q, tile_rest)
            tile_q = (tile_q.to(tl.float32) * power).to(tl.float16)
            if REST > 0:
                tile_rest = (tile_rest.to(tl.float32) * power).to(tl.float16)
            if k_factor is not None:
                factor *= k_factor
    least = tl.maximum(keys - count - left, 0)
    lowest, highest = query + (keys - count) - left, query + (keys - count) + right

    acc = tl.full((BLOCK_M, BLOCK_V), 0.0, tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_M,), 0.0, tl.float32)
    whole, whole_peak, whole_total = acc, peak, total
    per_head = chunks.to(tl.int64) * rows
    every, base = sequences * kv_heads * per_head, (sequence * kv_heads + kv_head) * per_head
    for start in range(begin, end, BLOCK_N):
        acc, peak, total = seen(
            *(acc, peak, total, tile_q),
            tile_rest,
            k,
            v,
            *(table, start, lowest, highest, least, keys),
            factor,
            *(sizes, of_k, of_v, shape),
            *(True, CAPPED, PAGES, SPLIT, BLOCK_N, BLOCK_D, REST, BLOCK_V, UNIT, FULL),
            PDL,  # Devices that have it understand PTX.
        )
        if SEVERAL:
            if start + BLOCK_N >= tl.minimum(low + (unit + 1) * chunk, end):
                if WHOLE:
                    whole, whole_peak, whole_total = folded(
                        whole, whole_peak, whole_total, acc, peak, total, scale
                    )
                else:
                    at = base + unit * rows + row
                    keep(parts, every, at, inside, value_dim, acc, peak, total)
                acc = tl.full((BLOCK_M, BLOCK_V), 0.0, tl.float32)
                peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
                total = tl.full((BLOCK_M,), 0.0, tl.float32)
                unit += 1
    if not WHOLE:
        if not SEVERAL:
            keep(parts, every, base + unit * rows + row, inside, value_dim, acc, peak, total)
    else:
        if not SEVERAL:
            whole, whole_peak, whole_total = folded(
                whole, whole_peak, whole_total, acc, peak, total, scale
            )
        if v_scales is not None:
            v_factor = tl.load(v_scales + kv_head * v_scale_stride).to(tl.float32)
        finish(
            *(out, lse, whole, whole_peak, whole_total, inside, token, query, head, heads),
            sinks,
            *(v_factor, q),
            q_rest,
            k,
            v,
            table,
            k_factor,
            *(keys, count, left, right, sizes, of_q, of_rest, of_k, of_v),
            *(sign, shape, CAPPED, PAGES, BLOCK_M, BLOCK_D, REST, BLOCK_V, UNIT),
        )
