"""Sorting routed pairs into blocks of one expert, by counts and comparisons alone."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def _experts_of(topk_ids, pair, pairs, experts):
    """The expert of each pair as int32, -1 where there is none."""
    # Behind the last of 2**31 pairs an index may be negative.
    expert = tl.load(topk_ids + pair, (pair >= 0) & (pair < pairs), -1)
    return tl.where((expert >= 0) & (expert < experts), expert, -1).to(tl.int32)


@triton.jit
def _counts(of, first, EXPERTS: tl.constexpr):
    """How many pairs each of EXPERTS experts has, from the first on."""
    of -= first
    known = (of >= 0) & (of < EXPERTS)
    # Others are counted for the first and taken off: not every Triton has a mask for this.
    others = tl.sum(1 - known.to(tl.int32), 0)
    count = tl.histogram(tl.where(known, of, 0), EXPERTS).to(tl.int32)
    return count - tl.where(tl.arange(0, EXPERTS) == 0, others, 0)


@triton.jit
def _neighbours(topk_ids, of, pair, first, end, experts, PAIRS: tl.constexpr, OTHERS: tl.constexpr):
    """How many pairs from the first to the end are before each of PAIRS and of its expert.

    To which 2**16 is added for each that is behind it.
    """
    found = tl.zeros((PAIRS, OTHERS), tl.int32)
    for start in range(first, end, OTHERS):
        other = start + tl.arange(0, OTHERS)
        same = of[:, None] == _experts_of(topk_ids, other, end, experts)[None, :]
        behind = tl.where(other[None, :] > pair[:, None], 65536, 0)
        found += tl.where(same, tl.where(other[None, :] < pair[:, None], 1, behind), 0)
    return tl.sum(found, 1)


@triton.jit
def _blocks_of(count, block_size):
    return tl.where(count > 0, (count - 1) // block_size + 1, 0)


@triton.jit
def _fill(out, value, part, parts, first, end, BLOCK: tl.constexpr):
    """This part of the places from the first on."""
    first = tl.cast(first, tl.int64) + part * BLOCK
    for start in range(first, end, parts * BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out + place, tl.full((BLOCK,), value, tl.int32), place < end)


@launcher
def align_few(
    sorted_ids,
    owners,
    used,
    topk_ids,
    pairs: tl.int32,
    experts: tl.int32,
    block_size: tl.int32,
    blocks: tl.int64,
    PAIRS: tl.constexpr,
    EXPERTS: tl.constexpr,
    OWN: tl.constexpr,
    FILL: tl.constexpr,
    PDL: tl.constexpr,
):
    """All in one: each program counts all pairs, and places its own and what follows the last."""
    await_previous(PDL)
    part, parts = tl.program_id(0), tl.num_programs(0)
    count = _counts(_experts_of(topk_ids, tl.arange(0, PAIRS), pairs, experts), 0, EXPERTS)
    blocks_of = _blocks_of(count, block_size)
    start = (tl.cumsum(blocks_of, 0) - blocks_of) * block_size
    in_use = tl.sum(blocks_of, 0)

    pair = part * OWN + tl.arange(0, OWN)
    of = _experts_of(topk_ids, pair, pairs, experts)
    found = _neighbours(topk_ids, of, pair, 0, pairs, experts, OWN, 128)
    owned = of[:, None] == tl.arange(0, EXPERTS)[None, :]
    place = tl.sum(tl.where(owned, start[None, :], 0), 1) + (found & 65535)
    tl.store(sorted_ids + place, pair, of >= 0)
    tl.store(owners + place // block_size, of, (of >= 0) & (place % block_size == 0))

    # The last pair of an expert is followed by padding.
    last, next_place = (of >= 0) & (found < 65536), place + 1
    pads = tl.where(last, (block_size - next_place % block_size) % block_size, 0)
    for first in range(0, tl.max(pads, 0), 128):
        pad = first + tl.arange(0, 128)[None, :]
        mask = pad < pads[:, None]
        tl.store(sorted_ids + next_place[:, None] + pad, tl.full(mask.shape, pairs, tl.int32), mask)
    _fill(sorted_ids, pairs, part, parts, in_use * block_size, blocks * block_size, FILL)
    _fill(owners, -1, part, parts, in_use, blocks, FILL)
    if part == 0:
        tl.store(used, in_use * block_size)


@launcher
def count_pairs(
    table,
    sorted_ids,
    owners,
    topk_ids,
    pairs: tl.int32,
    experts: tl.int32,
    chunk: tl.int32,
    places: tl.int64,
    blocks: tl.int64,
    PAIRS: tl.constexpr,
    EXPERTS: tl.constexpr,
    FILL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of each chunk of pairs those of each expert; and all blocks as if there were none."""
    await_previous(PDL)
    part, parts, first = tl.program_id(0), tl.num_programs(0), tl.program_id(1) * EXPERTS
    count = tl.zeros((EXPERTS,), tl.int32)
    for done in range(0, chunk, PAIRS):
        pair = part * chunk + done + tl.arange(0, PAIRS)
        count += _counts(_experts_of(topk_ids, pair, pairs, experts), first, EXPERTS)
    expert = first + tl.arange(0, EXPERTS)
    tl.store(table + part.to(tl.int64) * experts + expert, count, expert < experts)
    part += tl.program_id(1) * parts
    parts *= tl.num_programs(1)
    _fill(sorted_ids, pairs, part, parts, 0, places, FILL)
    _fill(owners, -1, part, parts, 0, blocks, FILL)


@launcher
def place_chunks(
    table,
    used,
    chunks: tl.int32,
    experts: tl.int32,
    block_size: tl.int32,
    CHUNKS: tl.constexpr,
    EXPERTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Make of the counts the places where each chunk's pairs of an expert begin."""
    await_previous(PDL)
    in_use = 0
    for first in range(0, experts, EXPERTS):
        expert = first + tl.arange(0, EXPERTS)[None, :]
        count = tl.zeros((EXPERTS,), tl.int32)
        for done in range(0, chunks, CHUNKS):
            at, mask = _in_table(table, done, chunks, expert, experts, CHUNKS)
            count += tl.sum(tl.load(at, mask, 0), 0)
        blocks_of = _blocks_of(count, block_size)
        place = (in_use + tl.cumsum(blocks_of, 0) - blocks_of) * block_size
        in_use += tl.sum(blocks_of, 0)
        for done in range(0, chunks, CHUNKS):
            at, mask = _in_table(table, done, chunks, expert, experts, CHUNKS)
            some = tl.load(at, mask, 0)
            tl.store(at, place[None, :] + tl.cumsum(some, 0) - some, mask)
            place += tl.sum(some, 0)
    tl.store(used, in_use * block_size)


@triton.jit
def _in_table(table, first, chunks, expert, experts, CHUNKS: tl.constexpr):
    chunk = first + tl.arange(0, CHUNKS)[:, None]
    at = table + chunk.to(tl.int64) * experts + expert
    return at, (chunk < chunks) & (expert < experts)


@launcher
def place_pairs(
    sorted_ids,
    owners,
    table,
    topk_ids,
    pairs: tl.int32,
    experts: tl.int32,
    chunk: tl.int32,
    block_size: tl.int32,
    PAIRS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A chunk, whose row of the table has the place of each expert's next pair."""
    await_previous(PDL)
    part = tl.program_id(0)
    table += part.to(tl.int64) * experts
    for done in range(0, chunk, PAIRS):
        first = part * chunk + done
        pair, end = first + tl.arange(0, PAIRS), tl.minimum(first + PAIRS, pairs)
        of = _experts_of(topk_ids, pair, pairs, experts)
        found = _neighbours(topk_ids, of, pair, first, end, experts, PAIRS, 32)
        place = tl.load(table + of, of >= 0, 0) + (found & 65535)
        tl.store(sorted_ids + place, pair, of >= 0)
        tl.store(owners + place // block_size, of, (of >= 0) & (place % block_size == 0))
        # All have read the places before the last pair of each expert moves them on.
        tl.debug_barrier()
        tl.store(table + of, place + 1, (of >= 0) & (found < 65536))
        tl.debug_barrier()
