"""Declarations of the rotary position embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor


def _check_heads(query: Tensor, key: Tensor | None) -> None:
    check_floating(query=query, key=key)
    check(query.dim() == 3, "query must be [tokens, heads, head_dim]", query=query)
    if key is not None:
        check(
            key.dim() == 3 and key.shape[0] == query.shape[0] and key.shape[2] == query.shape[2],
            "key must be [tokens, key heads, head_dim], with the tokens and head_dim of query",
            key=key,
            query=query,
        )


def _check_cache(cos_sin_cache: Tensor, query: Tensor) -> None:
    check_floating(cos_sin_cache=cos_sin_cache)
    check(
        cos_sin_cache.dim() == 2,
        "cos_sin_cache must be [max_position, rotary_dim]",
        cos_sin_cache=cos_sin_cache,
    )
    check(
        cos_sin_cache.shape[1] % 2 == 0 and cos_sin_cache.shape[1] <= query.shape[2],
        "cos_sin_cache must have an even last dimension, at most the head_dim of query",
        cos_sin_cache=cos_sin_cache,
        query=query,
    )


@op(inplace=("query", "key"), grad=True)
def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Rotate pairs: ``(a, b) -> (a * cos - b * sin, b * cos + a * sin)``, in float32, rounded once.

    Token t takes row ``positions[t] + offsets[t]`` of the cache, the sum taken in 64 bits
    (arXiv 2104.09864). The first rotary_dim elements of each head turn, in pairs; the rest passes
    through unchanged. The cache is converted to float32 (float64 for float64 heads), never to the
    dtype of the heads. NaN and infinities stay within their pair; in the cache, within the tokens
    that take its row.

    Positions outside the cache are not checked, which would wait for the device: the native kernel
    on a CPU raises torch's IndexError; elsewhere the token's heads are undefined, or the device
    faults.

    Args:
        positions: [tokens], int32 or int64, with any stride.
        query: [tokens, heads, head_dim], floating point, with any strides; no tokens or no heads
            give an empty result.
        key: [tokens, key heads, head_dim], floating point, with any strides, its dtype its own; or
            None.
        cos_sin_cache: [max_position, rotary_dim], floating point: rotary_dim / 2 cosines, then as
            many sines; rotary_dim is even and at most head_dim.
        is_neox: Pairs are elements (i, i + rotary_dim / 2), else (2i, 2i + 1).
        offsets: [tokens], int32 or int64, added to the positions; say, where in a cache of several
            models the token's model begins.

    Returns:
        The rotated query and key, each in its own shape and dtype; None for a key that is None.

    Example:
        >>> query, quarter_turn = torch.tensor([[[3.0, 4.0, 5.0]]]), torch.tensor([[0.0, 1.0]])
        >>> hal.ops.rotary_embedding(torch.tensor([0]), query, None, quarter_turn)
        (tensor([[[-4.,  3.,  5.]]]), None)
    """
    _check_heads(query, key)
    check_dtype((torch.int32, torch.int64), positions=positions, offsets=offsets)
    check_shape(query.shape[:1], positions=positions, offsets=offsets)
    _check_cache(cos_sin_cache, query)
    return query.new_empty(query.shape), None if key is None else key.new_empty(key.shape)
