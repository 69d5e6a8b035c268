"""Random cases of the attention ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F32, F64, HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES", "Cache", "scale_for"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Heads:
    """Sizes of a call, and whether its results are few.

    Few results are judged one by one. Then all values are positive, so that no output cancels and
    no log of a sum is close to 0.
    """

    def __init__(self, draw: Draw) -> None:
        self.dtype = draw.floating()
        self.queries = [draw.among(0, 1, 1, 1, 2, 3) for _ in range(draw.among(0, 1, 1, 2, 3))]
        self.keys = [draw.size(17, least=0) for _ in self.queries]
        self.kv_heads = draw.among(1, 1, 2, 3)
        self.heads = self.kv_heads * draw.among(1, 1, 2, 4)
        self.head_dim, self.value_dim = draw.size(33), draw.size(33)
        if draw.once_in(2):
            self.value_dim = self.head_dim
        rows = sum(self.queries) * self.heads
        if self.dtype in HALVES and rows * self.value_dim >= NORMED:
            self.value_dim = (NORMED - 1) // rows
        self.few = rows < NORMED

    def values(self, draw: Draw, *shape: int) -> Tensor:
        """Magnitudes at which scores lie within the range that softmax tells apart."""
        return draw.values(*shape, positive=self.few) * draw.among(0.5, 1.0, 1.0)


def starts(draw: Draw, lens: Sequence[int]) -> Tensor:
    ends = [sum(lens[:i]) for i in range(len(lens) + 1)]
    return torch.tensor(ends, dtype=draw.among(torch.int32, torch.int64))


def options(draw: Draw, of: Heads) -> dict[str, Any]:
    given: dict[str, Any] = {"causal": draw.among(None, True, False)}
    if draw.once_in(3):
        given["scale"] = scale_for(draw, of.head_dim)
    if draw.once_in(3):
        given["window"] = tuple(draw.among(-1, 0, 1, 3, 8, 2**31 - 1) for _ in range(2))
    if draw.once_in(4):
        given["softcap"] = draw.among(2.0, 8.0, 30)
    if draw.once_in(4):
        sinks = draw.values(of.heads, positive=True).to(draw.among(F32, BF16, F64))
        given["sinks"] = draw.laid(sinks)
    return given


def bounds(draw: Draw, *lens: Sequence[int]) -> list[int]:
    """The longest of each, or something above it."""
    slack = 0 if draw.once_in(2) else draw.below(50)
    return [max(part, default=0) + slack for part in lens]


def query(draw: Draw, of: Heads) -> Tensor:
    """Queries, perhaps with padding behind them."""
    padding = draw.below(4) if draw.once_in(5) else 0
    q = of.values(draw, sum(of.queries) + padding, of.heads, of.head_dim).to(of.dtype)
    return draw.laid(_nan(draw, q))


def _nan(draw: Draw, x: Tensor) -> Tensor:
    if not x.numel() or not draw.once_in(16):
        return x
    x = x.clone()
    x.view(-1)[draw.below(x.numel())] = math.nan
    return x


def scale_for(draw: Draw, head_dim: int) -> float:
    """One with which scores stay below 16: larger ones are rounded by more than weights may be."""
    return draw.among(0.5, 1.0, 2.0) / 2 ** head_dim.bit_length()


def varlen(draw: Draw) -> Sample:
    of = Heads(draw)
    q, tokens = query(draw, of), sum(of.keys)
    k = of.values(draw, tokens, of.kv_heads, of.head_dim).to(of.dtype)
    v = of.values(draw, tokens, of.kv_heads, of.value_dim).to(of.dtype)
    k, v = draw.laid(_nan(draw, k)), draw.laid(draw.spoiled(v))
    cuts = starts(draw, of.queries), starts(draw, of.keys)
    most = bounds(draw, of.queries, of.keys)
    return draw.sample(q, k, v, *cuts, *most, **options(draw, of))


class Cache:
    """Blocks for sequences of some lengths, in a random order; what is not theirs is broken."""

    def __init__(self, draw: Draw, lens: Sequence[int]) -> None:
        self.lens, self.size = lens, draw.among(1, 2, 3, 4, 8, 16)
        needed = [-(-length // self.size) for length in lens]
        self.blocks = sum(needed) + draw.below(3)
        order = list(range(self.blocks))
        draw.random.shuffle(order)
        broken = draw.among(-1, 2**31 - 1, self.blocks)
        width = max(needed, default=0) + draw.below(2)
        rows = [[order.pop() for _ in range(count)] for count in needed]
        padded = [row + [broken] * (width - len(row)) for row in rows]
        kind = draw.among(torch.int32, torch.int64)
        table = torch.tensor(padded, dtype=kind).view(len(rows), width)
        self.table, self.seq_lens = draw.laid(table, expand=False), torch.tensor(lens, dtype=kind)
        last = [(row, length) for row, length in zip(rows, lens, strict=True) if length]
        slots = [
            row[j // self.size] * self.size + j % self.size for row, n in last for j in range(n)
        ]
        self.slots = torch.tensor(slots, dtype=torch.int64)

    def holding(self, values: Tensor) -> Tensor:
        """Pages of ``values(rows, ...)``, NaN in all rows that no sequence has."""
        pages = torch.full((self.blocks * self.size, *values.shape[1:]), math.nan)
        pages[self.slots] = values
        return pages.view(self.blocks, self.size, *values.shape[1:])


def scales(draw: Draw, kv_heads: int) -> dict[str, Any]:
    """What the keys and the values of an 8-bit cache are multiplied with."""

    def one() -> Any:
        kind = draw.below(4)
        if kind == 0:
            return None
        if kind == 1:
            return draw.among(0.25, 0.7, 1, 1.5)
        shape = (kv_heads,) if kind == 2 else draw.among((), (1,))
        return draw.values(*shape, positive=True)

    return {"k_scale": one(), "v_scale": one()}


def paged(draw: Draw) -> Sample:
    of = Heads(draw)
    q, cache = query(draw, of), Cache(draw, of.keys)
    dtype = draw.among(E4M3, E5M2) if draw.once_in(3) else of.dtype
    pages: list[Tensor] = []
    for width in (of.head_dim, of.value_dim):
        values = of.values(draw, sum(of.keys), of.kv_heads, width)
        pages.append(draw.laid(cache.holding(values).to(dtype), expand=False))
    both = scales(draw, of.kv_heads) if dtype != of.dtype and draw.once_in(2) else {}
    most = bounds(draw, of.queries, of.keys)
    args = (q, *pages, cache.table, cache.seq_lens, starts(draw, of.queries), *most)
    return draw.sample(*args, **options(draw, of), **both)


def merge(draw: Draw) -> Sample:
    """Sides of one sign: their log of a sum is not close to 0."""
    dtype = draw.floating()
    tokens, heads, width = draw.among(0, 1, 1, 2, 3), draw.among(0, 1, 1, 2, 3), draw.size(33)
    if dtype in HALVES and tokens * heads * width >= NORMED:
        width = 7
    few = tokens * heads * width < NORMED
    spread, sign = draw.power(0, 5), draw.among(1, -1)
    sides: list[Tensor] = []
    for _ in range(2):
        out = draw.values(tokens, heads, width, positive=few).to(dtype)
        lse = (draw.values(tokens, heads, positive=True) * spread + 2) * sign
        lse = lse.to(F64 if dtype == F64 else F32)
        if lse.numel() and draw.once_in(4):
            place, value = draw.below(lse.numel()), draw.among(-math.inf, math.inf, math.nan)
            lse.view(-1)[place] = value
            if value != math.nan and draw.once_in(2):
                out.view(-1, width)[place] = math.nan
        sides += [draw.laid(out), draw.laid(lse)]
    return draw.sample(*sides)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "varlen_attention": varlen,
    "paged_attention": paged,
    "merge_attention_states": merge,
}
