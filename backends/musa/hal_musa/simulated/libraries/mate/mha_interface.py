"""Attention as FlashAttention 3 has it, of 16-bit floats: no gradients, no fake kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_musa.simulated.host import unmodelled
from hal_musa.simulated.mate_attention import FMHA, PLAN, scale


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    learnable_sink: Tensor | None = None,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    backend: str = "auto",
    cp_world_size: int = 1,
    cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
    out: Tensor | None = None,
) -> Any:
    """Attend in each sequence: ``out`` [tokens, heads, value_dim], or that and the LSE.

    The LSE is float32 [heads, tokens]. The causal mask is aligned at the bottom right.
    """
    unmodelled(
        attention_chunk=attention_chunk or None,
        descale=next((x for x in (q_descale, k_descale, v_descale) if x is not None), None),
        cp_world_size=cp_world_size - 1 or None,
    )
    if backend not in ("auto", "mutlass", "mubin"):
        raise ValueError(f"backend is 'mutlass', 'mubin' or 'auto', not {backend!r}")
    if (cu_seqlens_q is None) != (q.dim() == 4):
        raise RuntimeError("q is [batch, seqlen, heads, dim] without cu_seqlens_q, else 3-d")
    found, lse = FMHA(
        *(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, seqused_q, seqused_k, page_table),
        *(qv, learnable_sink, scheduler_metadata, scale(softmax_scale, q, qv), causal),
        *(window_size[0], window_size[1], softcap),
    )
    found = found if out is None else out.copy_(found)
    return (found, lse) if return_softmax_lse else found


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    learnable_sink: Tensor | None = None,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Any = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    cp_world_size: int = 1,
    cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
) -> Any:
    """Attend to pages: ``out`` as ``q`` with the values' head_dim, or that and the LSE.

    Caches are [pages, page, heads, dim] with a page table, or [batch, seqlen, heads, dim]. Latent
    attention is ``q`` of 64 with ``qv`` of 512; its metadata is a pair of which the first is room.
    """
    unmodelled(
        new_keys=k,
        new_values=v,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        rotary_seqlens=rotary_seqlens,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        cu_seqlens_k_new=cu_seqlens_k_new,
        attention_chunk=attention_chunk or None,
        descale=next((x for x in (q_descale, k_descale, v_descale) if x is not None), None),
        cp_world_size=cp_world_size - 1 or None,
    )
    assert k_cache.stride(-1) == 1, "k_cache must have contiguous last dimension"
    assert v_cache.stride(-1) == 1, "v_cache must have contiguous last dimension"
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full(
            (k_cache.shape[0],), cache_seqlens, dtype=torch.int32, device=k_cache.device
        )
    latent = qv is not None and qv.shape[-1] == 512 and q.shape[-1] == 64
    out, lse = FMHA(
        *(q, k_cache, v_cache, cu_seqlens_q, None, max_seqlen_q, None, cache_seqlens, page_table),
        *(qv, learnable_sink, None if latent else scheduler_metadata),
        *(scale(softmax_scale, q, qv), causal, window_size[0], window_size[1], softcap),
    )
    return (out, lse) if return_softmax_lse else out


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    mp_margin: int = 0,
) -> Tensor:
    """A plan for one shape of work and its lengths, of no other use: int32, on their device.

    Attention that is given the plan of other work has NaN here, and what it has on the device is
    not known.
    """
    lengths = next(x for x in (seqused_k, cu_seqlens_k, seqused_q, cu_seqlens_q) if x is not None)
    sizes = [batch_size, num_heads_q, num_heads_kv, headdim, headdim_v or headdim, int(causal)]
    return PLAN(lengths, seqused_k, sizes)
