"""Scores of tokens: probabilities with the noise of a counter-based random generator."""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.parameters import words_of

NEVER: tl.constexpr = tl.constexpr(-0x80000000)
"""The score of a token that is not to be drawn."""


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """The first word of Philox4x32-10; all are uint32."""
    for _ in tl.static_range(10):
        # Products of 64 bits, of which both halves are used.
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0


@triton.jit
def exponential(token, row, seed, seed_stride, seed_number, offset, offset_stride, offset_number):
    """The exponential variate of each token; rows and tokens broadcast."""
    # A number of a seed counts the rows on from itself.
    k0, k1 = words_of(seed, row, seed_stride, seed_number + row.to(tl.int64))
    c0, c1 = words_of(offset, row, offset_stride, offset_number + row.to(tl.int64) * 0)
    word = philox4x32(
        c0.to(tl.uint32, bitcast=True),
        c1.to(tl.uint32, bitcast=True),
        token.to(tl.uint32, bitcast=True),
        (token * 0).to(tl.uint32, bitcast=True),
        k0.to(tl.uint32, bitcast=True),
        k1.to(tl.uint32, bitcast=True),
    )
    uniform = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return negated_log1p(-uniform)


@triton.jit
def negated_log1p(x):
    """-log1p(x) for x from -1 to 0, at most 24 * log(2); within 3e-7 of itself.

    A log of 1 + x would lose what makes the small results differ, which win draws. So 1 + x is
    2**k * (1 + f) with f from sqrt(1/2) - 1 to sqrt(2) - 1, and f is x itself where k is 0; then
    log1p(f) is f - f**2 / 2 + f**3 * P(f) with a P of least relative error.
    """
    bits = tl.maximum(1 + x, 5.9604644775390625e-08).to(tl.int32, bitcast=True)
    power = (bits - 0x3F3504F4) & -0x800000
    f = (bits - power).to(tl.float32, bitcast=True) - 1
    f = tl.where(power == 0, x, f)
    p = f * 0.08700360357761383 - 0.14267484843730927
    p = p * f + 0.1491478830575943
    p = p * f - 0.1657758504152298
    p = p * f + 0.19963061809539795
    p = p * f - 0.2500133812427521
    p = p * f + 0.3333390951156616
    log = f + (f * f) * (p * f - 0.5)
    return -(log + power.to(tl.float32) * 8.262958294867817e-08)


@triton.jit
def score(key, exponential):
    """An integer in the order of p / exponential, where the bits of p > 0 are the key.

    It is the quotient of p's mantissa with p's exponent added to its own, less a constant, so that
    no p, however small or large, leaves the range.
    """
    mantissa = ((key & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    root = tl.rsqrt(exponential)
    quotient = (mantissa * root * root).to(tl.int32, bitcast=True)
    return quotient + ((key & 0x7F800000) - 0x5F800000)
