"""Which tokens the limits leave, by the keys of probabilities: their bits, which order as they do.

A token comes before another of a smaller key, and of the same key and a higher index. What limits
leave are the first tokens in this order: those above a key, and of that key those up to a column.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.parameters import float_of, word_of

ALL: tl.constexpr = tl.constexpr(0x7FFFFFFF)
"""More tokens than there are, and a column past the last."""
NAN: tl.constexpr = tl.constexpr(0x7FC00000)


@triton.jit
def key_of(x, KEEPS_NAN: tl.constexpr):
    """Of NaN and of what is below 0 it is that of 0, unless NaN is kept, as the largest."""
    x = x.to(tl.float32)
    key = tl.where(x > 0, x, 0.0).to(tl.int32, bitcast=True)
    if KEEPS_NAN:
        key = tl.where(x != x, NAN, key)
    return key


@triton.jit
def mass_of(key, counted):
    """Their probabilities where they are counted, else 0."""
    return tl.where(counted, key, 0).to(tl.float32, bitcast=True)


@triton.jit
def leading_of(row, columns, top_k, k_stride, k_high, k_number, top_p, p_stride, p_number):
    """How many tokens a row keeps, ALL without a limit, and the mass that may precede each."""
    low = word_of(top_k, row, k_stride, k_number)
    # An int32 says in its sign what an int64 says in its high half.
    high = word_of(top_k + 1, row, k_high, low >> 31)
    count = tl.where((high == 0) & (low > 0) & (low < columns), low, ALL)
    mass = float_of(top_p, row, p_stride, p_number)
    return count, tl.where(mass >= 1, float("inf"), mass)


@triton.jit
def floor_of(row, peak, min_p, m_stride, m_number):
    """The least key that min_p leaves of a row whose largest is the peak."""
    share = float_of(min_p, row, m_stride, m_number)
    share = tl.where(share > 1, 1.0, tl.where(share < 0, 0.0, share))
    return (share * peak.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)


@triton.jit
def passes(count, mass, most, limit):
    """Whether tokens of this count and mass are less than the limits allow before another."""
    return (count < most) & (mass < limit)


@triton.jit
def ties_left(key, count, mass, most, limit):
    """How many of the tokens of a key are kept, which this count and mass precede."""
    p = key.to(tl.float32, bitcast=True)
    # Of mass, mass + p, mass + 2 * p, ... those below the limit: about this many, but for rounding.
    about = (limit - mass) / tl.where(p > 0, p, 1.0)
    about = tl.where((about < 1e9) & (p > 0), about, 1e9)
    about = tl.where(about > 0, about, 0.0).to(tl.int32)
    by_mass = tl.maximum(about - 1, 0)
    for _ in tl.static_range(3):
        by_mass += (mass + by_mass.to(tl.float32) * p < limit).to(tl.int32)
    by_mass = tl.where(mass < limit, by_mass, 0)
    kept = tl.minimum(most - count, by_mass)
    # The first token is kept whatever the limits.
    return tl.where(count == 0, tl.maximum(kept, 1), kept)


@triton.jit
def cut(key, column, most, limit):
    """The key and the column of each row at which what is kept ends, both kept.

    Keys are [ROWS, BLOCK], below 0 where there is no token, and columns [1, BLOCK]. A row keeps no
    more than ``most`` tokens, and those that a mass below its limit precedes.
    """
    low, high = most * 0, tl.max(key, 1) + 1
    left, count = tl.sum((key >= 0).to(tl.int32), 1), most * 0
    mass = tl.zeros_like(limit)
    whole = passes(left, tl.sum(mass_of(key, key >= 0), 1), most, limit)
    # What is kept ends at a key from low to high, which left tokens have or exceed; of those count
    # with a mass are at high or above.
    going = tl.max(((high - low > 1) & (left - count > 1) & ~whole).to(tl.int32), 0)
    while going > 0:
        middle = low + (high - low) // 2
        above = key >= middle[:, None]
        n, m = tl.sum(above.to(tl.int32), 1), tl.sum(mass_of(key, above), 1)
        lower = passes(n, m, most, limit)
        # Next to keys that there are, so that equal ones end it.
        highest = tl.max(tl.where(above, -1, key), 1)
        lowest = tl.min(tl.where(above, key, ALL), 1)
        high, low = tl.where(lower, highest + 1, high), tl.where(lower, low, lowest)
        count, left = tl.where(lower, n, count), tl.where(lower, left, n)
        mass = tl.where(lower, m, mass)
        going = tl.max(((high - low > 1) & (left - count > 1) & ~whole).to(tl.int32), 0)
    last = tl.max(tl.where(key < high[:, None], key, -1), 1)
    tied = (key == last[:, None]).to(tl.int32)
    kept = ties_left(last, count, mass, most, limit)
    end = most * 0 + ALL
    if tl.max(tl.where(whole, 0, tl.sum(tied, 1) - kept), 0) > 0:
        counted = (tied > 0) & (tl.cumsum(tied, 1) <= kept[:, None])
        end = tl.max(tl.where(counted, column, -1), 1)
    return tl.where(whole, 0, last), tl.where(whole, ALL, end)


@triton.jit
def within(key, column, last, end):
    """Whether tokens are kept, up to a key and a column."""
    return (key > last) | ((key == last) & (column <= end))


@triton.jit
def left_of(
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


PIVOTS: tl.constexpr = tl.constexpr(16)


@triton.jit
def pivot(index):
    """2**-2, 2**-5, ... 2**-20, 2**-25, 2**-30, ... 2**-60 and 0: where parts of a row count."""
    exponent = tl.where(index < 7, 125 - 3 * index, 137 - 5 * index)
    return tl.where(index < PIVOTS - 1, exponent << 23, 0)


@triton.jit
def counts_of(key, peak, most, limit):
    """How many keys of a part are not below each pivot, and their mass.

    Below a pivot whose count or mass alone is past the row's limits those of lower ones may be any
    that are; without limits only those of 0 count.
    """
    slot = tl.arange(0, PIVOTS)
    n, m = tl.sum(tl.where(key >= 0, 1, 0), 0), tl.sum(mass_of(key, key >= 0), 0)
    counts, masses = tl.where(slot == PIVOTS - 1, n, 0), tl.where(slot == PIVOTS - 1, m, 0.0)
    if (most < ALL) | (limit != float("inf")):
        n, m = n * 0, m * 0
        for index in range(PIVOTS - 1):
            at = pivot(index)
            if (at <= peak) & (passes(n, m, most, limit) | (n == 0)):
                above = key >= at
                n, m = tl.sum(above.to(tl.int32), 0), tl.sum(mass_of(key, above), 0)
            counts, masses = tl.where(slot == index, n, counts), tl.where(slot == index, m, masses)
    return counts, masses


@triton.jit
def bracket(counts, masses, peak, most, limit):
    """Between which pivots a row's end lies, by the counts and masses [PARTS, PIVOTS] of its parts.

    The results are the lower pivot's index, PIVOTS if all tokens are kept, and low, high, left,
    count and mass, as in ``cut``.
    """
    slot = tl.arange(0, PIVOTS)
    left, mass = tl.sum(counts, 0), tl.sum(masses, 0)
    index = tl.sum((passes(left, mass, most, limit) | (left == 0)).to(tl.int32), 0)
    here, before = slot == index, slot == index - 1
    high = tl.where(index > 0, tl.minimum(pivot(index - 1), peak + 1), peak + 1)
    return (
        index,
        pivot(index),
        high,
        tl.sum(tl.where(here, left, 0), 0),
        tl.sum(tl.where(before, left, 0), 0),
        tl.sum(tl.where(before, mass, 0.0), 0),
    )


@triton.jit
def keys_at(source, place, size):
    """The keys of some places; below 0 past the size. The source has keys or probabilities."""
    if source.dtype.element_ty == tl.int32:
        return tl.load(source + place, place < size, -1)
    return tl.where(place < size, key_of(tl.load(source + place, place < size, 0.0), False), -1)


@triton.jit
def narrowed(source, size, low, high, left, count, mass, most, limit, BLOCK: tl.constexpr):
    """A bracket of one row whose keys are all the same; by quarters, as a look takes long."""
    while (high - low > 1) & (left - count > 1):
        step = tl.maximum((high - low) // 4, 1)
        a, b = low + step, tl.minimum(low + 2 * step, high - 1)
        c = tl.minimum(low + 3 * step, high - 1)
        n_a, m_a = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32)
        n_b, m_b = n_a, m_a
        n_c, m_c = n_a, m_a
        for start in range(0, size, BLOCK):
            key = keys_at(source, start + tl.arange(0, BLOCK), size)
            n_a, m_a = n_a + (key >= a).to(tl.int32), m_a + mass_of(key, key >= a)
            n_b, m_b = n_b + (key >= b).to(tl.int32), m_b + mass_of(key, key >= b)
            n_c, m_c = n_c + (key >= c).to(tl.int32), m_c + mass_of(key, key >= c)
        # The lowest that passes is the new high, the highest that does not the new low.
        high, low, count, left, mass = _moved(
            c, tl.sum(n_c, 0), tl.sum(m_c, 0), low, high, left, count, mass, most, limit
        )
        high, low, count, left, mass = _moved(
            b, tl.sum(n_b, 0), tl.sum(m_b, 0), low, high, left, count, mass, most, limit
        )
        high, low, count, left, mass = _moved(
            a, tl.sum(n_a, 0), tl.sum(m_a, 0), low, high, left, count, mass, most, limit
        )
    return high, count, mass


@triton.jit
def _moved(middle, n, m, low, high, left, count, mass, most, limit):
    """The bracket, with a bound at a key that n tokens of mass m have or exceed."""
    lower = passes(n, m, most, limit)
    higher = ~lower & (middle > low)
    return (
        tl.where(lower, middle, high),
        tl.where(higher, middle, low),
        tl.where(lower, n, count),
        tl.where(higher, n, left),
        tl.where(lower, m, mass),
    )


@triton.jit
def search(source, columns, size, low, high, left, count, mass, most, limit, BLOCK: tl.constexpr):
    """``cut`` of one row of any size, within a bracket, and the mass of what is kept.

    The source has, by index, at least all tokens that are not below low, size in number, and their
    columns are given, unless they are all there are. BLOCK are looked at at once; the rest is as in
    ``cut``.
    """
    some = tl.arange(0, BLOCK)
    high, count, mass = narrowed(source, size, low, high, left, count, mass, most, limit, BLOCK)
    last = tl.full((BLOCK,), -1, tl.int32)
    for start in range(0, size, BLOCK):
        key = keys_at(source, start + some, size)
        last = tl.maximum(last, tl.where(key < high, key, -1))
    last = tl.max(last, 0)
    tied = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        tied += (keys_at(source, start + some, size) == last).to(tl.int32)
    ties = tl.sum(tied, 0)
    kept = tl.minimum(ties_left(last, count, mass, most, limit), ties)
    end = ties * 0 + ALL
    if kept < ties:
        end = _nth(source, columns, size, last, kept, BLOCK)
    return last, end, mass + kept.to(tl.float32) * last.to(tl.float32, bitcast=True)


@triton.jit
def _nth(source, columns, size, sought, n, BLOCK: tl.constexpr):
    """The column of the nth token of a key, below 0 for the 0th."""
    end, seen = n * 0 - 1, n * 0
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        same = (keys_at(source, column, size) == sought).to(tl.int32)
        counted = (same > 0) & (seen + tl.cumsum(same, 0) <= n)
        if columns is not None:
            column = tl.load(columns + column, column < size, 0)
        end = tl.maximum(end, tl.max(tl.where(counted, column, -1), 0))
        seen += tl.sum(same, 0)
    return end
