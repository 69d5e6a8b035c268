"""Random cases of the rotary position embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F16, F32, F64, HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES", "table"]

# The gates of 16 bits lie just above one rounding, which fewer elements than these may exceed.
MANY = 2048


def table(draw: Draw, width: int) -> Tensor:
    """Cosines and sines ``(1 - t**2, 2 * t) / (1 + t**2)``, of which any library has the same."""
    t = draw.values(draw.among(3, 8, 33), width // 2).double()
    cache = torch.cat((1 - t * t, 2 * t), dim=1) / (1 + t * t).repeat(1, 2)
    return draw.laid(cache.to(draw.among(F32, F32, F32, BF16, F16, F64)), expand=False)


def positions_for(draw: Draw, tokens: int, cache: Tensor) -> tuple[Tensor, Tensor | None]:
    """A row of the cache for each token, and offsets that take part in it."""
    rows = draw.integers(tokens, low=0, high=cache.shape[0])
    shift = draw.integers(tokens, low=-5, high=6)
    dtypes = [draw.among(torch.int32, torch.int64) for _ in range(2)]
    if draw.once_in(2):
        return draw.laid(rows.to(dtypes[0]), expand=False), None
    return draw.laid((rows - shift).to(dtypes[0])), draw.laid(shift.to(dtypes[1]))


def heads_for(draw: Draw, tokens: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Heads of ``dtype``: few elements, or as many as its gate asks for."""
    heads = draw.among(0, 1, 1, 2, 3, 4, 8)
    if dtype in HALVES and tokens * heads * head_dim >= NORMED:
        heads = -(-MANY // (tokens * head_dim))
    x = draw.values(tokens, heads, head_dim)
    x = x.to(dtype) if dtype in HALVES else draw.scaled(x, dtype)
    return draw.laid(draw.spoiled(x), expand=dtype not in HALVES)


def keys_for(draw: Draw, query: Tensor) -> Tensor | None:
    if draw.once_in(5):
        return None
    dtype = draw.floating() if draw.once_in(4) else query.dtype
    return heads_for(draw, query.shape[0], query.shape[2], dtype)


def rotary(draw: Draw) -> Sample:
    dtype, tokens = draw.floating(), draw.size(9, least=0)
    width = 2 * draw.among(0, 1, 1, 2, 3, 4, 5, 8)
    head_dim = max(width, 1) if draw.once_in(2) else width + draw.size(33)
    query = heads_for(draw, tokens, head_dim, dtype)
    cache = table(draw, width)
    positions, offsets = positions_for(draw, tokens, cache)
    is_neox = draw.among(None, True, False)
    args = (positions, query, keys_for(draw, query), cache)
    return draw.sample(*args, is_neox=is_neox, offsets=offsets)


def multimodal(draw: Draw) -> Sample:
    dtype, tokens = draw.floating(), draw.among(0, 1, 1, 2, 3)
    sections = [draw.below(3) for _ in range(draw.among(1, 2, 3, 3, 4, 5))]
    width = 2 * sum(sections)
    head_dim = max(width, 1) if draw.once_in(2) else width + draw.size(33)
    query = heads_for(draw, tokens, head_dim, dtype)
    cache = table(draw, width)
    rows = draw.integers(3, tokens, low=0, high=cache.shape[0])
    positions = draw.laid(rows.to(draw.among(torch.int32, torch.int64)), expand=False)
    given = draw.among(tuple(sections), sections)
    args = (positions, query, keys_for(draw, query), cache, given)
    return draw.sample(*args, is_neox=draw.among(None, True, False))


CASES: dict[str, Callable[[Draw], Sample]] = {
    "rotary_embedding": rotary,
    "multimodal_rotary_embedding": multimodal,
}
