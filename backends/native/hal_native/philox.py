"""Philox4x32-10 in int64 arithmetic: a counter-based random generator (Salmon et al., SC 2011)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF

Words = tuple["Tensor", "Tensor"]


def halves(value: Tensor) -> Words:
    """Split the 64 bits of an int64 tensor into its low and its high word."""
    return value & WORD, (value >> 32) & WORD


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Words) -> tuple[Tensor, ...]:
    """Return the four words that belong to a counter and a key; words are int64 in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low0, high0 = _product(c0, MULTIPLIERS[0])
        low1, high1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> Words:
    # Two products of 32 by 16 bits: the full one would not fit in 63 bits.
    low = word * (multiplier & 0xFFFF)
    middle = word * (multiplier >> 16) + (low >> 16)
    return ((middle & 0xFFFF) << 16) | (low & 0xFFFF), middle >> 16
