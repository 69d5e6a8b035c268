"""Rows that many programs share: what each finds in a part, for a step that looks at all parts.

A row has this work space, in words of 32 bits, to which ``places_of`` points: a list's keys and
columns, of each part its counts, its masses, its peak, and its draw's score and token, and of the
row the end of what is kept and its mass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.limits import PIVOTS, counts_of, key_of, leading_of
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
    return start, counts, masses, peaks, peaks + parts, peaks + 3 * parts


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


@launcher
def survey(
    work,
    probs,
    top_k,
    top_p,
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
    index_stride: tl.int32,
    LIMITED: tl.constexpr,
    KEEPS_NAN: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """The peak of each part of a row, and, if it is limited, its counts and masses."""
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    source = word_of(indices, row, index_stride, row)
    key, _ = part_of(probs, source, stride, part * BLOCK, columns, KEEPS_NAN, BLOCK, UNIT)
    _, counts, masses, peaks, _, _ = places_of(work, row, space, room, parts)
    peak = tl.max(key, 0)
    tl.store(peaks + part, peak)
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number, top_p, p_stride, p_number
        )
        count, mass = counts_of(key, peak, most, limit)
        slot = part * PIVOTS + tl.arange(0, PIVOTS)
        tl.store(counts + slot, count)
        tl.store(masses + slot, mass.to(tl.int32, bitcast=True))
