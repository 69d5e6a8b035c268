"""Sums of products, which tiles of results are made of.

Rows are given by pointers to where each begins, x [M] and w [N], and by whether it exists, x_in and
w_in. The sums are [M, N] in float32.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_product(total, a, b):
    """The total plus a @ b in float32, without a rounding of a or b."""
    if a.dtype == tl.float32:
        if b.dtype == tl.float32:
            # A sum of sums loses less than a long sum, which a compiler that knows of a zero makes
            # of it; there are no more programs along the last axis.
            zero = tl.full(total.shape, tl.program_id(2), tl.float32)
            total += tl.dot(a, b, zero, input_precision="ieee")
        else:
            total = add_wide_product(total, a, b)
    else:
        total = tl.dot(a, b, total)
    return total


@triton.jit
def product_of_codes(a, b, NATIVE: tl.constexpr):
    """A @ b of 8 bits, in int32 for integers and else in float32.

    If NATIVE, tensor cores multiply 8-bit floats as they are, and add them up with fewer bits than
    float32 has: the error of a sum is 1.3e-4 of it, measured on an H100.
    """
    if a.dtype == tl.int8:
        result = tl.dot(a, b, out_dtype=tl.int32)
    elif NATIVE:
        result = tl.dot(a, b)
    else:
        # As above: what a compiler knows to be zero it would take the total for.
        zero = tl.full((a.shape[0], b.shape[1]), tl.program_id(2), tl.float32)
        result = tl.dot(a.to(tl.float16), b.to(tl.float16), zero)
    return result


@triton.jit
def halves(x, BITS: tl.constexpr):
    """Numbers in float32 without their lowest bits, and the rest of each."""
    high = (x.to(tl.int32, bitcast=True) & -(1 << BITS)).to(tl.float32, bitcast=True)
    return high, tl.where(high == x, 0.0, x - high)  # An infinity less itself is NaN.


@triton.jit
def add_wide_product(total, a, b):
    """The same with a in float32 and b in 16 bits: first with what these hold of a, then the rest.

    float16 has too few exponents for that, but tf32 holds all of it.
    """
    if b.dtype == tl.bfloat16:
        high, rest = halves(a, 16)
        total = tl.dot(high.to(tl.bfloat16), b, total)
        total = tl.dot(rest.to(tl.bfloat16), b, total)
    else:
        high, rest = halves(a, 13)
        b = b.to(tl.float32)
        total = tl.dot(high, b, total, input_precision="tf32")
        total = tl.dot(rest, b, total, input_precision="tf32")
    return total


@triton.jit
def sums(
    x, x_rest, x_in, w, w_in, first, columns, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    """X may be in two parts, whose rests are in rows at x_rest."""
    total = tl.full((M, N), 0, tl.float32)
    for start in range(first, columns, K):
        k = start + tl.arange(0, K)
        inside = k < columns
        a = tl.load(x[:, None] + k[None, :], x_in[:, None] & inside[None, :], 0.0)
        b = tl.load(w[None, :] + k[:, None], w_in[None, :] & inside[:, None], 0.0)
        total = add_product(total, a, b)
        if x_rest is not None:
            a = tl.load(x_rest[:, None] + k[None, :], x_in[:, None] & inside[None, :], 0.0)
            total = add_product(total, a, b)
    return total


@triton.jit
def sums_of_codes(
    x,
    x_in,
    w,
    w_in,
    first,
    columns,
    NATIVE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same of 8 bits as they are, without scales; those of integers are in int32."""
    if w.dtype.element_ty == tl.int8:
        total = tl.full((M, N), 0, tl.int32)
    else:
        total = tl.full((M, N), 0, tl.float32)
    for start in range(first, columns, K):
        k = start + tl.arange(0, K)
        inside = k < columns
        a = tl.load(x[:, None] + k[None, :], x_in[:, None] & inside[None, :], 0.0)
        b = tl.load(w[None, :] + k[:, None], w_in[None, :] & inside[:, None], 0.0)
        total += product_of_codes(a, b, NATIVE)
    return total


@triton.jit
def scales_at(scale, up, offset, mask, inside, SHARED: tl.constexpr, N: tl.constexpr):
    """The scales of N rows of a weight, as ``scaled_sums`` has them, at an offset."""
    if SHARED == 0:
        result = tl.load(scale + offset, mask & inside, 0.0)
    else:
        result = tl.full((N,), 0, tl.float32) + tl.load(scale + offset, inside, 0.0)
    if SHARED == 2:
        # Gate and up are in turn.
        result = tl.where(tl.arange(0, N) % 2 == 0, result, tl.load(up + offset, inside, 0.0))
    return result


@triton.jit
def scaled_sums(
    x,
    x_in,
    x_scale,
    x_step,
    w,
    w_in,
    w_scale,
    up_scale,
    w_step,
    first,
    columns,
    size,
    SHARED: tl.constexpr,
    NATIVE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same of codes; size columns, in which K go exactly, have a scale each.

    Scales begin at the pointers x_scale [M] and w_scale, and lie a step apart. w_scale is [N], or
    if SHARED is 1 a single one; if it is 2 there is another one, up_scale, for every second row.
    They are loaded a block ahead, as nobody else does it for loads that are not factors.
    """
    total = tl.full((M, N), 0, tl.float32)
    # The column of each row's next block.
    m_next, group = tl.full((M,), 0, tl.int32) + first, first // size
    by_x = tl.load(x_scale + group * x_step, x_in & (m_next < columns), 0.0)
    by_w = scales_at(w_scale, up_scale, group * w_step, w_in, first < columns, SHARED, N)
    for start in range(first, columns, K):
        k = start + tl.arange(0, K)
        inside = k < columns
        a = tl.load(x[:, None] + k[None, :], x_in[:, None] & inside[None, :], 0.0)
        b = tl.load(w[None, :] + k[:, None], w_in[None, :] & inside[:, None], 0.0)
        m_next, group = m_next + K, (start + K) // size
        more, offset = start + K < columns, group * w_step
        next_by_x = tl.load(x_scale + group * x_step, x_in & (m_next < columns), 0.0)
        next_by_w = scales_at(w_scale, up_scale, offset, w_in, more, SHARED, N)
        part = product_of_codes(a, b, NATIVE)
        total += part * (by_x[:, None] * by_w[None, :])
        by_x, by_w = next_by_x, next_by_w
    return total


@triton.jit
def spread_sums(
    x,
    x_in,
    x_scale,
    x_step,
    w,
    w_in,
    w_scale,
    w_step,
    first,
    columns,
    size,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same for any size, which is slow."""
    total = tl.full((M, N), 0, tl.float32)
    for start in range(first, columns, K):
        k = start + tl.arange(0, K)
        inside, group = k < columns, k // size
        x_mask, w_mask = x_in[:, None] & inside[None, :], w_in[None, :] & inside[:, None]
        a = tl.load(x[:, None] + k[None, :], x_mask, 0.0).to(tl.float32)
        b = tl.load(w[None, :] + k[:, None], w_mask, 0.0).to(tl.float32)
        a *= tl.load(x_scale[:, None] + (group * x_step)[None, :], x_mask, 0.0)
        b *= tl.load(w_scale[None, :] + (group * w_step)[:, None], w_mask, 0.0)
        total = add_product(total, a, b)
    return total
