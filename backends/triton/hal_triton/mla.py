"""Attention over latents by Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal_triton.attention_parts import (
    Keys,
    Scores,
    Width,
    block_of,
    columns_together,
    served_widths,
)
from hal_triton.attention_split import Query, attend_split

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mla_decode", "mla_decode_supports"]


def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    latent, rope = q_nope.shape[2], q_rope.shape[2]
    block, rest = block_of(latent), block_of(rope) if rope else 0
    width = Width(latent, rope, latent, block, rest, block)
    query = Query(columns_together(q_nope), columns_together(q_rope) if rope else None, None, 1)
    keys = Keys.paged(kv_cache.unsqueeze(2), None, block_table, seq_lens)
    return attend_split(query, keys, width, Scores.of(scale))


def mla_decode_supports(q_nope: Tensor, q_rope: Tensor, *args: Any, **kwargs: Any) -> str | None:
    sizes = ("latent_dim", q_nope.shape[-1]), ("rope_dim", q_rope.shape[-1])
    return served_widths((q_nope, q_rope, *args), kwargs, *sizes)
