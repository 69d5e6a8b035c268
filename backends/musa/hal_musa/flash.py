"""Attention by muDNN, through torch_musa."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import Kernel, prepared
from hal_musa.layout import finished
from hal_musa.libraries import HALVES, Offer, portable

__all__ = ["OFFER"]

_WIDEST = 128
_WIDE = ((192, 128), (160, 160))
"""Heads of queries and values that there are beside those of up to 128 columns."""


@prepared
def one_sequence(
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
) -> Callable[..., Any]:
    """By muDNN's flash attention for one causal sequence that attends to itself.

    It has neither starts nor lengths. Where the sequence ends is known to the device alone: without
    a mask what pads it would be seen; with the causal one no query sees a key that comes after it.
    """
    given = q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    options = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
    otherwise = portable("attention", "varlen_attention", *given, **options, sinks=sinks)
    whole = q.shape[0] == k.shape[0] and cu_seqlens_q.shape[0] == 2 and q.numel() and v.numel()
    if not (causal and whole):
        return otherwise

    def run(*given: Any, **options: Any) -> tuple[Tensor, Tensor]:
        q, k, v, starts, others, *_ = given
        if not _same(starts, others):
            return otherwise(*given, **options)
        out, sums = _by_mudnn(q, k, v)
        return finished(out, sums, starts)

    return run


def one_sequence_supports(
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
) -> str | None:
    widths = q.shape[2], v.shape[2]
    if q.dtype not in HALVES:
        return "muDNN has flash attention in float16 and bfloat16"
    if widths not in _WIDE and (max(widths) > _WIDEST or widths[0] % 8 or widths[1] % 8):
        return "muDNN has heads of up to 128 columns, a multiple of 8, of 160, and of 192 with 128"
    if tuple(window) != (-1, -1) or softcap or sinks is not None:
        return "torch's attention has no window, softcap or sinks"
    if scale is not None and not math.isclose(scale, q.shape[2] ** -0.5, rel_tol=1e-6):
        return "torch_musa takes another scale than that of the width since MUSA 4.2 only"
    return None


def _by_mudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Out [tokens, heads, value_head_dim], and the logs of the sums [tokens, heads]."""
    copies = q.shape[1] // k.shape[1]
    # It wants a head of keys for each of queries.
    k, v = (x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in (k, v))
    heads_first = (x.transpose(0, 1).unsqueeze(0).contiguous() for x in (q, k, v))
    found = torch.ops.aten._scaled_dot_product_attention_flash_musa(*heads_first, is_causal=True)
    return found[0].squeeze(0).transpose(0, 1), found[1].view(q.shape[1], q.shape[0]).t()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors of one size are one in memory, and so hold the same."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride()


OFFER = Offer(
    Kernel(
        fn=one_sequence,
        supports=one_sequence_supports,
        name="torch_musa",
        graph_safe=True,
    ),
    needs=("aten::_scaled_dot_product_attention_flash_musa",),
    since=22,
)
