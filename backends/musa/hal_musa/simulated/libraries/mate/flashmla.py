"""Latent attention in decode, with FlashMLA's signatures: dense, of 16-bit floats."""

from __future__ import annotations

from torch import Tensor

from hal_musa.simulated.host import unmodelled
from hal_musa.simulated.mate_attention import MLA, MLA_PLAN


def get_mla_metadata(
    cache_seqlens: Tensor | None,
    num_q_tokens_per_head_k: int,
    num_heads_k: int,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,
    topk: int | None = None,
    q: Tensor | None = None,
    bs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A plan for these lengths: int32 [parts, 8] and, int32, [batch + 1]."""
    unmodelled(is_fp8_kvcache=is_fp8_kvcache or None, topk=topk, q=q, bs=bs)
    sizes = [num_q_tokens_per_head_k, num_heads_k]
    return MLA_PLAN(cache_seqlens, sizes)


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    head_dim_v: int,
    tile_scheduler_metadata: Tensor,
    num_splits: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend [batch, tokens, heads, 576] to pages [pages, page, 1, 576], of which 512 are values.

    Returns:
        ``out`` [batch, tokens, heads, 512] and the LSE, float32. It is allocated as
        [batch, tokens, heads], though its documentation says [batch, heads, tokens]: the two are
        one memory where there is one token.
    """
    unmodelled(is_fp8_kvcache=is_fp8_kvcache or None, indices=indices)
    assert head_dim_v == 512
    return MLA(
        *(q, k_cache, block_table, cache_seqlens, tile_scheduler_metadata, num_splits),
        *(q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale, causal),
    )
