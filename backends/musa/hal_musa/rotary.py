"""Rotary position embeddings by sgl_kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal import Kernel
from hal_musa.libraries import HALVES, Offer, vendor

__all__ = ["OFFERS"]

_PLAIN = "musa_rotary_embedding_contiguous"
_BATCHED = "musa_batched_rotary_embedding_contiguous"
"""With offsets."""


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    assert key is not None  # The condition says so.
    query, key = (x.clone(memory_format=torch.contiguous_format) for x in (query, key))
    if query.numel() or key.numel():
        given = positions.long().contiguous(), query, key, query.shape[2], cos_sin_cache, is_neox
        rotate: Any = vendor(f"sgl_kernel.musa.{_PLAIN if offsets is None else _BATCHED}")
        # They write into query and key, and into nothing else that they declare as written.
        if offsets is None:
            rotate(*given)
        else:
            rotate(*given, cos_sin_cache.shape[1], offsets.long().contiguous())
    return query, key


def rotary_embedding_supports(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> str | None:
    if key is None:
        return "sgl_kernel needs a key"
    if query.dtype in HALVES:
        return f"sgl_kernel rounds the cosines, the sines and each product to {query.dtype}"
    if not query.dtype == key.dtype == cos_sin_cache.dtype == torch.float32:
        return "sgl_kernel takes heads and a cache of one dtype, float32"
    # A copy for each call would be of all positions that there are.
    return None if cos_sin_cache.is_contiguous() else "sgl_kernel takes a contiguous cache"


OFFERS = {
    "rotary_embedding": [
        Offer(
            Kernel(
                fn=rotary_embedding,
                supports=rotary_embedding_supports,
                name="sgl_kernel",
                graph_safe=True,
                deterministic=True,
                batch_invariant=True,
            ),
            needs=(
                *(f"sgl_kernel.musa.{name}" for name in (_PLAIN, _BATCHED)),
                *(f"sgl_kernel::{name}" for name in (_PLAIN, _BATCHED)),
            ),
        )
    ]
}
"""By op what there is.

torch_musa's ``rope`` takes the angles of tokens that follow each other, without positions, where
the op has positions and a cache of cosines and sines.
"""
