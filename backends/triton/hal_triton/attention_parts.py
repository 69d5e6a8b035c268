"""What attention kernels are told about scores, and about keys and values in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.launch import next_power_of_2
from hal_triton.layout import Convert, flat_like, same, unit
from hal_triton.target import served

__all__ = [
    "ONE",
    "Keys",
    "Query",
    "Scale",
    "Scores",
    "Width",
    "block_of",
    "columns_together",
    "head_width",
    "numbers",
    "served_widths",
    "within",
]

_LOG2E = 1.4426950408889634
_FAR = 2**30 - 1
"""More than any distance, and so little that the sum of two is an int32."""
_LEAST_SCALE = 2.0**-126
"""One that float32 has as 0 would make NaN of keys that are not seen; all such count as 0."""
_LEAST = 16
"""Columns and rows of a tile that is multiplied."""


class Query(NamedTuple):
    """How queries [tokens, heads, head_dim] lie."""

    q: Tensor
    """One like theirs, for its device and dtype."""
    strides: tuple[int, ...]
    """Of tokens and heads, of the first columns and of the rest."""
    sequences: int
    longest: int
    """No sequence has more."""
    ragged: bool = True
    """Whether sequences start where a tensor says, and have one query each if not."""

    @classmethod
    def like(cls, q: Tensor, starts: Tensor, longest: int) -> tuple[Convert, Query]:
        """What makes a kernel's argument of an op's, and how that lies."""
        convert, strides = columns_together(q)
        return convert, cls(q, strides[:2] * 2, starts.shape[0] - 1, longest)


class Scale(NamedTuple):
    """What keys or values are multiplied with: a number, or one in memory for each head."""

    number: float = 1.0
    stride: int = 0
    convert: Convert = same
    """What makes a kernel's argument of an op's."""

    @classmethod
    def of(cls, scale: Tensor | float | None) -> Scale:
        """As ops take it."""
        if isinstance(scale, Tensor):
            return cls(1.0, int(scale.numel() > 1), flat_like(scale))
        return cls(1.0 if scale is None else float(scale), 0, _none)


ONE = Scale()


class Scores(NamedTuple):
    """How a product of query and key becomes an exponent of 2, and which keys a query sees."""

    left: int
    right: int
    sign: float
    """Of the scale, 0 if that is: queries are multiplied with it, so that the rest is positive."""
    scale: float
    cap: float
    cap_scale: float

    @classmethod
    def of(
        cls,
        scale: float,
        softcap: float = 0.0,
        causal: bool = False,
        window: Sequence[int] = (-1, -1),
    ) -> Scores:
        """As ops take it."""
        left, right = (_FAR if side < 0 else min(side, _FAR) for side in window)
        scale = scale if abs(scale) >= _LEAST_SCALE else 0.0
        size = abs(scale) or 1.0
        sign = math.copysign(1.0, scale) if scale else 0.0
        inner, outer = (size / softcap, 1.0) if softcap else (0.0, size)
        return cls(left, 0 if causal else right, sign, outer * _LOG2E, softcap, inner)

    @property
    def shape(self) -> tuple[float, float, float, float]:
        """The numbers that shape scores."""
        return self[2:]


class Width(NamedTuple):
    """The columns of queries and keys, in one block or in two, and those of values."""

    first: int
    rest: int
    value_dim: int
    block: int
    rest_block: int
    """0 if there is no rest."""
    value_block: int

    @property
    def columns(self) -> int:
        """Those of a tile of queries or keys."""
        return self.block + self.rest_block

    @property
    def widest(self) -> int:
        """Those of the wider of a tile of keys and one of values."""
        return max(self.columns, self.value_block)

    @property
    def full(self) -> bool:
        """Whether no block is wider than what it holds."""
        return self[:3] == self[3:]


def block_of(columns: int) -> int:
    """Columns of a tile that holds so many."""
    return max(next_power_of_2(columns), _LEAST)


def head_width(head_dim: int, value_dim: int) -> Width:
    """Two blocks where one would have a quarter of its columns or more to spare."""
    block, half = block_of(head_dim), next_power_of_2(head_dim) // 2
    if head_dim > 64 and half + block_of(head_dim - half) < block:
        rest = head_dim - half
        return Width(half, rest, value_dim, half, block_of(rest), block_of(value_dim))
    return Width(head_dim, 0, value_dim, block, 0, block_of(value_dim))


class Keys(NamedTuple):
    """How keys and values lie, one sequence after the other or in pages."""

    heads: int
    itemsize: int
    most: int
    block_size: int
    """0 if they are not in pages."""
    table_stride: int
    k: tuple[int, ...]
    """Strides of pages, rows, heads and columns."""
    v: tuple[int, ...] | None
    """None if values are the first part of keys."""

    @classmethod
    def ragged(cls, k: Tensor, v: Tensor) -> Keys:
        """[tokens, kv_heads, head_dim] each."""
        return cls(k.shape[1], k.itemsize, 0, 0, 0, (0, *k.stride()), (0, *v.stride()))

    @classmethod
    def paged(
        cls, k: Tensor, v: Tensor | None, pages: int, table_stride: int, most: int = _FAR
    ) -> Keys:
        """[blocks, block_size, kv_heads, head_dim] each, with so many pages of a sequence."""
        most = min(most, pages * k.shape[1]) if k.shape[0] else 0
        strides = k.stride(), None if v is None else v.stride()
        return cls(k.shape[2], k.itemsize, most, k.shape[1], table_stride, *strides)

    @property
    def sizes(self) -> tuple[int, int]:
        """The block size and its logarithm, where it has one."""
        return self.block_size, max(self.block_size.bit_length() - 1, 0)

    @property
    def steps(self) -> tuple[int, ...]:
        """The stride of the table and all others."""
        return self.table_stride, *self.k, *(self.v or (0, 0, 0, 0))

    def pages(self, tile: int) -> int:
        """PAGES for tiles of so many keys."""
        if self.block_size == 0:
            return 0
        if self.block_size & (self.block_size - 1):
            return 1
        return 2 if self.block_size < tile else 3

    def columns(self, width: Width) -> int:
        """Those of a tile of keys and of one of values."""
        return width.columns + (0 if self.v is None else width.value_block)

    def unit(self, width: Width, *strides: int) -> int:
        """UNIT for these and further strides; 0 if columns do not lie side by side."""
        if self.k[3] != 1 or (self.v is not None and self.v[3] != 1):
            return 0
        together = *self.k[:3], *(self.v or ())[:3], width.first, width.value_dim
        return unit(*together, *strides)


def numbers(
    query: Query, keys: Keys, width: Width, scores: Scores, k_scale: Scale, v_scale: Scale
) -> tuple[float, ...]:
    """What every kernel is told, in its order, from ``most`` on."""
    return (
        *(keys.most, query.q.shape[1] // keys.heads, *width[:3], *keys.sizes, *scores[:2]),
        *(*query.strides, *keys.steps, k_scale.stride, v_scale.stride),
        *(*scores.shape, v_scale.number),
    )


def columns_together(x: Tensor) -> tuple[Convert, tuple[int, ...]]:
    """What has the elements of a row of tensors like ``x`` lie side by side, and strides then."""
    if x.stride(-1) == 1:
        return same, x.stride()
    return torch.Tensor.contiguous, x.contiguous().stride()


def _none(_scale: Any) -> None:
    """A number is not in memory."""


def within(most: int, *sizes: tuple[str, int]) -> str | None:
    """None, or which of some sizes is above ``most``."""
    above = [name for name, size in sizes if size > most]
    return f"{above[0]} is above {most}" if above else None


def served_widths(
    args: tuple[Any, ...], kwargs: dict[str, Any], *sizes: tuple[str, int]
) -> str | None:
    """The condition of kernels whose programs hold whole heads."""
    return served(*args, **kwargs) or within(512, *sizes)
