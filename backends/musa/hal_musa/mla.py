"""Attention over latents by MATE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal import Kernel, prepared
from hal_musa.layout import blocks_in_range, int32
from hal_musa.libraries import HALVES, Offer, fits, vendor

__all__ = ["OFFERS"]

_LATENT, _ROPE, _PAGE = 512, 64, 64
_ATTEND = "mate.flashmla.flash_mla_with_kvcache"
_SCHEDULE = "mate.flashmla.get_mla_metadata"


@prepared
def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> Callable[..., Any]:
    """The schedule is made anew for each call, as attention's."""
    attend: Any = vendor(_ATTEND)
    schedule: Any = vendor(_SCHEDULE)
    heads, empty = q_nope.shape[1], not (q_nope.numel() and kv_cache.numel())

    def run(
        q_nope: Tensor,
        q_rope: Tensor,
        kv_cache: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        if empty:
            lse = q_nope.new_full(q_nope.shape[:2], -math.inf, dtype=torch.float32)
            return q_nope.new_zeros(q_nope.shape), lse
        lens = int32(seq_lens)
        out, lse = attend(
            torch.cat((q_nope, q_rope), dim=-1).unsqueeze(1),
            kv_cache.unsqueeze(2),
            blocks_in_range(block_table, kv_cache.shape[0]),
            lens,
            _LATENT,
            *schedule(lens, heads, 1),
            softmax_scale=scale,
            causal=False,
        )
        none = lens[:, None] <= 0
        out = out.squeeze(1).masked_fill(none.unsqueeze(-1), 0.0)
        # Its documentation has heads before tokens and its code tokens first; here is one token.
        return out.contiguous(), lse.reshape(-1, heads).masked_fill(none, -math.inf)

    return run


def mla_decode_supports(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> str | None:
    if q_nope.dtype not in HALVES:
        return "MATE has attention in float16 and bfloat16"
    if (q_nope.shape[2], q_rope.shape[2]) != (_LATENT, _ROPE):
        return f"MATE has latents of {_LATENT} columns with {_ROPE} that are rotated"
    if kv_cache.shape[1] != _PAGE:
        return f"MATE has blocks of {_PAGE}"
    if scale <= 0:
        return "fused attention takes the largest score before it scales"
    return None if fits(kv_cache) else "MATE takes rows that begin at multiples of 16 bytes"


OFFERS = {
    "mla_decode": [
        Offer(
            Kernel(fn=mla_decode, supports=mla_decode_supports, name="mate", graph_safe=True),
            needs=(_ATTEND, _SCHEDULE),
            since=31,
        )
    ]
}
"""By op what there is."""
