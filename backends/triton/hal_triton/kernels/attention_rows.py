"""How kernels of attention end: rows from their sums, and exact ones where sums do not serve."""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.attention_parts import LOG2E, places, shaped, tile_of

LN2 = tl.constexpr(0.6931471805599453)
# Keys that an exact row has at once.
_FEW = tl.constexpr(16)


@triton.jit
def _denominator(peak, total, sink):
    """The log2 of a denominator and what sums are multiplied with; peak and sink are exponents."""
    kept = 1.0
    if sink is not None:
        top = tl.maximum(peak, sink)
        level = tl.where(top == float("-inf"), 0.0, top)
        kept = tl.exp2(peak - level)
        total = total * kept + tl.exp2(sink - level)
    else:
        level = tl.where(peak == float("-inf"), 0.0, peak)
    some = tl.where(total == 0, 1.0, total)
    log = tl.where(total == 0, float("-inf"), level + tl.log2(some))
    return log, kept / some


@triton.jit
def _exact(
    q,
    q_rest,
    k,
    v,
    table,
    k_scales,
    low,
    high,
    log,
    sizes,
    of_k,
    of_v,
    sign,
    shape,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The row of a query that sees the keys from low to high, of which the denominator is known.

    What is not finite in the values stays out of products, where 0 * NaN is NaN, and is added where
    it is seen. Weights are at most 1, so that sums of large values do not overflow.
    """
    block_size, shift, first, rest, value_dim = sizes
    scale, cap, cap_scale = shape
    column = tl.arange(0, BLOCK_D)
    query = tl.load(q + column, column < first, 0.0).to(tl.float32) * sign
    if REST > 0:
        more = tl.arange(0, REST)
        query_rest = tl.load(q_rest + more, more < rest, 0.0).to(tl.float32) * sign
    level = tl.where(log == float("-inf"), 0.0, log)
    total = tl.full((BLOCK_V,), 0.0, tl.float32)
    up = tl.full((BLOCK_V,), 0, tl.int32)
    down = tl.full((BLOCK_V,), 0, tl.int32)
    begin = low // _FEW * _FEW
    for start in range(begin, high, _FEW):
        key = start + tl.arange(0, _FEW)
        inside = (key >= low) & (key < high)
        kind: tl.constexpr = 2 if PAGES == 3 else PAGES
        page, slot = places(table, start, key, inside, block_size, shift, kind)
        row = tile_of(
            k,
            *(page, slot, inside, first),
            of_k,
            *(True, PAGES, BLOCK_D, UNIT, False),
        )
        row = row.to(tl.float32)
        score = tl.sum(row * query[None, :], 1)
        if REST > 0:
            tail = tile_of(
                k + first * of_k[2],
                *(page, slot, inside, rest),
                of_k,
                *(True, PAGES, REST, UNIT, False),
            )
            score += tl.sum(tail.to(tl.float32) * query_rest[None, :], 1)
        if CAPPED or k_scales is not None:
            score = shaped(score, k_scales, cap, cap_scale, CAPPED)
        weight = tl.where(inside, tl.exp2(score * scale - level), 0.0)
        if v is None:
            value = row
        else:
            value = tile_of(
                v,
                *(page, slot, inside, value_dim),
                of_v,
                *(True, PAGES, BLOCK_V, UNIT, False),
            ).to(tl.float32)
        finite = tl.abs(value) < float("inf")
        total += tl.sum(tl.where(finite, value, 0.0) * weight[:, None], 0)
        up |= tl.max(tl.where(finite | (value == float("-inf")), 0, 1), 0)
        down |= tl.max(tl.where(finite | (value == float("inf")), 0, 1), 0)
    total = tl.where(up > 0, total + float("inf"), total)
    return tl.where(down > 0, total - float("inf"), total)


@triton.jit
def finish(
    out,
    lse,
    acc,
    peak,
    total,
    inside,
    token,
    query,
    head,
    heads,
    sinks,
    v_scale,
    q,
    q_rest,
    k,
    v,
    table,
    k_scales,
    keys,
    count,
    left,
    right,
    sizes,
    of_q,
    of_rest,
    of_k,
    of_v,
    sign,
    shape,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Write the rows of some queries and heads of a sequence from their sums.

    k, v, table: At the sequence, and at the head of the keys. of_q and of_rest are strides of
    tokens and heads, of_k and of_v of pages, slots and columns.
    """
    _, _, _, _, value_dim = sizes
    scale, _, _ = shape
    sink = None
    if sinks is not None:
        sink = tl.load(sinks + head, inside, 0.0).to(tl.float32) * LOG2E
    log, factor = _denominator(peak * scale, total, sink)
    value = acc * (factor * v_scale)[:, None]
    place = (token + query).to(tl.int64) * heads + head
    tl.store(lse + place, log * LN2, inside)
    # What is not finite, though its scores are, may come of 0 * inf or of sums that overflow.
    odd = tl.max(tl.where(tl.abs(value) < float("inf"), 0, 1), 1)
    odd = tl.where(inside & (log == log), odd, 0)
    column = tl.arange(0, BLOCK_V)
    mask = (inside & (odd == 0))[:, None] & (column < value_dim)[None, :]
    where = out + place[:, None] * value_dim + column[None, :]
    tl.store(where, value.to(out.dtype.element_ty), mask)
    if tl.max(odd, 0) > 0:
        for i in range(ROWS):
            mine = tl.arange(0, ROWS) == i
            if tl.max(tl.where(mine, odd, 0), 0) > 0:
                one = tl.sum(tl.where(mine, query, 0), 0)
                its_head = tl.sum(tl.where(mine, head, 0), 0)
                its_token = (token + one).to(tl.int64)
                row_rest = None
                if REST > 0:
                    row_rest = q_rest + its_token * of_rest[0] + its_head * of_rest[1]
                exact = v_scale * _exact(
                    q + its_token * of_q[0] + its_head * of_q[1],
                    row_rest,
                    k,
                    v,
                    table,
                    k_scales,
                    tl.maximum(one + keys - count - left, 0),
                    tl.minimum(one + keys - count + right + 1, keys),
                    tl.sum(tl.where(mine, log, 0.0), 0),
                    *(sizes, of_k, of_v, sign, shape),
                    *(CAPPED, PAGES, BLOCK_D, REST, BLOCK_V, UNIT),
                )
                row_out = out + (its_token * heads + its_head) * value_dim
                tl.store(row_out + column, exact.to(out.dtype.element_ty), column < value_dim)


@triton.jit
def blank(
    out,
    lse,
    first,
    rows,
    program,
    programs,
    columns,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """0 and -inf in the rows from ``first`` on, which some programs share."""
    column = tl.arange(0, BLOCK_V)[None, :]
    for start in range(first + program * ROWS, rows, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < rows
        tl.store(lse + row, tl.full((ROWS,), float("-inf"), tl.float32), inside)
        where = out + row.to(tl.int64)[:, None] * columns + column
        zeros = tl.full((ROWS, BLOCK_V), 0.0, out.dtype.element_ty)
        tl.store(where, zeros, inside[:, None] & (column < columns))
