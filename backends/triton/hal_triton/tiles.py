"""What programs of products have at once, by sizes: rules of thumb, found on an H100."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div

__all__ = ["Tiles", "expert_tiles", "native_tiles", "pair_tile", "pairs_win", "parts", "tiles"]

_LEAST = {4: 1024, 8: 2048, 16: 4096, 32: 4096}
"""Columns of a part at least, by the bits of an element of the weight."""
_LONG = {4: 0, 8: 8192, 16: 4096}
"""Rows of a weight, of more of which tiles win, by the bits of an element."""


class Tiles(NamedTuple):
    """Rows, rows of the weight, and columns that a program has at once, and how it runs."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    def across(self, outs: int, activation: str | None) -> int:
        """How many lie side by side for so many results of a row."""
        return ceil_div(outs * (1 if activation is None else 2), self.n)

    def fitted(self, x_bits: int, bits: int, room: int) -> Tiles:
        """One whose loads take no more of the shared memory, or the smallest.

        Args:
            x_bits: Bits of an element of x.
            bits: Those of an element of the weight.
            room: Bytes of the shared memory.
        """
        taken = self.num_stages * self.k * (self.m * x_bits + self.n * bits) // 8
        if taken <= room or (self.num_stages == 2 and self.n <= 32):
            return self
        less = {"num_stages": self.num_stages - 1} if self.num_stages > 2 else {"n": self.n // 2}
        return self._replace(**less).fitted(x_bits, bits, room)


def tiles(rows: int, bits: int) -> Tiles:
    """What is good for so many rows, and a weight of elements of so many bits."""
    if bits == 32:
        return Tiles(16, 64, 64, 4, 3) if rows <= 16 else Tiles(32, 64, 32, 4, 3)
    if bits == 4:
        # The instructions that codes and pairs of x need are shared by many rows.
        return _few_bits(rows)
    if rows <= 16:
        # All of the time goes into reading the weight: few rows of it, and many loads under way.
        return Tiles(16, 32, 128, 4, 5 if bits == 16 else 6)
    if bits == 8:
        # Codes become 16-bit numbers in registers: the fewer times the larger tiles are.
        small = Tiles(32 if rows <= 32 else 64, 64, 128, 8, 3)
        return small if rows <= 64 else Tiles(128, 128, 128, 8, 3)
    if rows <= 64:
        return Tiles(32 if rows <= 32 else 64, 64, 64, 4, 4)
    return Tiles(64, 128, 64, 4, 4) if rows <= 256 else Tiles(128, 128, 64, 8, 3)


def native_tiles(rows: int, n: int, processors: int) -> Tiles:
    """The same for codes of 8 bits that are multiplied as they are, and n rows of the weight."""
    if rows <= 16:
        return tiles(rows, 8)
    few = rows <= 64 or ceil_div(rows, 128) * ceil_div(n, 128) < processors
    return Tiles(64, 64, 128, 4, 4) if few else Tiles(128, 128, 128, 8, 4)


def expert_tiles(rows: int, dtype: torch.dtype) -> Tiles:
    """What is good for experts that have so many rows each, and weights of a dtype."""
    if dtype == torch.bfloat16 and rows >= 128:
        # Traffic from the cache is what limits them, which is half as much again with 128 x 128.
        return Tiles(128, 256, 64, 8, 3)
    return tiles(rows, 8 * dtype.itemsize)


def _few_bits(rows: int) -> Tiles:
    m = next((m for m in (16, 32, 64) if rows <= m), 128)
    return Tiles(m, 64, 128, 8 if m == 128 else 4, {16: 6, 128: 3}.get(m, 4))


def parts(programs: int, columns: int, bits: int, num_warps: int, processors: int) -> int:
    """Into how many parts columns are divided, whose sums are added up by another kernel.

    One program for each processor waits for its own loads most of the time; each step of it takes
    0.45 us whatever it reads, measured on an H100.
    """
    enough = processors * 16 // num_warps // max(programs, 1)
    return max(1, min(enough, columns // _LEAST[bits]))


def pair_tile(routed: bool, itemsize: int, outs: int, columns: int) -> tuple[int, int, int, int]:
    """Pairs, rows of the weight for each, and columns that a program has at once, and its warps.

    How many pairs there are has no part in it: with the tile the order of a sum may change.
    """
    if not routed:
        return 1, 4 if outs < 8192 else 8, 2048 if itemsize == 1 else 1024, 4
    k = max(128, min(next_power_of_2(columns), 1024))
    return 1024 // k, 8, k, 4


def pairs_win(n: int, bits: int) -> bool:
    """Whether a single row is multiplied by programs that go along some of n rows of the weight.

    Measured on an H100: tiles, of which 15 rows are idle, read many rows of a weight at a higher
    rate.
    """
    return n <= _LONG.get(bits, n)
