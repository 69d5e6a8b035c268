"""What the makers of random cases draw from: the same values for a seed, on any machine."""

from __future__ import annotations

import functools
import math
import random
from typing import Any, TypeVar

import torch
from torch import Tensor

from hal.testing.record import Sample

__all__ = ["BF16", "F16", "F32", "F64", "HALVES", "Draw", "enough"]

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
HALVES = (F16, BF16)

# Primes, and both sides of the widths that kernels work in.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 32, 33, 47, 63, 64, 65, 97, 127, 128)
# A relative norm is taken over 64 elements and more. That of one rounding to 16 bits is spread by
# what the few largest elements happen to be; over 320 of like size it stays within the gates.
NORMED, ENOUGH = 64, 320

T = TypeVar("T")


@functools.cache
def _sizes(most: int) -> tuple[int, ...]:
    return tuple(size for size in (*SIZES, 129, 131, 191, 255, 256, 257) if size <= most)


def enough(rows: int, columns: int, dtype: torch.dtype) -> int:
    """How many rows to have, at least ``rows``, for a result of 16 bits to be judged as a whole."""
    if dtype in HALVES and NORMED <= rows * columns < ENOUGH:
        return -(-ENOUGH // columns)
    return rows


class Draw:
    """The choices of one case, and its tensors.

    Values are integers times powers of two, so that no library's logarithm or cosine has a part in
    them.
    """

    def __init__(self, op: str, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"{op} {seed}")

    def sample(self, *args: Any, **kwargs: Any) -> Sample:
        """The case; arguments by name that are None stay out."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        return Sample(f"seed {self.seed}", args, given)

    def once_in(self, many: int) -> bool:
        """True one time in ``many``."""
        return self.random.random() * many < 1

    def among(self, *options: T) -> T:
        """One of the options."""
        return options[int(self.random.random() * len(options))]

    def below(self, limit: int, least: int = 0) -> int:
        """An integer from ``least`` to ``limit - 1``."""
        return least + int(self.random.random() * (limit - least))

    def size(self, most: int = 129, least: int = 1) -> int:
        """A size from ``least`` to ``most``; 0, where it may be, comes seldom."""
        if least == 0:
            if self.once_in(24):
                return 0
            least = 1
        sizes = _sizes(most)
        return max(least, sizes[int(self.random.random() * len(sizes))])

    def lead(self, most: int = 7) -> tuple[int, ...]:
        """Leading dimensions of any number, none to three, with few rows in all."""
        kind = self.below(16)
        if kind < 10:
            return (self.size(most),)
        if kind < 12:
            return ()
        if kind < 15:
            return (self.below(4, 1), self.below(3, 1), 2)[: self.below(4, 2)]
        return self.among((0,), (2, 0), (0, 3))

    def floating(self) -> torch.dtype:
        """A dtype of activations."""
        return self.among(F32, F32, F16, BF16, BF16, F64)

    def integers(self, *shape: int, low: int = -(2**15), high: int = 2**15) -> Tensor:
        """Int32 from ``low`` to ``high - 1``, which lie at most 2**16 apart."""
        count = math.prod(shape)
        if count == 0:
            return torch.zeros(shape, dtype=torch.int32)
        drawn = bytearray(self.random.randbytes(2 * count))
        values = torch.frombuffer(drawn, dtype=torch.int16).view(shape).int()
        if high - low == 2**16:
            return values
        return ((values & 0xFFFF) * (high - low) >> 16) + low

    def values(self, *shape: int, positive: bool = False) -> Tensor:
        """Float32 within -2 and 2, or above 1/8: multiples of 2**-14, sums of which are exact."""
        drawn = self.integers(*shape)
        return (drawn.abs() + 2**11 if positive else drawn) * 2.0**-14

    def coarse(self, *shape: int, most: int = 7) -> Tensor:
        """Float32 integers within ``-most`` and ``most``, products of which sum exactly."""
        return self.integers(*shape, low=-most, high=most + 1).float()

    def power(self, low: int, high: int) -> float:
        """A power of two with an exponent within ``low`` and ``high``."""
        return 2.0 ** self.below(high + 1, low)

    def scaled(self, x: Tensor, dtype: torch.dtype, low: int = -24, high: int = 24) -> Tensor:
        """``x`` at another order of magnitude, in ``dtype``; rows of many if that can be judged."""
        if dtype == F16:
            low, high = max(low, -5), min(high, 4)
        if self.once_in(3):
            return x.to(dtype)
        if dtype not in HALVES and x.dim() > 1 and self.once_in(3):
            powers = self.integers(*x.shape[:-1], 1, low=low, high=high + 1)
            return torch.ldexp(x, powers).to(dtype)
        return (x * self.power(low, high)).to(dtype)

    def spoiled(self, x: Tensor, *values: float) -> Tensor:
        """Now and then a row of zeros or one of ``values`` in a copy of ``x``; else ``x``.

        Without ``values`` it is NaN or an infinity.
        """
        if not x.numel() or not self.once_in(8):
            return x
        x = x.clone(memory_format=torch.contiguous_format)
        if x.dim() > 1 and self.once_in(3):
            x[self.below(x.shape[0])] = 0
        else:
            value = self.among(*(values or (math.nan, math.inf, -math.inf)))
            x.view(-1)[self.below(x.numel())] = value
        return x

    def rows(self, columns: int, dtype: torch.dtype, most: int = 7) -> tuple[int, ...]:
        """Leading dimensions for rows of ``columns`` results of ``dtype``."""
        lead = self.lead(most)
        rows = math.prod(lead)
        more = enough(rows, columns, dtype)
        return lead if more == rows else (more,)

    def floats(self, *shape: int, dtype: torch.dtype, low: int = -24, high: int = 24) -> Tensor:
        """Values of any magnitude, one of them perhaps not finite, in any layout."""
        x = self.scaled(self.values(*shape), dtype, low, high)
        return self.laid(self.spoiled(x), expand=dtype not in HALVES)

    def laid(self, x: Tensor, expand: bool = True) -> Tensor:
        """``x`` with other strides, every second time; what lies between is NaN or a large number.

        With ``expand`` its first row may stand for all.
        """
        kind = self.below(12)
        if kind > 5 or x.dim() == 0:
            return x
        if kind == 0 and x.dim() > 1:
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == 1 and x.dim() > 1 and x.shape[0] and expand:
            return x[:1].expand(x.shape)
        *lead, size = x.shape
        if kind == 2:
            return _within(x, (*lead, 2 * size), (..., slice(None, None, 2)))
        if kind == 3:
            return _within(x, (2 * x.shape[0], *x.shape[1:]), (slice(1, None, 2),))
        if kind == 4:
            return _within(x, (x.numel() + 1,), (slice(1, None),)).view(x.shape)
        return _within(x, (*lead, size + 5), (..., slice(3, 3 + size)))


def _within(x: Tensor, shape: tuple[int, ...], where: tuple[Any, ...]) -> Tensor:
    """``x`` as a part of a larger tensor."""
    wider = torch.full(shape, math.nan if x.is_floating_point() else 77, dtype=x.dtype)
    part = wider[where]
    part.copy_(x.view(part.shape))
    return part
