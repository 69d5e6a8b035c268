"""Rows that many programs share: what each finds in a part, for a step that looks at all parts.

A row has this work space, in words of 32 bits, to which ``places_of`` points: a list's keys and
columns, of each part its counts, its masses, its peak, its draw's score and token, and its mass
before the row's draw, and of the row the end of what is kept and its mass, or the row's draw and
whether it is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.limits import (
    ALL,
    PIVOTS,
    counts_of,
    floor_of,
    key_of,
    leading_of,
    mass_of,
    within,
)
from hal_triton.kernels.parameters import word_of
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def places_of(work, row, space, room, parts):
    """Where in the work space of a row its list, its counts, masses, peaks, draws and end are."""
    start = work + row.to(tl.int64) * (space // 16 * 16)
    counts = start + 2 * (room // 16 * 16)
    masses = counts + parts * PIVOTS
    peaks = masses + parts * PIVOTS
    return start, counts, masses, peaks, peaks + parts, peaks + 4 * parts


@triton.jit
def part_of(
    probs, source, stride, first, columns,
    KEEPS_NAN: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Keys of a row from a column on, below 0 past the last, and their columns."""
    column = first + tl.arange(0, BLOCK)
    inside = column < columns // UNIT * UNIT
    value = tl.load(probs + source.to(tl.int64) * (stride // UNIT * UNIT) + column, inside, 0.0)
    return tl.where(inside, key_of(value, KEEPS_NAN), -1), column


@triton.jit
def surveyed(counts, masses, parts, PARTS: tl.constexpr):
    """The counts and masses of all parts, [PARTS, PIVOTS]."""
    part = tl.arange(0, PARTS)[:, None]
    place = part * PIVOTS + tl.arange(0, PIVOTS)[None, :]
    count = tl.load(counts + place, part < parts, 0)
    return count, tl.load(masses + place, part < parts, 0).to(tl.float32, bitcast=True)


@triton.jit
def peak_of(peaks, parts, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    return tl.max(tl.load(peaks + part, part < parts, 0), 0)


@triton.jit
def best_of(scores, tokens):
    """The token of the best score, the first of several."""
    return tl.min(tl.where(scores == tl.max(scores, 0), tokens, ALL), 0)


@triton.jit
def drawn(draws, parts, PARTS: tl.constexpr):
    """The best of the draws of all parts; 0 if there is none, as the token of a score of 0 is."""
    part = tl.arange(0, PARTS)
    scores = tl.load(draws + part, part < parts, 0)
    return best_of(scores, tl.load(draws + parts + part, part < parts, 0))


@launcher
def look(
    work,
    probs,
    indices,
    columns: tl.int32,
    stride: tl.int64,
    space: tl.int64,
    room: tl.int32,
    index_stride: tl.int32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """The peak of each part of a row, and the mass of its tokens that precede the row's draw."""
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    source = word_of(indices, row, index_stride, row).to(tl.int64)
    key, column = part_of(probs, source, stride, part * BLOCK, columns, False, BLOCK, UNIT)
    _, _, _, peaks, draws, _ = places_of(work, row, space, room, parts)
    token = drawn(draws, parts, PARTS)
    at = key_of(tl.load(probs + source * stride + token), False)
    mass = tl.sum(mass_of(key, within(key, column, at, token - 1)), 0)
    tl.store(peaks + part, tl.max(key, 0))
    tl.store(draws + 2 * parts + part, mass.to(tl.int32, bitcast=True))


@triton.jit
def is_kept(at, row, draws, peaks, parts, limit, min_p, m_stride, m_number, PARTS: tl.constexpr):
    """Whether top_p and min_p leave a row's draw, of this key, after the look at it."""
    part = tl.arange(0, PARTS)
    before = tl.load(draws + 2 * parts + part, part < parts, 0)
    mass = tl.sum(before.to(tl.float32, bitcast=True), 0)
    floor = floor_of(row, peak_of(peaks, parts, PARTS), min_p, m_stride, m_number)
    # The first token is kept whatever the limit; what is before another has a mass.
    return ((mass < limit) | (mass == 0)) & (at >= floor)


@launcher
def survey(
    work,
    probs,
    top_k,
    top_p,
    min_p,
    indices,
    columns: tl.int32,
    stride: tl.int64,
    space: tl.int64,
    room: tl.int32,
    k_stride: tl.int32,
    k_high: tl.int32,
    k_number: tl.int32,
    p_stride: tl.int32,
    p_number: tl.int32,
    m_stride: tl.int32,
    m_number: tl.int32,
    index_stride: tl.int32,
    LIMITED: tl.constexpr,
    DRAWN: tl.constexpr,
    KEEPS_NAN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """The peak of each part of a row, and, if it is limited, its counts and masses.

    Of a row that is DRAWN and looked at, it is whether the draw is kept, and counts only if not.
    """
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    source = word_of(indices, row, index_stride, row)
    _, counts, masses, peaks, draws, ends = places_of(work, row, space, room, parts)
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number, top_p, p_stride, p_number
        )
    if DRAWN:
        token = drawn(draws, parts, PARTS)
        at = key_of(tl.load(probs + source.to(tl.int64) * stride + token), False)
        kept = is_kept(at, row, draws, peaks, parts, limit, min_p, m_stride, m_number, PARTS)
        if part == 0:
            tl.store(ends, token)
            tl.store(ends + 1, kept.to(tl.int32))
        if kept:
            return
    key, _ = part_of(probs, source, stride, part * BLOCK, columns, KEEPS_NAN, BLOCK, UNIT)
    peak = tl.max(key, 0)
    if not DRAWN:
        tl.store(peaks + part, peak)
    if LIMITED:
        count, mass = counts_of(key, peak, most, limit)
        slot = part * PIVOTS + tl.arange(0, PIVOTS)
        tl.store(counts + slot, count)
        tl.store(masses + slot, mass.to(tl.int32, bitcast=True))
