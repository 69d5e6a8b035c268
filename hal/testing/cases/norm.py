"""Random cases of the normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hal.testing.cases.draw import F32, F64, HALVES, NORMED, Draw
from hal.testing.cases.rotary import table
from hal.testing.record import Sample

__all__ = ["CASES"]


def shape_for(draw: Draw, dtype: torch.dtype) -> tuple[int, ...]:
    """Rows of one to a few hundred columns; many short rows of 16 bits would all round alike."""
    columns = draw.size(257, least=0)
    lead = draw.rows(columns, dtype)
    if dtype in HALVES and columns < 17 and math.prod(lead) * columns >= NORMED:
        return (max(NORMED // max(columns, 1) - 1, 1), columns)
    return (*lead, columns)


def vector(draw: Draw, size: int, dtype: torch.dtype) -> Tensor:
    """A weight within 1/8 and 2 of a dtype that may be its own."""
    kind = draw.floating() if draw.once_in(4) else dtype
    return draw.laid(draw.values(size, positive=True).to(kind))


def eps_for(draw: Draw) -> dict[str, float]:
    if draw.once_in(2):
        return {}
    return {"eps": draw.among(1e-6, 1e-5, 1e-3, 1e-12, 1.0, 0.0)}


def rms(draw: Draw) -> Sample:
    dtype = draw.floating()
    shape = shape_for(draw, dtype)
    weight = None if draw.once_in(5) else vector(draw, shape[-1], dtype)
    return draw.sample(draw.floats(*shape, dtype=dtype), weight, **eps_for(draw))


def gemma(draw: Draw) -> Sample:
    dtype = draw.floating()
    shape = shape_for(draw, dtype)
    x, weight = draw.floats(*shape, dtype=dtype), vector(draw, shape[-1], dtype)
    return draw.sample(x, weight, **eps_for(draw))


def fused(draw: Draw) -> Sample:
    dtype = draw.floating()
    shape = shape_for(draw, dtype)
    other = draw.among(F32, F64) if draw.once_in(4) else dtype
    x = draw.floats(*shape, dtype=dtype, low=-8, high=8)
    residual = draw.floats(*shape, dtype=other, low=-8, high=8)
    return draw.sample(x, residual, vector(draw, shape[-1], dtype), **eps_for(draw))


def layer(draw: Draw) -> Sample:
    dtype = draw.floating()
    shape = shape_for(draw, dtype)
    x = draw.floats(*shape, dtype=dtype)
    weight = None if draw.once_in(5) else vector(draw, shape[-1], dtype)
    # Smaller than what it is added to, so that the two do not cancel.
    bias = None if draw.once_in(5) else vector(draw, shape[-1], dtype) / 64
    return draw.sample(x, weight, bias, **eps_for(draw))


def qk_norm_rope(draw: Draw) -> Sample:
    """Few heads: the oracle rotates them element by element."""
    dtype, head_dim = draw.floating(), draw.among(1, 2, 3, 4, 6, 7, 8, 10, 16, 17)
    q_heads, kv_heads = draw.below(3), draw.below(3)
    heads = q_heads + 2 * kv_heads
    tokens = draw.among(0, 1, 1, 2, 3)
    if dtype in HALVES and tokens * heads * head_dim >= NORMED:
        head_dim, tokens = min(head_dim, 8), 1
    qkv = draw.floats(tokens, heads * head_dim, dtype=dtype, low=-8, high=8)
    weights = [vector(draw, head_dim, dtype) for _ in range(2)]
    cache = table(draw, 2 * draw.below(head_dim // 2 + 1))
    positions = draw.laid(draw.integers(tokens, low=0, high=cache.shape[0]), expand=False)
    eps, is_neox = draw.among(1e-6, 1e-5, 1e-3, 0.0), draw.once_in(2)
    args = (qkv, *weights, cache, positions, q_heads, kv_heads)
    return draw.sample(*args, eps=eps, is_neox=is_neox)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "rms_norm": rms,
    "fused_add_rms_norm": fused,
    "gemma_rms_norm": gemma,
    "gemma_fused_add_rms_norm": fused,
    "layer_norm": layer,
    "qk_norm_rope": qk_norm_rope,
}
