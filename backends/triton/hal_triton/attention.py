"""Attention by Triton, of queries to keys that follow one another or lie in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hal_triton.attention_parts import (
    Keys,
    Scale,
    Scores,
    Tile,
    Width,
    columns_together,
    head_width,
    results,
    served_widths,
)
from hal_triton.attention_split import Query, attend_split
from hal_triton.kernels.attention import attend
from hal_triton.layout import ceil_div, flat
from hal_triton.target import shared_memory

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "paged_attention",
    "paged_attention_supports",
    "varlen_attention",
    "varlen_attention_supports",
]

_FEW = 16
"""Queries of a sequence up to which programs share its keys, if these are in pages."""


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    del max_seqlen_k
    scores = Scores.of(_scale(scale, q), softcap, causal, window)
    query = Query(columns_together(q), None, cu_seqlens_q.contiguous(), max_seqlen_q)
    keys = Keys.ragged(k, v, cu_seqlens_k)
    return _attend(query, keys, head_width(q.shape[2], v.shape[2]), scores, flat(sinks))


def varlen_attention_supports(
    q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> str | None:
    return served_widths((q, k, v, *args), kwargs, *_sizes(q, v))


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    scales = Scale.of(k_scale), Scale.of(v_scale)
    scores = Scores.of(_scale(scale, q) * scales[0].number, softcap, causal, window)
    query = Query(columns_together(q), None, cu_seqlens_q.contiguous(), max_seqlen_q)
    keys = Keys.paged(k_cache, v_cache, block_table, seq_lens, max_seqlen_k)
    how = attend_split if max_seqlen_q <= _FEW else _attend
    return how(query, keys, head_width(q.shape[2], v_cache.shape[3]), scores, flat(sinks), *scales)


def paged_attention_supports(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *args: Any, **kwargs: Any
) -> str | None:
    return served_widths((q, k_cache, v_cache, *args), kwargs, *_sizes(q, v_cache))


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[2] ** -0.5 if scale is None else scale


def _sizes(q: Tensor, v: Tensor) -> tuple[tuple[str, int], ...]:
    return ("head_dim", q.shape[-1]), ("value_head_dim", v.shape[-1])


_SHORT = 64
"""Queries of a sequence up to which reading keys takes longer than multiplying them."""


def _tile(longest: int, width: Width, itemsizes: tuple[int, int], unit: int) -> Tile:
    """For queries and keys of so many bytes; with what is larger, registers are spilled."""
    widest = width.widest
    if itemsizes[0] == 4:
        # The cores multiply float32, and registers hold what they multiply.
        return Tile(32 if widest <= 256 else 16, 16, 8, 1, split=False)
    keys, split = 64 if unit == 16 else 32, longest <= _SHORT
    if widest > 256:
        return Tile(32, 32, 8, 1, split)
    if split:
        return Tile(64, keys, 4, 2, split) if widest <= 128 else Tile(32, keys, 8, 2, split)
    if widest <= 64:
        return Tile(128, keys, 4, 2, split)
    if widest <= 128 and itemsizes[1] > 1:
        keys *= 2
    return Tile(128, keys if widest <= 128 else 32, 8, 2, split)


def _attend(
    query: Query,
    keys: Keys,
    width: Width,
    scores: Scores,
    sinks: Tensor | None,
    k_scale: Scale | None = None,
    v_scale: Scale | None = None,
) -> tuple[Tensor, Tensor]:
    """Each program goes over all keys that its queries see."""
    (q, _, starts, longest), (out, lse) = query, results(query.q, width.value_dim)
    unit = keys.unit(width, *query.strides)
    tile = _tile(longest, width, (q.dtype.itemsize, keys.k.dtype.itemsize), unit)
    size, room = q.dtype.itemsize, shared_memory(q.device)
    tile = tile.fitted(size * width.columns, size * keys.columns(width), room)
    k_scale, v_scale = k_scale or Scale(), v_scale or Scale()
    assert starts is not None  # Of one query for each sequence split attention takes care.
    tokens, heads = lse.shape
    sequences, group = starts.shape[0] - 1, heads // keys.k.shape[-2]
    # Few queries leave room for those of all heads that share keys, which are then read once.
    pack = group if 0 < longest * group <= tile.rows else 1
    tiles = max(ceil_div(min(longest, tokens) * pack, tile.rows), 1)
    tensors = (
        *(out, lse, q, keys.k, keys.v, keys.table, starts, keys.lengths),
        *(sinks, k_scale.tensor, v_scale.tensor),
    )
    numbers = (
        *(sequences, tiles, tokens, keys.most, heads, group, pack, *width[:3]),
        *(*keys.sizes, *scores[:2], *query.strides[:2], *keys.steps),
        *(k_scale.stride, v_scale.stride, *scores.shape, v_scale.number),
    )
    constants = (
        *(
            scores.sign != 1,
            scores.cap > 0,
            keys.pages(tile.keys),
            tile.split,
            pack > 1,
            tile.rows,
            tile.keys,
        ),
        *(*width[3:], unit, width.full),
    )
    # One sequence more, for the padding.
    grid = (sequences + 1) * tiles, heads // pack, 1
    num_stages = tile.num_stages(keys.table is not None)
    attend(grid, tensors, numbers, constants, tile.num_warps, num_stages)
    return out, lse
