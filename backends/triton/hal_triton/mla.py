"""Attention over latents by Triton."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hal import prepared
from hal_triton.attention_launch import Run, Tensors
from hal_triton.attention_parts import (
    Keys,
    Query,
    Scores,
    Width,
    block_of,
    columns_together,
    served_widths,
)
from hal_triton.attention_split import attend_split
from hal_triton.layout import flat_like

__all__ = ["mla_decode", "mla_decode_supports"]


@prepared
def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> Run:
    latent, rope = q_nope.shape[2], q_rope.shape[2]
    block, rest = block_of(latent), block_of(rope) if rope else 0
    width = Width(latent, rope, latent, block, rest, block)
    (nope_in, strides), (rope_in, more) = columns_together(q_nope), columns_together(q_rope)
    query = Query(q_nope, (*strides[:2], *more[:2]), seq_lens.shape[0], 1, ragged=False)
    table_in, (table_stride, _) = columns_together(block_table)
    keys = Keys.paged(kv_cache.unsqueeze(2), None, block_table.shape[1], table_stride)
    lens_in = flat_like(seq_lens)

    def given(
        q_nope: Tensor,
        q_rope: Tensor,
        kv_cache: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        **_options: float,
    ) -> Tensors:
        sequences = table_in(block_table), None, lens_in(seq_lens)
        return nope_in(q_nope), kv_cache, None, *sequences, None, None, None, rope_in(q_rope)

    run = attend_split(query, keys, width, Scores.of(scale))
    return lambda *args, **options: run(given(*args, **options))


def mla_decode_supports(q_nope: Tensor, q_rope: Tensor, *args: Any, **kwargs: Any) -> str | None:
    sizes = ("latent_dim", q_nope.shape[-1]), ("rope_dim", q_rope.shape[-1])
    return served_widths((q_nope, q_rope, *args), kwargs, *sizes)
