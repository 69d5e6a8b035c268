"""Draws: from rows that a program holds, or in steps from parts of rows.

Of a long row with limits, after the parts' counts, all tokens are listed above the pivot that the
limits end at. From the list, or if it has no room for them from the row itself, a program draws. A
row that the limits leave whole is drawn from in parts.

Where only a mass limits, a row is drawn from as if it were whole first. If that token is one that
is kept, it is the best of those, and nothing is searched: with a top_p of 0.9 it is one in nine of
ten draws.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.limits import (
    ALL,
    PIVOTS,
    bracket,
    floor_of,
    key_of,
    keys_at,
    leading_of,
    left_of,
    mass_of,
    passes,
    within,
)
from hal_triton.kernels.noise import NEAR, score, stream_of, word_of_each, words_of_fours
from hal_triton.kernels.parameters import word_of
from hal_triton.kernels.parts import (
    best_of,
    drawn,
    part_of,
    peak_of,
    places_of,
    surveyed,
)
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


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
    kept = left_of(
        key, column, row, columns, top_k, k_stride, k_high, k_number,
        top_p, p_stride, p_number, min_p, m_stride, m_number, LIMITED, MIN_P,
    )  # fmt: skip
    c0, c1, k0, k1 = stream_of(
        row[:, None], seed, seed_stride, seed_number, offset, offset_stride, offset_number
    )
    word = words_of_fours(tl.arange(0, BLOCK // 4)[None, :], c0, c1, k0, k1)
    scores = score(mass_of(key, kept), word, True)
    # Without any token to draw it is the first of those that score 0.
    token = tl.min(tl.where(scores == tl.max(scores, 1)[:, None], column, ALL), 1)
    tl.store(out + row, token, valid)


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
    DRAWN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """List a part's tokens that the limits may leave; with DRAWS, draw from it if they leave all.

    A part of TILE columns is drawn from in pieces of BLOCK. Of a row that is DRAWN already nothing
    is needed, if that is kept.
    """
    await_previous(PDL)
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    source = word_of(indices, row, index_stride, row)
    start, counts, masses, peaks, draws, ends = places_of(work, row, space, room, parts)
    if DRAWN:
        if tl.load(ends + 1) != 0:
            return
    whole = row >= 0
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number,
            top_p, p_stride, p_number,
        )  # fmt: skip
        count, mass = surveyed(counts, masses, parts, PARTS)
        peak = peak_of(peaks, parts, PARTS)
        index, low, _, left, _, _ = bracket(count, mass, peak, most, limit)
        whole = index == PIVOTS
        of = tl.sum(tl.where(tl.arange(0, PIVOTS)[None, :] == index, count, 0), 1)
        mine = tl.sum(tl.where(tl.arange(0, PARTS) == part, of, 0), 0)
        if (index < PIVOTS) & (left <= room) & (mine > 0):
            key, column = part_of(probs, source, stride, part * TILE, columns, False, TILE, UNIT)
            listed = (key >= low) & (key >= 0)
            place = tl.sum(tl.where(tl.arange(0, PARTS) < part, of, 0), 0)
            place += tl.cumsum(listed.to(tl.int32), 0) - 1
            tl.store(start + place, key, listed)
            tl.store(start + room + place, column, listed)
    if DRAWS:  # Nothing is compiled without it.
        if whole:
            c0, c1, k0, k1 = stream_of(
                row, seed, seed_stride, seed_number, offset, offset_stride, offset_number
            )
            line, first = probs + source.to(tl.int64) * (stride // UNIT * UNIT), part * TILE
            best, token = row * 0.0, row * 0
            if MIN_P:
                peak = peak_of(peaks, parts, PARTS)
                floor = tl.maximum(floor_of(row, peak, min_p, m_stride, m_number), 1)
                if tl.load(peaks + part) >= floor:  # Few parts have any.
                    best, token = _best_of_part(
                        line, first, columns, floor, c0, c1, k0, k1,
                        True, TILE, BLOCK, UNIT,
                    )  # fmt: skip
            else:
                best, token = _best_of_part(
                    line, first, columns, 1, c0, c1, k0, k1, False, TILE, BLOCK, UNIT
                )
                p = tl.load(line + token).to(tl.float32)
                # Else no score of another, be it too much, is above this one, which is right.
                if best * NEAR < p:
                    best, token = _best_of_part(
                        line, first, columns, 1, c0, c1, k0, k1, True, TILE, BLOCK, UNIT
                    )
            tl.store(draws + part, best.to(tl.int32, bitcast=True))
            tl.store(draws + parts + part, token)


@triton.jit
def _best_of_part(
    line, start, columns, floor, c0, c1, k0, k1,
    EXACT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The best score of a part of a row and its token; 0 and 0 without any to draw."""
    best, token = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
    if EXACT:  # It is rare, so that it should take little room.
        for first in range(start, start + TILE, BLOCK):
            best, token = _better_of(
                best, token, line, first, columns, floor, c0, c1, k0, k1, True, BLOCK, UNIT
            )
    else:
        for piece in tl.static_range(TILE // BLOCK):
            first = start + piece * BLOCK
            best, token = _better_of(
                best, token, line, first, columns, floor, c0, c1, k0, k1, False, BLOCK, UNIT
            )
    return tl.max(best, 0), best_of(best, token)


@triton.jit
def _better_of(
    best, token, line, first, columns, floor, c0, c1, k0, k1,
    EXACT: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The best scores so far and their tokens, with those of the tokens from a first on."""
    column = first + tl.arange(0, BLOCK)
    p = tl.load(line + column, column < columns // UNIT * UNIT, 0.0).to(tl.float32)
    if EXACT:
        p = mass_of(key_of(p, False), key_of(p, False) >= floor)
    word = words_of_fours(first // 4 + tl.arange(0, BLOCK // 4), c0, c1, k0, k1)
    return _better(best, token, score(p, word, EXACT), column)


@triton.jit
def _better(best, token, scores, column):
    """The best scores so far and their tokens, with those of more tokens."""
    # An equal score of a later token is not better, and that of NaN never is.
    better = scores > best
    return tl.where(better, scores, best), tl.where(better, column, token)


@triton.jit
def _drawn(
    source, columns, size, line, last, end, most, limit, floor, row,
    seed, seed_stride, seed_number, offset, offset_stride, offset_number, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token of one row, up to a key and a column, from all its keys or a list of those wanted.

    One is drawn as if it had no limits, and what precedes it is counted. If that is too much, none
    that it precedes is kept either, and another is drawn of those before it. Each time a part of
    the mass is left out, so that it is over after a few, where a search for the end takes many.
    """
    c0, c1, k0, k1 = stream_of(
        row, seed, seed_stride, seed_number, offset, offset_stride, offset_number
    )
    some = tl.arange(0, BLOCK)
    token, going = row * 0, row >= 0
    while going:
        best, tokens = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
        for first in range(0, size, BLOCK):
            key, column = _listed(source, columns, first + some, size)
            left = (key >= floor) & within(key, column, last, end)
            if columns is None:
                if tl.max(left.to(tl.int32), 0) > 0:
                    word = words_of_fours(first // 4 + tl.arange(0, BLOCK // 4), c0, c1, k0, k1)
                    scores = score(mass_of(key, left), word, True)
                    best, tokens = _better(best, tokens, scores, column)
            else:
                word = word_of_each(column, c0, c1, k0, k1)
                scores = score(mass_of(key, left), word, True)
                best, tokens = _better(best, tokens, scores, column)
        token = best_of(best, tokens)
        last, end = key_of(tl.load(line + token), False), token - 1
        counts, masses = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32)
        for first in range(0, size, BLOCK):
            key, column = _listed(source, columns, first + some, size)
            before = within(key, column, last, end)
            counts += before.to(tl.int32)
            masses += mass_of(key, before)
        count, mass = tl.sum(counts, 0), tl.sum(masses, 0)
        # The first token is kept whatever the limits, and a floor of NaN leaves none.
        going = (count > 0) & (tl.max(best, 0) > 0) & ~passes(count, mass, most, limit)
    return token


@triton.jit
def _listed(source, columns, place, size):
    """Keys and columns at some places of a list, or of a row that has no list."""
    column = place
    if columns is not None:
        column = tl.load(columns + place, place < size, 0)
    return keys_at(source, place, size), column


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
    DRAWN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The token of a row: the best of its parts' draws, or drawn from what limits leave."""
    await_previous(PDL)
    row = tl.program_id(0)
    start, counts, masses, peaks, draws, ends = places_of(work, row, space, room, parts)
    if DRAWN:
        if tl.load(ends + 1) != 0:
            tl.store(out + row, tl.load(ends))
            return
    whole = row >= 0
    token = row * 0
    if LIMITED:
        most, limit = leading_of(
            row, columns, top_k, k_stride, k_high, k_number,
            top_p, p_stride, p_number,
        )  # fmt: skip
        n, m = surveyed(counts, masses, parts, PARTS)
        peak = peak_of(peaks, parts, PARTS)
        index, low, _, left, _, _ = bracket(n, m, peak, most, limit)
        whole = index == PIVOTS
        if index < PIVOTS:
            floor = tl.maximum(low, 1)
            if MIN_P:
                floor = tl.maximum(floor_of(row, peak, min_p, m_stride, m_number), floor)
            line = probs + word_of(indices, row, index_stride, row).to(tl.int64) * stride
            last, end = row * 0, row * 0 + ALL
            if DRAWN:  # What precedes that token is too much.
                end = tl.load(ends) - 1
                last = key_of(tl.load(line + end + 1), False)
            if left <= room:
                token = _drawn(
                    start, start + room, left, line, last, end, most, limit, floor, row,
                    seed, seed_stride, seed_number, offset, offset_stride, offset_number, BLOCK,
                )  # fmt: skip
            else:
                token = _drawn(
                    line, None, columns, line, last, end, most, limit, floor, row,
                    seed, seed_stride, seed_number, offset, offset_stride, offset_number, BLOCK,
                )  # fmt: skip
    if whole:
        token = drawn(draws, parts, PARTS)
    tl.store(out + row, token)
