"""Scores of tokens: probabilities over the variates of a counter-based random generator.

Four tokens in a row share a call of the generator, which gives four words. A thread that loads four
probabilities at once makes one call for them, and has the words where it has the probabilities.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.parameters import words_of


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """The four words of Philox4x32-10; all are uint32."""
    for _ in tl.static_range(10):
        # Products of 64 bits, of which both halves are used: an instruction each on sm_90.
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def stream_of(row, seed, seed_stride, seed_number, offset, offset_stride, offset_number):
    """The words of each row's offset and of its seed, as uint32."""
    c0, c1 = words_of(offset, row, offset_stride, offset_number + row.to(tl.int64) * 0)
    # A number of a seed counts the rows on from itself.
    k0, k1 = words_of(seed, row, seed_stride, seed_number + row.to(tl.int64))
    return (
        c0.to(tl.uint32, bitcast=True),
        c1.to(tl.uint32, bitcast=True),
        k0.to(tl.uint32, bitcast=True),
        k1.to(tl.uint32, bitcast=True),
    )


@triton.jit
def words_of_fours(four, c0, c1, k0, k1):
    """The words of tokens in a row, [..., 4 * n], for fours of them [..., n]; streams broadcast."""
    c2 = four.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c2 * 0, k0, k1)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def word_of_each(token, c0, c1, k0, k1):
    """The word of each token, whichever they are; a call for each."""
    c2 = (token // 4).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c2 * 0, k0, k1)
    even, odd = tl.where(token & 2 == 0, w0, w2), tl.where(token & 2 == 0, w1, w3)
    return tl.where(token & 1 == 0, even, odd)


NEAR: tl.constexpr = tl.constexpr(2.1434e-09)
"""-log1p(-1/4) / 2**27."""


@triton.jit
def score(p, word, EXACT: tl.constexpr):
    """A probability over the variate of a word, times 2**27; 0 or below or NaN as that is.

    With that factor no score is less than 2**-126, and none of one below 2**68 overflows. Unless
    it is to be EXACT, it is so only for variates up to 2**27 * NEAR; beyond it is too much.
    """
    uniform = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    variate = _near(uniform)
    if EXACT:
        left = tl.maximum(1 - uniform, 5.9604644775390625e-08)
        variate = tl.where(uniform > 0.25, tl.log2(left) * -5.164348934292386e-09, variate)
    # A device has an instruction for one over a root, but not for a division.
    root = tl.rsqrt(variate)
    return p * (root * root)


@triton.jit
def _near(u):
    """-log1p(-u) / 2**27 for u from 0 to 1/4, within 2e-7 of itself; less than that beyond.

    A polynomial of least relative error, 4e-8: a logarithm of 1 - u would lose what makes the small
    results differ, which win draws.
    """
    p = 0.3357097804546356 * u + 0.14670324325561523
    p = p * u + 0.25711023807525635
    p = p * u + 0.33293071389198303
    p = p * u + 0.5000072717666626
    return (p * u + 1) * (u * 7.450580596923828e-09)
