"""Random cases of the products with quantised matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F16, F32, F64, HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES", "Product"]

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
# 16-bit results that are judged by their norm; fewer than for rows of a norm, as they are alike.
MANY = 192


class Product:
    """The sizes of a product, and whether it is ``exact``.

    A sum may cancel, and then its rounding errors are large beside it. Where few results are judged
    one by one, factors are small integers, so that nothing is rounded before the end.
    """

    def __init__(self, draw: Draw, out: torch.dtype, even: bool = False) -> None:
        self.draw, self.unit = draw, 1.0
        self.lead, self.n, self.k = draw.lead(), draw.size(33, least=0), draw.size(129, least=0)
        if even:
            self.n, self.k = 2 * (self.n // 2), 2 * (self.k // 2)
        results = math.prod(self.lead) * self.n
        self.exact = results < NORMED or draw.once_in(8) or self.k == 0
        if self.exact and out in HALVES and results >= NORMED:
            self.lead = ()
        if not self.exact and out in HALVES:
            self.lead = (max(math.prod(self.lead), -(-MANY // self.n)),)

    def floats(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A factor in floating point."""
        x = self.draw.coarse(*shape) * self.unit if self.exact else self.draw.values(*shape)
        return self._laid(x.to(dtype))

    def codes(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A factor of 8 bits."""
        if self.exact:
            return self._laid((self.draw.coarse(*shape) * self.unit).to(dtype))
        return self._laid((self.draw.values(*shape) * (63 if dtype == INT8 else 16)).to(dtype))

    def nibbles(self, *shape: int) -> Tensor:
        """Bytes of two codes."""
        return self._laid(self.draw.integers(*shape, low=0, high=256).to(torch.uint8))

    def scale(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        """Powers of two, or anything within 1/8 and 2."""
        if self.exact:
            scale = torch.exp2(self.draw.integers(*shape, low=-1, high=2).float())
        else:
            scale = self.draw.values(*shape, positive=True)
        return self._laid(scale.to(dtype))

    def _laid(self, x: Tensor) -> Tensor:
        return self.draw.laid(x, expand=self.exact)


def out_for(draw: Draw) -> torch.dtype:
    return draw.among(F32, F16, BF16)


def broken(draw: Draw, x: Tensor) -> Tensor:
    """A NaN in a copy of ``x``, now and then."""
    if x.dtype == INT8 or not x.numel() or not draw.once_in(12):
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[draw.below(x.numel())] = math.nan
    return x


def scaled_mm(draw: Draw) -> Sample:
    """At most as many results as the oracle can add up one by one."""
    out = out_for(draw)
    of = Product(draw, out)
    if math.prod(of.lead) * of.n > MANY:
        of.lead, of.n = (MANY // 8,), 8
    dtypes = draw.among((INT8, INT8), (E4M3, E4M3), (E4M3, E5M2), (E5M2, E5M2))
    a, b = of.codes(*of.lead, of.k, dtype=dtypes[0]), of.codes(of.n, of.k, dtype=dtypes[1])
    shapes = [draw.among(of.lead, (*of.lead, 1), (1,)), draw.among((of.n,), (of.n, 1), ())]
    scales = [of.scale(*shape) for shape in shapes]
    bias = of.floats(of.n, dtype=draw.floating()) if draw.once_in(3) else None
    return draw.sample(broken(draw, a), broken(draw, b), *scales, out_dtype=out, bias=bias)


def block_scaled_mm(draw: Draw) -> Sample:
    out = out_for(draw)
    of = Product(draw, out)
    block = draw.among((128, 128), (128, 128), (16, 32), (3, 5), (1, 1), (64, 128), (5, 2**40))
    a = of.codes(*of.lead, of.k, dtype=draw.among(E4M3, E5M2))
    b = of.codes(of.n, of.k, dtype=draw.among(E4M3, E5M2))
    across = -(-of.k // block[1])
    scales = of.scale(*of.lead, across), of.scale(-(-of.n // block[0]), across)
    given: dict[str, Any] = {"out_dtype": out}
    if block != (128, 128) or draw.once_in(2):
        given["block"] = draw.among(block, list(block))
    return draw.sample(broken(draw, a), broken(draw, b), *scales, **given)


def w4a16_mm(draw: Draw) -> Sample:
    dtype = draw.floating()
    of = Product(draw, dtype, even=True)
    size = draw.among(1, 2, 3, 16, 32, 64, 128, 2**40)
    groups = -(-of.k // size)
    x = broken(draw, of.floats(*of.lead, of.k, dtype=dtype))
    scales = of.scale(of.n, groups, dtype=draw.among(dtype, dtype, F32, F16, BF16))
    zeros = None
    if draw.once_in(2):
        drawn = draw.integers(of.n, groups, low=0, high=16)
        zeros = draw.laid(drawn.to(draw.among(torch.uint8, F16, F32, F64)))
    return draw.sample(x, of.nibbles(of.n, of.k // 2), scales, group_size=size, zeros=zeros)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "scaled_mm": scaled_mm,
    "block_scaled_mm": block_scaled_mm,
    "w4a16_mm": w4a16_mm,
}
