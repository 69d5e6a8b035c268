"""Sums of products with weights whose codes of 4 bits lie two in a byte, for tiles as in ``sums``.

The low code of a byte is of an even column, the high one of the odd column that follows.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.sums import add_product

# The low and the high codes of four bytes, or the bits of a number of 16 bits: two at once.
PTX_OF_NIBBLES: tl.constexpr = tl.constexpr("""{
    .reg .b32 a, b, m, k;
    mov.b32 m, 0x000F000F;
    mov.b32 k, BITS;
    prmt.b32 a, $4, 0, 0x4140;
    prmt.b32 b, $4, 0, 0x4342;
    lop3.b32 $0, a, m, k, 0xEA;
    lop3.b32 $1, b, m, k, 0xEA;
    shr.u32 a, a, 4;
    shr.u32 b, b, 4;
    lop3.b32 $2, a, m, k, 0xEA;
    lop3.b32 $3, b, m, k, 0xEA;
}""")
PTX_BF16: tl.constexpr = tl.constexpr(PTX_OF_NIBBLES.value.replace("BITS", "0x43004300"))
PTX_FP16: tl.constexpr = tl.constexpr(PTX_OF_NIBBLES.value.replace("BITS", "0x64006400"))


@triton.jit
def as_pairs(x, DTYPE: tl.constexpr):
    """Pointers to numbers as those to integers that have two of them."""
    if DTYPE.primitive_bitwidth == 32:
        pairs = x.to(tl.pointer_type(tl.int64), bitcast=True)
    else:
        pairs = x.to(tl.pointer_type(tl.int32), bitcast=True)
    return pairs


@triton.jit
def even_and_odd(x, x_in, first, width, DTYPE: tl.constexpr, K: tl.constexpr):
    """Numbers of K / 2 pairs from the first one on, apart; x [M] points to integers of pairs."""
    pair = first + tl.arange(0, K // 2)
    both = tl.load(x[:, None] + pair[None, :], x_in[:, None] & (pair < width)[None, :], 0)
    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    HALF: tl.constexpr = tl.int16 if BITS == 16 else tl.int32
    even, odd = both.to(HALF), (both >> BITS).to(HALF)
    return even.to(DTYPE, bitcast=True), odd.to(DTYPE, bitcast=True)


@triton.jit
def sums_with_nibbles(codes, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The low and the high codes of bytes, more a power of two of which the lowest bit is 1."""
    if PTX:
        low, high = tl.inline_asm_elementwise(
            PTX_BF16 if DTYPE.is_bf16() else PTX_FP16,
            "=r,=r,=r,=r,r",
            [codes],
            dtype=(tl.int16, tl.int16),
            is_pure=True,
            pack=4,
        )
    else:
        BITS: tl.constexpr = 0x4300 if DTYPE.is_bf16() else 0x6400
        low, high = (codes & 15).to(tl.int16) | BITS, (codes >> 4).to(tl.int16) | BITS
    return low.to(DTYPE, bitcast=True), high.to(DTYPE, bitcast=True)


@triton.jit
def of_nibbles(codes, zero, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The low and the high codes of bytes, less their zeros, if these are whole and not 8, exactly.

    PTX says that it is understood, in which it takes half as many instructions.
    """
    if DTYPE.primitive_bitwidth == 32:
        low, high = (codes & 15).to(tl.float32), (codes >> 4).to(tl.float32)
        ONE: tl.constexpr = 0.0
    else:
        low, high = sums_with_nibbles(codes, DTYPE, PTX)
        ONE: tl.constexpr = 128.0 if DTYPE.is_bf16() else 1024.0
    ALL: tl.constexpr = ONE + 8 if zero is None else ONE
    by = tl.full(low.shape, ALL, DTYPE)
    low, high = low - by, high - by
    if zero is not None:
        low, high = low - zero.to(DTYPE)[None, :], high - zero.to(DTYPE)[None, :]
    return low, high


@triton.jit
def packed_sums(
    x,
    x_in,
    w,
    w_in,
    w_scale,
    w_step,
    w_zero,
    first,
    width,
    size,
    PTX: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The sums of x and the codes in width bytes less their zeros, which are whole.

    size columns, in which K go exactly, have a scale and a zero each.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    pairs = as_pairs(x, DTYPE)
    nothing = tl.full((M, N), 0, tl.float32)
    total = nothing
    byte_next, group = tl.full((N,), 0, tl.int32) + first, 2 * first // size
    some = w_in & (byte_next < width)
    by_w, zero = tl.load(w_scale + group * w_step, some, 0.0), None
    if w_zero is not None:
        zero = tl.load(w_zero + group, some, 0).to(tl.float32)
    for start in range(first, width, K // 2):
        byte = start + tl.arange(0, K // 2)
        mask = w_in[None, :] & (byte < width)[:, None]
        codes = tl.load(w[None, :] + byte[:, None], mask, 0)
        even, odd = even_and_odd(pairs, x_in, start, width, DTYPE, K)
        byte_next += K // 2
        group, more = (2 * start + K) // size, w_in & (byte_next < width)
        next_by_w = tl.load(w_scale + group * w_step, more, 0.0)
        low, high = of_nibbles(codes, zero, DTYPE, PTX)
        part = add_product(nothing, even, low)
        part = add_product(part, odd, high)
        total += part * by_w.to(tl.float32)[None, :]
        by_w = next_by_w
        if w_zero is not None:
            zero = tl.load(w_zero + group, more, 0).to(tl.float32)
    return total


@triton.jit
def spread_packed_sums(
    x,
    x_in,
    w,
    w_in,
    w_scale,
    w_step,
    w_zero,
    first,
    width,
    size,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The same for any size and any zeros, which is slow."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    pairs = as_pairs(x, DTYPE)
    total = tl.full((M, N), 0, tl.float32)
    for start in range(first, width, K // 2):
        byte = (start + tl.arange(0, K // 2))[:, None]
        mask = w_in[None, :] & (byte < width)
        codes = tl.load(w[None, :] + byte, mask, 0)
        even, odd = even_and_odd(pairs, x_in, start, width, DTYPE, K)
        low = of_code(codes & 15, 2 * byte // size, mask, w_scale[None, :], w_step, w_zero)
        high = of_code(codes >> 4, (2 * byte + 1) // size, mask, w_scale[None, :], w_step, w_zero)
        total = add_product(total, even.to(tl.float32), low)
        total = add_product(total, odd.to(tl.float32), high)
    return total


@triton.jit
def of_code(code, group, mask, w_scale, w_step, w_zero):
    """(code - zero) * scale, with those of a group."""
    value = code.to(tl.float32)
    if w_zero is not None:
        value -= tl.load(w_zero[None, :] + group, mask, 0).to(tl.float32)
    else:
        value -= 8
    return value * tl.load(w_scale + group * w_step, mask, 0.0).to(tl.float32)
