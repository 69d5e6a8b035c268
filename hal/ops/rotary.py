"""Declarations of the rotary position embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

INDEX = (torch.int32, torch.int64)


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


def check_cos_sin(cos_sin_cache: Tensor, **heads: Tensor) -> None:
    """Require a cache of cosines and sines, no wider than the last dimension of ``heads``."""
    check_floating(cos_sin_cache=cos_sin_cache)
    check(
        cos_sin_cache.dim() == 2,
        "cos_sin_cache must be [max_position, rotary_dim]",
        cos_sin_cache=cos_sin_cache,
    )
    for name, head in heads.items():
        check(
            cos_sin_cache.shape[1] % 2 == 0 and cos_sin_cache.shape[1] <= head.shape[-1],
            f"cos_sin_cache must have an even last dimension, at most the head_dim of {name}",
            cos_sin_cache=cos_sin_cache,
            **heads,
        )


def _check_sections(sections: Sequence[int], cos_sin_cache: Tensor) -> None:
    check(
        len(sections) > 0 and min(sections) >= 0,
        "sections must be one or more numbers of pairs, none negative",
        sections=sections,
    )
    check(
        sum(sections) * 2 == cos_sin_cache.shape[1],
        "sections must add up to half the last dimension of cos_sin_cache",
        sections=sections,
        cos_sin_cache=cos_sin_cache,
    )


def _results(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return query.new_empty(query.shape), None if key is None else key.new_empty(key.shape)


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
    check_dtype(INDEX, positions=positions, offsets=offsets)
    check_shape(query.shape[:1], positions=positions, offsets=offsets)
    check_cos_sin(cos_sin_cache, query=query)
    return _results(query, key)


@op(inplace=("query", "key"))
def multimodal_rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """``rotary_embedding`` by three positions a token: of its frame, its row and its column.

    The pairs are cut into sections, in the order of the cache's columns, and section s turns by
    position s % 3 (arXiv 2409.12191, 2.1). Qwen2-VL, Qwen2.5-VL and GLM-4V have three sections, say
    (16, 24, 24). Qwen3-VL, which deals the pairs out in turn, has many: its (24, 20, 20) is here
    60 sections of 1 and one of 4. Text has three equal positions, for which this is
    ``rotary_embedding``; all else is as there.

    Args:
        positions: [3, tokens], int32 or int64, with any strides. Those outside the cache are not
            checked, which would wait for the device.
        query: [tokens, heads, head_dim], floating point, with any strides.
        key: [tokens, key heads, head_dim], floating point, with any strides, its dtype its own; or
            None.
        cos_sin_cache: [max_position, rotary_dim], floating point: rotary_dim / 2 cosines, then as
            many sines; rotary_dim is even and at most head_dim.
        sections: How many pairs each section has, at least 0; they add up to rotary_dim / 2.
        is_neox: Pairs are elements (i, i + rotary_dim / 2), else (2i, 2i + 1).

    Returns:
        The rotated query and key, each in its own shape and dtype; None for a key that is None.

    Example:
        >>> query, positions = torch.ones(1, 1, 4), torch.tensor([[0], [1], [0]])
        >>> no_turn, quarter_turn = [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]
        >>> cache = torch.tensor([no_turn, quarter_turn])
        >>> hal.ops.multimodal_rotary_embedding(positions, query, None, cache, (1, 1, 0))
        (tensor([[[ 1., -1.,  1.,  1.]]]), None)
    """
    _check_heads(query, key)
    check_dtype(INDEX, positions=positions)
    check_shape((3, query.shape[0]), positions=positions)
    check_cos_sin(cos_sin_cache, query=query)
    _check_sections(sections, cos_sin_cache)
    return _results(query, key)
