"""What the kernels of attention are made of.

Scores are kept as they leave the product of queries and keys; ``scale``, positive, turns them into
exponents of 2. Where keys lie is said by PAGES: 0 one after the other, 1 in pages of any size, 2 in
pages of a power of two, 3 in such pages that hold whole tiles. UNIT, where not 0, divides strides.

The interpreter takes a millisecond for a call of any function that is written in the language,
``tl.zeros`` and ``tl.cdiv`` among them; so what is short has no function of its own.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def places(table, first, key, inside, block_size, shift, PAGES: tl.constexpr):
    """The page and the place in it of keys, the ones from ``first`` on."""
    if PAGES == 0:
        page, slot = key, key
    elif PAGES == 1:
        page, slot = tl.load(table + key // block_size, inside, 0), key % block_size
    elif PAGES == 2:
        page, slot = tl.load(table + (key >> shift), inside, 0), key & (block_size - 1)
    else:
        page, slot = tl.load(table + (first >> shift)), key & (block_size - 1)
    return page.to(tl.int64), slot.to(tl.int64)


@triton.jit
def tile_of(
    x,
    page,
    slot,
    inside,
    columns,
    strides,
    MASKED: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    FULL: tl.constexpr,
):
    """Rows of keys or of values; zero outside."""
    page_stride, slot_stride, column_stride = strides
    column = tl.arange(0, BLOCK)[None, :]
    mask = column < columns
    if UNIT == 0:
        column = column * column_stride
    offset = slot * slot_stride
    if PAGES > 0:
        offset += page * page_stride
    where = x + offset[:, None] + column
    if MASKED and FULL:
        return tl.load(where, inside[:, None], 0.0)
    if MASKED:
        return tl.load(where, inside[:, None] & mask, 0.0)
    if FULL:
        return tl.load(where)
    return tl.load(where, mask, 0.0)


@triton.jit
def queries(x, offset, inside, columns, sign, SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of queries with the sign of the scale.

    Only what comes straight from memory is multiplied from there, and not from registers.
    """
    column = tl.arange(0, BLOCK)[None, :]
    value = tl.load(x + offset[:, None] + column, inside[:, None] & (column < columns), 0.0)
    if SIGNED:
        value = (value.to(tl.float32) * sign).to(value.dtype)
    return value


@triton.jit
def halved(q, q_rest):
    """What queries are multiplied with to be float16, and what undoes that, [M, 1]: powers of two.

    Keys and values of 8 bits become float16 in one instruction for two, and bfloat16 in four.
    Queries lose nothing but what is less than 2**-31 of the largest of them.
    """
    size = tl.max(tl.abs(q.to(tl.float32)), 1)
    if q_rest is not None:
        size = tl.maximum(size, tl.max(tl.abs(q_rest.to(tl.float32)), 1))
    exponent = tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 15)[:, None]
    # The largest is from 2**14 on, below the 2**16 where float16 ends.
    factor = ((127 + 127 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    return factor, ((exponent - 14) << 23).to(tl.float32, bitcast=True)


@triton.jit
def as_loaded(x):
    """Numbers of 16 bits, which threads have as they were loaded: those of a row side by side.

    Products take values across rows. That is one instruction for many numbers of 16 bits in shared
    memory, but one for each code of 8; and the compiler, which turns codes into numbers after that
    if it can, does not do so across what it does not know.
    """
    return tl.inline_asm_elementwise(
        *("mov.b32 $0, $1;", "=r,r", [x]), dtype=x.dtype, is_pure=False, pack=2
    )


@triton.jit
def tanh(x):
    """Within 2 units in the last place: a polynomial (Cephes, tanhf) where 1 - 2 / ... cancels."""
    square = x * x
    near = -5.70498872745e-3 * square + 2.06390887954e-2
    near = (near * square - 5.37397155531e-2) * square + 1.33314422036e-1
    near = (near * square - 3.33332819422e-1) * square * x + x
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(size, 20.0) * (2 * LOG2E)) + 1.0)
    far = tl.where(x < 0, -far, far)
    # NaN takes the polynomial.
    return tl.where(size > 0.625, far, near)


@triton.jit
def shaped(score, k_scales, cap, cap_scale, CAPPED: tl.constexpr):
    """What a product of query and key is before it is masked; k_scales: a number or [M, 1]."""
    if k_scales is not None:
        score = score * k_scales
    if CAPPED:
        score = cap * tanh(score * cap_scale)
    return score


@triton.jit
def add_keys(acc, peak, total, score, v, scale, SPLIT: tl.constexpr):
    """One more tile: scores [M, N] and values [N, V] into sums that are relative to the peak.

    Weights are as coarse as the values. SPLIT adds what rounding them took, as products of its own.
    """
    top = tl.maximum(peak, tl.max(score, 1))
    level = tl.where(top == float("-inf"), 0.0, top)
    if SPLIT or v.dtype == tl.float32:
        weight = tl.exp2((score - level[:, None]) * scale)
    else:
        weight = tl.exp2(score * scale - (level * scale)[:, None])
    kept = tl.exp2((peak - level) * scale)
    total = total * kept + tl.sum(weight, 1)
    acc = acc * kept[:, None]
    coarse = weight.to(v.dtype)
    acc = tl.dot(coarse, v, acc, input_precision="ieee")
    if SPLIT:
        rest = (weight - coarse.to(tl.float32)).to(v.dtype)
        acc = tl.dot(rest, v, acc, input_precision="ieee")
    return acc, top, total


@triton.jit
def seen(
    acc,
    peak,
    total,
    q,
    q_rest,
    k,
    v,
    table,
    start,
    lowest,
    highest,
    least,
    keys,
    k_scales,
    sizes,
    of_k,
    of_v,
    shape,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    PAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UNIT: tl.constexpr,
    FULL: tl.constexpr,
    PTX: tl.constexpr = False,
):
    """The sums with a tile of keys; each row sees those from lowest to highest.

    No row sees keys below ``least``. Without v, values are the first part of keys. of_k and
    of_v are strides of pages, slots and columns. PTX: whether it is understood.
    """
    block_size, shift, first, rest, value_dim = sizes
    scale, cap, cap_scale = shape
    key = start + tl.arange(0, BLOCK_N)
    inside = (key >= least) & (key < keys)
    page, slot = places(table, start, key, inside, block_size, shift, PAGES)
    row = tile_of(
        k,
        *(page, slot, inside, first),
        of_k,
        *(MASKED, PAGES, BLOCK_D, UNIT, FULL),
    ).to(q.dtype)
    score = tl.dot(q, tl.trans(row), input_precision="ieee")
    if REST > 0:
        tail = tile_of(
            k + first * of_k[2],
            *(page, slot, inside, rest),
            of_k,
            *(MASKED, PAGES, REST, UNIT, FULL),
        )
        score = tl.dot(q_rest, tl.trans(tail.to(q.dtype)), score, input_precision="ieee")
    if CAPPED or k_scales is not None:
        score = shaped(score, k_scales, cap, cap_scale, CAPPED)
    if MASKED:
        visible = (key[None, :] >= lowest[:, None]) & (key[None, :] <= highest[:, None])
        score = tl.where(visible & inside[None, :], score, float("-inf"))
    if v is None:
        value = row
    else:
        value = tile_of(
            v,
            *(page, slot, inside, value_dim),
            of_v,
            *(MASKED, PAGES, BLOCK_V, UNIT, FULL),
        ).to(q.dtype)
        # Triton 3.3 has no ``and`` of what types say.
        if PTX:
            if q.dtype == tl.float16:
                if v.dtype.element_ty.primitive_bitwidth == 8:
                    value = as_loaded(value)
    return add_keys(acc, peak, total, score, value, scale, SPLIT)
