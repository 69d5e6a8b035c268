"""Limits and draws: of rows that a program holds, or in steps of rows that many programs share.

Where a row is long its parts first count what lies above a few pivots, then list the tokens above
the pivot that its limits end at; in the list, or if it has no room for them in the row itself, a
program finds the end. A row has this work space, in words of 32 bits, from which ``_places`` leads:
the list's keys and columns; of each part its counts, its masses, its peak, and its draw's score and
token; and of the row the end of what is kept and its mass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.limits import (
    ALL,
    NAN,
    PIVOTS,
    bracket,
    counts_of,
    cut,
    floor_of,
    key_of,
    keys_at,
    leading_of,
    mass_of,
    search,
    within,
)
from hal_triton.kernels.noise import NEVER, exponential, score
from hal_triton.kernels.parameters import word_of
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def _leading_or_floor(
    key, column, row, columns, top_k, k_stride, k_high, k_number,
    top_p, p_stride, p_number, min_p, m_stride, m_number,
    LIMITED: tl.constexpr, MIN_P: tl.constexpr,
):  # fmt: skip
    """Which tokens of whole rows the limits leave."""
    kept = key >= 0
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number,
            top_p, p_stride, p_number,
        )  # fmt: skip
        last, end = cut(key, column, most, limit)
        kept &= within(key, column, last[:, None], end[:, None])
    if MIN_P:
        kept &= key >= floor_of(row, tl.max(key, 1), min_p, m_stride, m_number)[:, None]
    return kept


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
    kept = _leading_or_floor(
        key, column, row, columns, top_k, k_stride, k_high, k_number,
        top_p, p_stride, p_number, min_p, m_stride, m_number, LIMITED, MIN_P,
    )  # fmt: skip
    p = mass_of(key, kept)
    total = tl.sum(p, 1)
    total = tl.where(bad, float("nan"), tl.where(total == 0, 1.0, total))
    tl.store(out + at * columns + column, (p / total[:, None]).to(out.dtype.element_ty), mask)


@launcher
def sample_rows(
    out,
    probs,
    top_k,
    top_p,
    min_p,
    seed,
    offset,
    indices,
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
    seed_stride: tl.int32,
    seed_number: tl.int64,
    offset_stride: tl.int32,
    offset_number: tl.int64,
    index_stride: tl.int32,
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
    valid = row < rows
    row = tl.minimum(row, rows - 1)
    column = tl.arange(0, BLOCK)[None, :]
    source = word_of(indices, row, index_stride, row).to(tl.int64)[:, None]
    value = tl.load(probs + source * (stride // UNIT * UNIT) + column, column < columns, 0.0)
    key = tl.where(column < columns, key_of(value, False), -1)
    kept = _leading_or_floor(
        key, column, row, columns, top_k, k_stride, k_high, k_number,
        top_p, p_stride, p_number, min_p, m_stride, m_number, LIMITED, MIN_P,
    )  # fmt: skip
    noise = exponential(
        column, row[:, None], seed, seed_stride, seed_number, offset, offset_stride, offset_number
    )
    scores = tl.where(kept & (key > 0), score(key, noise), NEVER)
    best = tl.max(scores, 1)
    token = tl.min(tl.where(scores == best[:, None], column, ALL), 1)
    tl.store(out + row, tl.where(best == NEVER, 0, token), valid)


@triton.jit
def _places(work, row, space, room, parts):
    """Where in the work space of a row its list, its counts, masses, peaks, draws and end are."""
    start = work + row.to(tl.int64) * (space // 16 * 16)
    counts = start + 2 * (room // 16 * 16)
    masses = counts + parts * PIVOTS
    peaks = masses + parts * PIVOTS
    return start, counts, masses, peaks, peaks + parts, peaks + 3 * parts


@triton.jit
def _part(probs, source, stride, first, columns, KEEPS_NAN: tl.constexpr, BLOCK: tl.constexpr,
          UNIT: tl.constexpr):  # fmt: skip
    """Keys of a row from a column on, below 0 past the last, and their columns."""
    column = first + tl.arange(0, BLOCK)
    inside = column < columns // UNIT * UNIT
    value = tl.load(probs + source.to(tl.int64) * (stride // UNIT * UNIT) + column, inside, 0.0)
    return tl.where(inside, key_of(value, KEEPS_NAN), -1), column


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
    key, _ = _part(probs, source, stride, part * BLOCK, columns, KEEPS_NAN, BLOCK, UNIT)
    _, counts, masses, peaks, _, _ = _places(work, row, space, room, parts)
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


@triton.jit
def _surveyed(counts, masses, parts, PARTS: tl.constexpr):
    """The counts and masses of all parts, [PARTS, PIVOTS]."""
    part = tl.arange(0, PARTS)[:, None]
    place = part * PIVOTS + tl.arange(0, PIVOTS)[None, :]
    count = tl.load(counts + place, part < parts, 0)
    return count, tl.load(masses + place, part < parts, 0).to(tl.float32, bitcast=True)


@triton.jit
def _peak(peaks, parts, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    return tl.max(tl.load(peaks + part, part < parts, 0), 0)


@launcher
def collect(
    work,
    probs,
    top_k,
    top_p,
    min_p,
    seed,
    offset,
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
    seed_stride: tl.int32,
    seed_number: tl.int64,
    offset_stride: tl.int32,
    offset_number: tl.int64,
    index_stride: tl.int32,
    LIMITED: tl.constexpr,
    MIN_P: tl.constexpr,
    DRAWS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """List a part's tokens that the limits may leave; with DRAWS, draw from it if they leave all.

    A part of TILE columns is drawn from in pieces of BLOCK.
    """
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    source = word_of(indices, row, index_stride, row)
    start, counts, masses, peaks, draws, _ = _places(work, row, space, room, parts)
    whole = row >= 0
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number,
            top_p, p_stride, p_number,
        )  # fmt: skip
        count, mass = _surveyed(counts, masses, parts, PARTS)
        peak = _peak(peaks, parts, PARTS)
        index, low, _, left, _, _ = bracket(count, mass, peak, most, limit)
        whole = index == PIVOTS
        of = tl.sum(tl.where(tl.arange(0, PIVOTS)[None, :] == index, count, 0), 1)
        mine = tl.sum(tl.where(tl.arange(0, PARTS) == part, of, 0), 0)
        if (index < PIVOTS) & (left <= room) & (mine > 0):
            key, column = _part(probs, source, stride, part * TILE, columns, False, TILE, UNIT)
            listed = (key >= low) & (key >= 0)
            place = tl.sum(tl.where(tl.arange(0, PARTS) < part, of, 0), 0)
            place += tl.cumsum(listed.to(tl.int32), 0) - 1
            tl.store(start + place, key, listed)
            tl.store(start + room + place, column, listed)
    if DRAWS:  # Nothing is compiled without it.
        if whole:
            floor = row * 0 + 1
            if MIN_P:
                peak = _peak(peaks, parts, PARTS)
                floor = tl.maximum(floor_of(row, peak, min_p, m_stride, m_number), 1)
            best = tl.full((BLOCK,), NEVER, tl.int32)
            token = tl.zeros((BLOCK,), tl.int32)
            for piece in tl.static_range(TILE // BLOCK):
                first = part * TILE + piece * BLOCK
                key, column = _part(probs, source, stride, first, columns, False, BLOCK, UNIT)
                # With a floor few pieces have any.
                if TILE == BLOCK or tl.max(key, 0) >= floor:
                    best, token = _better(
                        best, token, key >= floor, key, column, row, seed, seed_stride, seed_number,
                        offset, offset_stride, offset_number,
                    )  # fmt: skip
            most_scored = tl.max(best, 0)
            tl.store(draws + part, most_scored)
            first_token = tl.min(tl.where(best == most_scored, token, ALL), 0)
            tl.store(draws + parts + part, first_token)


@launcher
def choose(
    out,
    work,
    probs,
    top_k,
    top_p,
    min_p,
    seed,
    offset,
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
    seed_stride: tl.int32,
    seed_number: tl.int64,
    offset_stride: tl.int32,
    offset_number: tl.int64,
    index_stride: tl.int32,
    parts: tl.int32,
    LIMITED: tl.constexpr,
    MIN_P: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The token of a row: the best of its parts' draws, or drawn from what limits leave."""
    await_previous(PDL)
    row = tl.program_id(0)
    start, counts, masses, peaks, draws, _ = _places(work, row, space, room, parts)
    part = tl.arange(0, PARTS)
    whole = row >= 0
    token = row * 0
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number,
            top_p, p_stride, p_number,
        )  # fmt: skip
        n, m = _surveyed(counts, masses, parts, PARTS)
        peak = _peak(peaks, parts, PARTS)
        index, low, high, left, count, mass = bracket(n, m, peak, most, limit)
        whole = index == PIVOTS
        if index < PIVOTS:
            floor = row * 0 + 1
            if MIN_P:
                floor = tl.maximum(floor_of(row, peak, min_p, m_stride, m_number), 1)
            if left <= room:
                token = _drawn(
                    start, start + room, left, low, high, left, count, mass, most, limit, floor,
                    row, seed, seed_stride, seed_number, offset, offset_stride, offset_number,
                    BLOCK,
                )  # fmt: skip
            else:
                source = word_of(indices, row, index_stride, row).to(tl.int64)
                token = _drawn(
                    probs + source * stride, None, columns, low, high, left, count, mass, most,
                    limit, floor, row, seed, seed_stride, seed_number,
                    offset, offset_stride, offset_number, BLOCK,
                )  # fmt: skip
    if whole:
        scores = tl.load(draws + part, part < parts, NEVER)
        tokens = tl.load(draws + parts + part, part < parts, 0)
        token = _best(scores, tokens)
    tl.store(out + row, token)


@triton.jit
def _better(
    best, token, kept, key, column, row, seed, seed_stride, seed_number,
    offset, offset_stride, offset_number,
):  # fmt: skip
    """The best scores so far and their tokens, with those of more tokens."""
    noise = exponential(
        column, row, seed, seed_stride, seed_number, offset, offset_stride, offset_number
    )
    scores = tl.where(kept, score(key, noise), NEVER)
    # An equal score of a later token is not better.
    return tl.maximum(scores, best), tl.where(scores > best, column, token)


@triton.jit
def _best(scores, tokens):
    best = tl.max(scores, 0)
    return tl.where(best == NEVER, 0, tl.min(tl.where(scores == best, tokens, ALL), 0))


@triton.jit
def _drawn(
    source, columns, size, low, high, left, count, mass, most, limit, floor, row,
    seed, seed_stride, seed_number, offset, offset_stride, offset_number, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token of one row within limits, as ``search`` takes it, not below a floor."""
    last, end, _ = search(source, columns, size, low, high, left, count, mass, most, limit, BLOCK)
    floor = tl.maximum(floor, last)
    best = tl.full((BLOCK,), NEVER, tl.int32)
    token = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, size, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = keys_at(source, place, size)
        column = place
        if columns is not None:
            column = tl.load(columns + place, place < size, 0)
        kept = (key >= floor) & within(key, column, last, end)
        if tl.max(kept.to(tl.int32), 0) > 0:
            best, token = _better(
                best, token, kept, key, column, row, seed, seed_stride, seed_number,
                offset, offset_stride, offset_number,
            )  # fmt: skip
    return _best(best, token)


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
    start, counts, masses, peaks, _, ends = _places(work, row, space, room, parts)
    most, limit = leading_of(
        row, columns, top_k, k_stride, k_high, k_number, top_p, p_stride, p_number
    )
    n, m = _surveyed(counts, masses, parts, PARTS)
    peak = _peak(peaks, parts, PARTS)
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
    _, _, masses, peaks, _, _ = _places(work, row, space, room, parts)
    floor = floor_of(row, _peak(peaks, parts, PARTS), min_p, m_stride, m_number)
    key, _ = _part(probs, row, stride, part * BLOCK, columns, False, BLOCK, UNIT)
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
    _, _, masses, peaks, _, ends = _places(work, row, space, room, parts)
    if MIN_P:
        peak = _peak(peaks, parts, PARTS)
        last, end = floor_of(row, peak, min_p, m_stride, m_number), row * 0 + ALL
        each = tl.load(masses + tl.arange(0, PARTS), tl.arange(0, PARTS) < parts, 0)
        total = tl.sum(each.to(tl.float32, bitcast=True), 0)
        total = tl.where(peak == NAN, float("nan"), total)
    else:
        last, end = tl.load(ends), tl.load(ends + 1)
        total = tl.load(ends + 2).to(tl.float32, bitcast=True)
    total = tl.where(total == 0, 1.0, total)
    key, column = _part(probs, row, stride, part * BLOCK, columns, False, BLOCK, UNIT)
    p = mass_of(key, within(key, column, last, end))
    inside = column < columns // UNIT * UNIT
    at = row.to(tl.int64) * (columns // UNIT * UNIT) + column
    tl.store(out + at, (p / total).to(out.dtype.element_ty), inside)
