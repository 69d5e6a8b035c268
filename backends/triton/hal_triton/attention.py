"""Attention by Triton, of queries to keys that follow one another or lie in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hal import prepared
from hal_triton.attention_launch import Run, Tensors, Tile, results
from hal_triton.attention_parts import (
    ONE,
    Keys,
    Query,
    Scale,
    Scores,
    Width,
    columns_together,
    head_width,
    numbers,
    served_widths,
)
from hal_triton.attention_split import attend_split
from hal_triton.configurations import measured
from hal_triton.kernels.attention import attend
from hal_triton.layout import ceil_div, flat_like
from hal_triton.target import shared_memory

__all__ = [
    "paged_attention",
    "paged_attention_supports",
    "varlen_attention",
    "varlen_attention_supports",
]

_FEW = 16
"""Queries of a sequence up to which programs share its keys, if these are in pages."""


@prepared
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
) -> Run:
    del max_seqlen_k
    scores = Scores.of(_scale(scale, q), softcap, causal, window)
    query_in, query = Query.like(q, cu_seqlens_q, max_seqlen_q)
    starts_q_in, starts_k_in, sinks_in = map(flat_like, (cu_seqlens_q, cu_seqlens_k, sinks))

    def given(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *_lengths: int,
        sinks: Tensor | None = None,
        **_options: Any,
    ) -> Tensors:
        starts = starts_q_in(cu_seqlens_q), starts_k_in(cu_seqlens_k)
        return query_in(q), k, v, None, *starts, sinks_in(sinks), None, None

    width = head_width(q.shape[2], v.shape[2])
    run = _attend(query, Keys.ragged(k, v), width, scores)
    return lambda *args, **options: run(given(*args, **options))


def varlen_attention_supports(
    q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> str | None:
    return served_widths((q, k, v, *args), kwargs, *_sizes(q, v))


@prepared
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
) -> Run:
    scales = Scale.of(k_scale), Scale.of(v_scale)
    scores = Scores.of(_scale(scale, q) * scales[0].number, softcap, causal, window)
    query_in, query = Query.like(q, cu_seqlens_q, max_seqlen_q)
    table_in, (table_stride, _) = columns_together(block_table)
    keys = Keys.paged(k_cache, v_cache, block_table.shape[1], table_stride, max_seqlen_k)
    starts_in, lens_in, sinks_in = map(flat_like, (cu_seqlens_q, seq_lens, sinks))
    how, rest = (attend_split, (None,)) if max_seqlen_q <= _FEW else (_attend, ())

    def given(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        cu_seqlens_q: Tensor,
        *_lengths: int,
        sinks: Tensor | None = None,
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
        **_options: Any,
    ) -> Tensors:
        sequences = table_in(block_table), starts_in(cu_seqlens_q), lens_in(seq_lens)
        factors = sinks_in(sinks), scales[0].convert(k_scale), scales[1].convert(v_scale)
        return query_in(q), k_cache, v_cache, *sequences, *factors, *rest

    run = how(query, keys, head_width(q.shape[2], v_cache.shape[3]), scores, *scales)
    return lambda *args, **options: run(given(*args, **options))


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
    """For queries and keys of so many bytes; beyond it, registers are spilled."""
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
    return Tile(128, keys if width.value_block <= 128 else 32, 8, 2, split)


def _measured(usual: Tile, query: Query, keys: Keys, width: Width) -> Tile:
    """What a table says; the bits of a query go with it, but not with how many others there are."""
    size, longest = query.q.itemsize, _SHORT if usual.split else 2 * _SHORT
    sizes = longest, width.columns, width.value_block, 8 * size, 8 * keys.itemsize
    rows, at_once, num_warps, ahead = measured("prefill", query.q.device, sizes, usual[:4])
    return Tile(rows, at_once, num_warps, ahead, usual.split)


def _attend(
    query: Query,
    keys: Keys,
    width: Width,
    scores: Scores,
    k_scale: Scale = ONE,
    v_scale: Scale = ONE,
) -> Run:
    """Each program goes over all keys that its queries see."""
    (tokens, heads, _), size = query.q.shape, query.q.itemsize
    unit = keys.unit(width, *query.strides)
    tile = _tile(query.longest, width, (size, keys.itemsize), unit)
    if unit == 16:
        tile = _measured(tile, query, keys, width)
    room = shared_memory(query.q.device)
    tile = tile.fitted(size * width.columns, size * keys.columns(width), room)
    group = heads // keys.heads
    # Few queries leave room for those of all heads that share keys, which are then read once.
    pack = group if 0 < query.longest * group <= tile.rows else 1
    tiles = max(ceil_div(min(query.longest, tokens) * pack, tile.rows), 1)
    told = numbers(query, keys, width, scores, k_scale, v_scale)
    launch = attend.bind(
        # One sequence more, for the padding.
        ((query.sequences + 1) * tiles, heads // pack, 1),
        (query.sequences, tiles, tokens, heads, pack, *told),
        (
            *(scores.sign != 1, scores.cap > 0, keys.pages(tile.keys), tile.split, pack > 1),
            *(tile.rows, tile.keys, *width[3:], unit, width.full),
        ),
        tile.num_warps,
        tile.num_stages(keys.block_size > 0),
    )
    empty = results(query.q, width.value_dim)

    def run(given: Tensors) -> tuple[Tensor, Tensor]:
        both = empty()
        launch(*both, *given)
        return both

    return run
