"""Random cases of the stores into a paged cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import Draw
from hal.testing.record import Sample

__all__ = ["CASES"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def scale_for(draw: Draw, heads: int) -> Any:
    """Of few bits, so that no quotient is all but halfway between two codes."""
    factors = draw.integers(heads, low=3, high=8) * draw.power(-6, 2)
    one = float(factors[0]) if heads else 1.0
    return draw.among(None, one, torch.tensor(one), torch.tensor([[one]]), factors)


def cache_for(draw: Draw, *shape: int, dtype: torch.dtype) -> Tensor:
    return draw.laid(draw.values(*shape).to(dtype), expand=False)


def store(draw: Draw) -> Sample:
    dtype = draw.floating()
    blocks, size, heads = draw.among(1, 2, 3, 5), draw.among(1, 2, 3, 4, 8, 16), draw.below(4)
    widths = draw.size(33), draw.size(33, least=0)
    tokens = min(draw.size(9, least=0), blocks * size)
    kind = draw.among(dtype, dtype, E4M3, E5M2)
    slots = draw.random.sample(range(blocks * size), tokens)
    slots = [-1 if draw.once_in(4) else slot for slot in slots]
    index = torch.tensor(slots, dtype=draw.among(torch.int32, torch.int64))
    rows = [draw.floats(tokens, heads, width, dtype=dtype, low=-12, high=9) for width in widths]
    caches = [cache_for(draw, blocks, size, heads, width, dtype=kind) for width in widths]
    names = ("k_scale", "v_scale") if kind != dtype and draw.once_in(2) else ()
    scales = {name: scale_for(draw, heads) for name in names}
    return draw.sample(*rows, *caches, draw.laid(index, expand=False), **scales)


CASES: dict[str, Callable[[Draw], Sample]] = {"store_kv_cache_": store}
