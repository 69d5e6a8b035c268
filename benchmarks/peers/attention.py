"""Attention of other libraries, and of torch where all sequences are as long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from peers.registry import DoesNotFit, compiled, flashinfer, in_dispatcher, on_cuda, peer, sgl, vllm

Call = Callable[[], Any]


@functools.cache
def workspace(device: torch.device) -> Tensor:
    """256 MiB for FlashInfer's partial results, which its calls have one after the other."""
    return torch.empty(256 * 2**20, dtype=torch.uint8, device=device)


def fa3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: tuple[Tensor | None, Tensor | None] = (None, None),
    lens: Tensor | None = None,
    longest: tuple[int, int | None] = (1, None),
    table: Tensor | None = None,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    splits: int = 0,
) -> list[Tensor]:
    """The entry of FlashAttention-3 as vLLM builds it, causal; splits 0 lets it choose."""
    n, scale = None, q.shape[-1] ** -0.5
    left, right = window
    return torch.ops._vllm_fa3_C.fwd(
        *(q, k, v, n, n, n, n, *starts, n, n, lens, *longest, table, n, n, n, n, n, n, n, n),
        *(scale, True, left, right, softcap, False, n, splits, n, 0, n, 1, 0, n),
    )


@in_dispatcher("fa3", "_vllm_fa3_C", "paged_attention", "fwd")
def fa3_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
) -> Any:
    if k_cache.dtype != q.dtype:
        raise DoesNotFit("wants queries of 8 bits, too")
    out = fa3(q.unsqueeze(1), k_cache, v_cache, lens=seq_lens, table=block_table)
    return out[0], None


def gathered(cache: Tensor, block_table: Tensor, keys: int) -> Tensor:
    """The pages of each sequence in order: [sequences, heads, keys, head_dim]."""
    rows = cache.view(torch.uint8)[block_table.long()].view(cache.dtype).flatten(1, 2)[:, :keys]
    return rows.transpose(1, 2).contiguous()


@peer(
    "sdpa",
    "paged_attention",
    planned=True,
    note="torch's, on keys that already lie densely, sequence by sequence",
)
def dense_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
) -> Call:
    k, v = (gathered(cache, block_table, max_seqlen_k).to(q.dtype) for cache in (k_cache, v_cache))
    return lambda: scaled_dot_product_attention(q.unsqueeze(2), k, v, enable_gqa=True)


def _ends(block_table: Tensor) -> Tensor:
    """Where the pages of each sequence begin, on the host, int32."""
    rows, pages = block_table.shape
    return torch.arange(rows + 1, dtype=torch.int32) * pages


@flashinfer("paged_attention", planned=True)
def flashinfer_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
) -> Call:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    page, kv_heads, width = k_cache.shape[1:]
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace(q.device), "NHD", use_tensor_cores=True)
    last = (seq_lens.cpu() - 1) % page + 1
    sizes = q.shape[1], kv_heads, width, page
    dtypes = {"q_data_type": q.dtype, "kv_data_type": k_cache.dtype}
    wrapper.plan(_ends(block_table), block_table.flatten(), last, *sizes, **dtypes)
    return lambda: (wrapper.run(q, (k_cache, v_cache)), None)


@peer(
    "bmm",
    "mla_decode",
    planned=True,
    note="torch's products and softmax, on rows that already lie densely",
)
def dense_mla(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Call:
    rows = kv_cache[block_table.long()].flatten(1, 2)[:, : int(seq_lens.max())]
    q, latent = torch.cat((q_nope, q_rope), dim=-1), rows[..., : q_nope.shape[-1]]

    def call() -> Tensor:
        scores = torch.baddbmm(q.new_zeros(()), q, rows.transpose(1, 2), beta=0, alpha=scale)
        return torch.bmm(scores.softmax(-1), latent)

    return call


@flashinfer("mla_decode", planned=True)
def flashinfer_mla(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Call:
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    (rows, heads, latent), page = q_nope.shape, kv_cache.shape[1]
    wrapper = BatchMLAPagedAttentionWrapper(workspace(q_nope.device), backend="auto")
    at = torch.arange(rows + 1, dtype=torch.int32, device=q_nope.device)
    ends = _ends(block_table).to(q_nope.device)
    sizes = heads, latent, q_rope.shape[-1], page
    dtype = q_nope.dtype
    wrapper.plan(at, ends, block_table.flatten(), seq_lens, *sizes, False, scale, dtype, dtype)
    parts = kv_cache[..., :latent], kv_cache[..., latent:]
    return lambda: (wrapper.run(q_nope, q_rope, *parts), None)


@peer("torch", "merge_attention_states")
@compiled("merge_attention_states")
def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Any:
    lse = torch.logaddexp(lse_a, lse_b)
    a, b = ((side - lse).exp().unsqueeze(-1) for side in (lse_a, lse_b))
    return (a * out_a + b * out_b).to(out_a.dtype), lse


@sgl("merge_attention_states", "merge_state_v2")
def sgl_merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Any:
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    torch.ops.sgl_kernel.merge_state_v2(out_a, lse_a, out_b, lse_b, out, lse)
    return out, lse


@vllm("merge_attention_states", "merge_attn_states", planned=True)
def vllm_merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Call:
    """Its logs are [heads, tokens]."""
    out, a, b = torch.empty_like(out_a), lse_a.t().contiguous(), lse_b.t().contiguous()
    lse = torch.empty_like(a)

    def call() -> Any:
        torch.ops._C.merge_attn_states(out, lse, out_a, a, out_b, b, None)
        return out, lse.t()

    return call


@in_dispatcher("fa3", "_vllm_fa3_C", "varlen_attention", "fwd")
def fa3_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    **limits: Any,
) -> Any:
    out = fa3(q, k, v, starts=(cu_q, cu_k), longest=(max_q, max_k), splits=1, **limits)
    return out[0], None


def _sdpa(backend: SDPBackend) -> Callable[..., Call]:
    """Torch's attention on sequences of equal length, causal, without a window.

    Keys and values are repeated ahead of the call where it wants them for each head.
    """

    def plan(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        causal: bool,
        **limits: Any,
    ) -> Call:
        if limits:
            raise DoesNotFit("has no window and no cap of scores")
        parts = [x.view(-1, max_q, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]

        def call(q: Tensor, k: Tensor, v: Tensor, gqa: bool) -> Any:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
            return out.transpose(1, 2), None

        try:
            call(*parts, gqa=True)
        except RuntimeError:
            each = q.shape[1] // k.shape[1]
            repeated = [x.repeat_interleave(each, 1) for x in parts[1:]]
            return functools.partial(call, parts[0], *repeated, gqa=False)
        return functools.partial(call, *parts, gqa=True)

    return plan


on_cuda("cudnn", "varlen_attention", planned=True)(_sdpa(SDPBackend.CUDNN_ATTENTION))
on_cuda("flash", "varlen_attention", planned=True)(_sdpa(SDPBackend.FLASH_ATTENTION))
peer("math", "varlen_attention", lambda: not torch.cuda.is_available(), planned=True)(
    _sdpa(SDPBackend.MATH)
)


@flashinfer("varlen_attention", planned=True)
def flashinfer_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
) -> Call:
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace(q.device), "NHD")
    sizes = q.shape[1], k.shape[1], q.shape[2]
    options = {"causal": causal, "window_left": window[0], "logits_soft_cap": softcap or None}
    wrapper.plan(cu_q, cu_k, *sizes, q_data_type=q.dtype, **options)
    return lambda: (wrapper.run(q, k, v), None)


@peer("torch", "store_kv_cache_")
@compiled("store_kv_cache_")
def store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Any:
    for rows, cache in ((k, k_cache), (v, v_cache)):
        if cache.dtype == rows.dtype:
            cache.view(-1, *rows.shape[1:])[slots] = rows
        else:  # Torch does not index what has 8 bits.
            codes = rows.to(cache.dtype).view(torch.uint8)
            cache.view(torch.uint8).view(-1, *rows.shape[1:])[slots] = codes
    return k_cache, v_cache


@vllm("store_kv_cache_", "reshape_and_cache_flash", "_C_cache_ops", planned=True)
def vllm_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Call:
    """It takes scales, also where they are not used."""
    one, kind = k.new_ones((), dtype=torch.float32), "auto" if k.dtype == k_cache.dtype else "fp8"
    bits = [c if c.dtype == k.dtype else c.view(torch.uint8) for c in (k_cache, v_cache)]
    call = torch.ops._C_cache_ops.reshape_and_cache_flash

    def stored() -> Any:
        call(k, v, *bits, slots, kind, one, one)
        return k_cache, v_cache

    return stored
