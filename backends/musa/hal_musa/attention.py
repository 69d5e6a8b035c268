"""Attention by MATE."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import Kernel, prepared
from hal_musa import flash
from hal_musa.layout import blocks_in_range, columns, finished, int32, unseen
from hal_musa.libraries import HALVES, Offer, fits, vendor

__all__ = ["OFFERS"]

_VARLEN = "mate.flash_attn_varlen_func"
_PAGED = "mate.flash_attn_with_kvcache"
_SCHEDULE = "mate.get_scheduler_metadata"
_WIDEST = 512


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
) -> Callable[..., Any]:
    if _nothing(q, k, v, cu_seqlens_q, max_seqlen_q, max_seqlen_k):
        return unseen
    attend: Any = vendor(_VARLEN)
    options = {**_options(q, scale, causal, window, softcap), **_own_kernel(attend, softcap)}

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **given: Any) -> tuple[Tensor, Tensor]:
        starts, key_starts = map(int32, rest[:2])
        ragged = {"cu_seqlens_q": starts, "cu_seqlens_k": key_starts}
        longest = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        found = attend(*map(columns, (q, k, v)), **ragged, **longest, **options)
        return finished(found[0], found[1].t(), starts)

    return run


def varlen_attention_supports(
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
    return _heads_refused(q, v.shape[2], scale, sinks)


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
) -> Callable[..., Any]:
    """With a schedule that is made for each call, on the device, of the lengths of that call.

    How sequences are split, and in which order they come, goes by ``seq_lens``, which change from
    step to step where their tensor does not: a schedule that is kept would be that of other
    lengths. Made by a kernel, it is renewed in a captured graph too.
    """
    if _nothing(q, k_cache, v_cache, cu_seqlens_q, max_seqlen_q, max_seqlen_k, block_table):
        return unseen
    attend: Any = vendor(_PAGED)
    options = _options(q, scale, causal, window, softcap)
    schedule = _scheduler(q, k_cache, v_cache, max_seqlen_q, max_seqlen_k, options)

    def run(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any, **given: Any) -> Any:
        table = blocks_in_range(rest[0], k_cache.shape[0])
        lens, starts = map(int32, rest[1:3])
        found = attend(
            columns(q),
            k_cache,
            v_cache,
            cache_seqlens=lens,
            page_table=table,
            cu_seqlens_q=starts,
            max_seqlen_q=max_seqlen_q,
            scheduler_metadata=schedule(q.device, lens, starts),
            **options,
        )
        return finished(found[0], found[1].t(), starts)

    return run


def paged_attention_supports(
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
) -> str | None:
    if k_cache.dtype != q.dtype:
        return "MATE has no attention to an 8-bit cache"
    if not (fits(k_cache) and fits(v_cache)):
        return "MATE takes rows of a cache that begin at multiples of 16 bytes"
    return _heads_refused(q, v_cache.shape[3], scale, sinks)


def _heads_refused(
    q: Tensor, value_head_dim: int, scale: float | None, sinks: Tensor | None
) -> str | None:
    if q.dtype not in HALVES:
        return "MATE has attention in float16 and bfloat16"
    widths = q.shape[2], value_head_dim
    if widths != (192, 128) and (widths[0] != widths[1] or widths[0] % 8 or widths[0] > _WIDEST):
        return f"MATE has heads of up to {_WIDEST} columns, a multiple of 8, and of 192 with 128"
    if sinks is not None:
        return "whether the sums that MATE returns have the sinks in them is not known"
    if scale is not None and scale <= 0:
        return "fused attention takes the largest score before it scales"
    return None


def _options(
    q: Tensor, scale: float | None, causal: bool, window: Sequence[int], softcap: float
) -> dict[str, Any]:
    """What both functions of MATE take alike."""
    left, right = window
    return {
        "softmax_scale": q.shape[2] ** -0.5 if scale is None else scale,
        "causal": causal,
        "window_size": (left, 0 if causal and left >= 0 else -1 if causal else right),
        "softcap": softcap,
        "return_softmax_lse": True,
    }


def _own_kernel(attend: Callable[..., Any], softcap: float) -> dict[str, str]:
    """Its "auto" would take one of two kernels that knows of no cap, and leave it out."""
    named = softcap > 0 and "backend" in inspect.signature(attend).parameters
    return {"backend": "mutlass"} if named else {}


def _scheduler(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    options: dict[str, Any],
) -> Callable[[torch.device, Tensor, Tensor], Tensor]:
    """What makes a schedule of lengths of keys and starts of queries, on a device."""
    make: Any = vendor(_SCHEDULE)
    known = inspect.signature(make).parameters
    # Of the two names the first is that of MATE 0.2.2, and the other that of flash attention 3.
    lens_name = "seqused_k" if "seqused_k" in known else "cache_seqlens"
    partial = functools.partial(
        make,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        num_heads_q=q.shape[1],
        num_heads_kv=k_cache.shape[2],
        headdim=q.shape[2],
        headdim_v=v_cache.shape[3],
        qkv_dtype=q.dtype,
        page_size=k_cache.shape[1],
        causal=options["causal"],
        window_size=options["window_size"],
        has_softcap=options["softcap"] > 0,
    )

    def schedule(device: torch.device, lens: Tensor, starts: Tensor) -> Tensor:
        # It is made on the current device, whatever that of the tensors.
        with torch.get_device_module(device.type).device(device):
            return partial(lens.shape[0], cu_seqlens_q=starts, **{lens_name: lens})

    return schedule


def _nothing(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *more: Tensor,
) -> bool:
    """Whether no query can see a key, by the shapes."""
    some = all(x.numel() for x in (q, k, v, *more))
    return not (some and cu_seqlens_q.shape[0] > 1 and max_seqlen_q and max_seqlen_k)


OFFERS = {
    "varlen_attention": [
        Offer(
            Kernel(
                fn=varlen_attention,
                supports=varlen_attention_supports,
                name="mate",
                graph_safe=True,
            ),
            needs=(_VARLEN,),
            since=31,
        ),
        flash.OFFER,
    ],
    "paged_attention": [
        Offer(
            Kernel(
                fn=paged_attention,
                supports=paged_attention_supports,
                name="mate",
                graph_safe=True,
            ),
            needs=(_PAGED, _SCHEDULE),
            since=31,
        )
    ],
}
"""By op what there is, best first: MATE's is the one that knows of ragged sequences and of pages.

The order is a judgement, as nothing was measured: MATE's are written for mp_31 by the vendor. What
a value that is NaN does where a mask hides it is not known of either: multiplied with its weight of
0 it would be NaN, in its column, for queries that do not see it, where the op has none.
"""
