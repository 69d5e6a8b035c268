"""Attention over latents in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal_native.attention import paged_attention

if TYPE_CHECKING:
    from torch import Tensor


def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    sequences, _, latent_dim = q_nope.shape
    q = torch.cat((q_nope, q_rope), dim=-1)
    k_cache = kv_cache.unsqueeze(2)
    v_cache = k_cache[..., :latent_dim]
    starts = torch.arange(sequences + 1, device=q.device)
    longest = block_table.shape[1] * kv_cache.shape[1]
    return paged_attention(
        q, k_cache, v_cache, block_table, seq_lens, starts, 1, longest, scale=scale
    )
