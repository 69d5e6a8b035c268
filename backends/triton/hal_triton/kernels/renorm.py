"""Probabilities of what limits leave: of whole rows in a program, or of parts in several steps."""

from __future__ import annotations

import triton.language as tl

from hal_triton.kernels.limits import (
    ALL,
    NAN,
    PIVOTS,
    bracket,
    floor_of,
    key_of,
    leading_of,
    left_of,
    mass_of,
    search,
    within,
)
from hal_triton.kernels.parts import part_of, peak_of, places_of, surveyed
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@launcher
def renorm_rows(
    out,
    probs,
    top_k,
    top_p,
    min_p,
    rows: tl.int32,
    columns: tl.int32,
    stride: tl.int64,
    k_stride: tl.int32,
    k_high: tl.int32,
    k_number: tl.int32,
    p_stride: tl.int32,
    p_number: tl.int32,
    m_stride: tl.int32,
    m_number: tl.int32,
    LIMITED: tl.constexpr,
    MIN_P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (column < columns)
    at = row.to(tl.int64)[:, None]
    value = tl.load(probs + at * (stride // UNIT * UNIT) + column, mask, 0.0)
    key = key_of(value, True)
    bad = tl.max(key, 1) == NAN
    key = tl.where(mask & (key != NAN), key, -1)
    row = tl.minimum(row, rows - 1)
    kept = left_of(
        key, column, row, columns, top_k, k_stride, k_high, k_number,
        top_p, p_stride, p_number, min_p, m_stride, m_number, LIMITED, MIN_P,
    )  # fmt: skip
    p = mass_of(key, kept)
    total = tl.sum(p, 1)
    total = tl.where(bad, float("nan"), tl.where(total == 0, 1.0, total))
    tl.store(out + at * columns + column, (p / total[:, None]).to(out.dtype.element_ty), mask)


@launcher
def settle(
    work,
    probs,
    top_k,
    top_p,
    columns: tl.int32,
    stride: tl.int64,
    space: tl.int64,
    room: tl.int32,
    k_stride: tl.int32,
    k_high: tl.int32,
    k_number: tl.int32,
    p_stride: tl.int32,
    p_number: tl.int32,
    parts: tl.int32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Where what is kept of a row ends, and its mass."""
    await_previous(PDL)
    row = tl.program_id(0)
    start, counts, masses, peaks, _, ends = places_of(work, row, space, room, parts)
    most, limit = leading_of(
        row, columns, top_k, k_stride, k_high, k_number, top_p, p_stride, p_number
    )
    n, m = surveyed(counts, masses, parts, PARTS)
    peak = peak_of(peaks, parts, PARTS)
    index, low, high, left, count, mass = bracket(n, m, peak, most, limit)
    last, end, total = row * 0, row * 0 + ALL, mass
    if peak == NAN:
        total = mass * 0 + float("nan")
    else:
        if index < PIVOTS:
            if left <= room:
                last, end, total = search(
                    start, start + room, left, low, high, left, count, mass, most, limit, BLOCK
                )
            else:
                last, end, total = search(
                    probs + row.to(tl.int64) * stride, None, columns,
                    low, high, left, count, mass, most, limit, BLOCK,
                )  # fmt: skip
    tl.store(ends, last)
    tl.store(ends + 1, end)
    tl.store(ends + 2, total.to(tl.int32, bitcast=True))


@launcher
def weigh(
    work,
    probs,
    min_p,
    columns: tl.int32,
    stride: tl.int64,
    space: tl.int64,
    room: tl.int32,
    m_stride: tl.int32,
    m_number: tl.int32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """The mass that min_p leaves of a part of a row."""
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    _, _, masses, peaks, _, _ = places_of(work, row, space, room, parts)
    floor = floor_of(row, peak_of(peaks, parts, PARTS), min_p, m_stride, m_number)
    key, _ = part_of(probs, row, stride, part * BLOCK, columns, False, BLOCK, UNIT)
    mass = tl.sum(mass_of(key, (key >= floor) & (key >= 0)), 0)
    tl.store(masses + part, mass.to(tl.int32, bitcast=True))


@launcher
def renorm_parts(
    out,
    work,
    probs,
    min_p,
    columns: tl.int32,
    stride: tl.int64,
    space: tl.int64,
    room: tl.int32,
    m_stride: tl.int32,
    m_number: tl.int32,
    MIN_P: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """A part of a row over the mass of what is kept of it all."""
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    _, _, masses, peaks, _, ends = places_of(work, row, space, room, parts)
    if MIN_P:
        peak = peak_of(peaks, parts, PARTS)
        last, end = floor_of(row, peak, min_p, m_stride, m_number), row * 0 + ALL
        each = tl.load(masses + tl.arange(0, PARTS), tl.arange(0, PARTS) < parts, 0)
        total = tl.sum(each.to(tl.float32, bitcast=True), 0)
        total = tl.where(peak == NAN, float("nan"), total)
    else:
        last, end = tl.load(ends), tl.load(ends + 1)
        total = tl.load(ends + 2).to(tl.float32, bitcast=True)
    total = tl.where(total == 0, 1.0, total)
    key, column = part_of(probs, row, stride, part * BLOCK, columns, False, BLOCK, UNIT)
    p = mass_of(key, within(key, column, last, end))
    inside = column < columns // UNIT * UNIT
    at = row.to(tl.int64) * (columns // UNIT * UNIT) + column
    tl.store(out + at, (p / total).to(out.dtype.element_ty), inside)
