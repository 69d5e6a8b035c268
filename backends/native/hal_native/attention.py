"""Attention in plain torch, on sequences padded to [sequences, longest, heads, head_dim]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hal_native.arithmetic import wide
from hal_native.kv_cache import bits, per_head


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens[1:].long() - cu_seqlens[:-1].long()


def _padded(cu_seqlens: Tensor, longest: int, tokens: int) -> Tensor:
    """The token at each place of [sequences, longest]; any token where the sequence is over."""
    place = torch.arange(longest, device=cu_seqlens.device)
    return (cu_seqlens[:-1, None].long() + place).clamp(max=tokens - 1)


def _unpadded(padded: Tensor, cu_seqlens: Tensor, tokens: int, fill: float) -> Tensor:
    """[sequences, longest, ...] back to [tokens, ...], ``fill`` past the last sequence."""
    ends, token = cu_seqlens[1:].long().contiguous(), torch.arange(tokens, device=cu_seqlens.device)
    sequence = torch.searchsorted(ends, token, right=True).clamp(max=padded.shape[0] - 1)
    place = (token - cu_seqlens.long()[sequence]).clamp(max=padded.shape[1] - 1)
    inside = (token < ends[-1]).view(-1, *[1] * (padded.dim() - 2))
    return torch.where(inside, padded[sequence, place], fill)


def _visible(
    queries: Tensor, keys: Tensor, shape: tuple[int, int], causal: bool, window: Sequence[int]
) -> Tensor:
    """Which keys each query sees, [sequences, queries, keys], from the lengths of the sequences."""
    query, key = (torch.arange(n, device=keys.device) for n in shape)
    keys = keys.long()[:, None, None]
    distance = key - (query[:, None] + keys - queries[:, None, None])
    seen = key < keys
    left, right = window[0], 0 if causal else window[1]
    if left >= 0:
        seen = seen & (distance >= -left)
    if right >= 0:
        seen = seen & (distance <= right)
    return seen.expand(distance.shape)


def _weigh(weights: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The sum of the visible values [sequences, keys, kv_heads, head_dim] times their weights."""
    # 0 * NaN is NaN: what is not finite stays out of the product and is added where it is seen.
    total = torch.einsum("bhgqk,bkhd->bqhgd", weights, v.where(v.isfinite(), 0))
    up, down = (
        torch.einsum("bqk,bkhd->bqhd", seen.to(v.dtype), (v.isnan() | (v == sign)).to(v.dtype))
        .gt(0)
        .unsqueeze(3)
        for sign in (math.inf, -math.inf)
    )
    total = torch.where(up, total + math.inf, total)
    return torch.where(down, total - math.inf, total)


def _softmax(scores: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the last dimension, and the log of the denominator that they and sinks share."""
    # Sinks come as one more column, which also keeps zero keys from being a special case.
    scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
    peak = scores.amax(dim=-1, keepdim=True)
    peak = peak.masked_fill(peak == -math.inf, 0)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1)
    return weights[..., :-1], (peak + total.log()).squeeze(-1)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float | None,
    softcap: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of padded sequences: out [sequences, queries, heads, head_dim] and lse [...]."""
    heads, kv_heads = q.shape[2], k.shape[2]
    grouped = q.view(*q.shape[:2], kv_heads, heads // kv_heads, q.shape[3])
    scores = torch.einsum("bqhgd,bkhd->bhgqk", grouped, k)
    scores = scores * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen[:, None, None], -math.inf)
    sinks = q.new_full((heads,), -math.inf) if sinks is None else sinks.to(q.dtype)
    weights, lse = _softmax(scores, sinks.reshape(kv_heads, heads // kv_heads, 1, 1))
    return _weigh(weights, v, seen).flatten(2, 3), lse.permute(0, 3, 1, 2).flatten(2, 3)


def _ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float | None,
    causal: bool,
    window: Sequence[int],
    softcap: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of ragged queries to padded keys and values."""
    tokens, longest = q.shape[0], min(max_seqlen_q, q.shape[0])
    if longest == 0 or k.shape[0] == 0:
        lse = wide(q).new_full(q.shape[:2], -math.inf)
        return q.new_zeros((*q.shape[:2], v.shape[3])), lse
    seen = _visible(_lengths(cu_seqlens_q), key_lens, (longest, k.shape[1]), causal, window)
    queries = wide(q[_padded(cu_seqlens_q, longest, tokens)])
    out, lse = _attend(
        queries, k.to(queries.dtype), v.to(queries.dtype), seen, scale, softcap, sinks
    )
    out = _unpadded(out, cu_seqlens_q, tokens, 0.0).to(q.dtype)
    lse = _unpadded(lse, cu_seqlens_q, tokens, -math.inf)
    # A single query or key leaves them with the heads last in memory.
    return out.contiguous(), lse.contiguous()


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
) -> tuple[Tensor, Tensor]:
    place = _padded(cu_seqlens_k, min(max_seqlen_k, k.shape[0]), k.shape[0])
    lens = _lengths(cu_seqlens_k)
    return _ragged(
        q,
        k[place],
        v[place],
        lens,
        cu_seqlens_q,
        max_seqlen_q,
        scale,
        causal,
        window,
        softcap,
        sinks,
    )


def _gathered(cache: Tensor, block_table: Tensor, seq_lens: Tensor, longest: int) -> Tensor:
    """The first rows of each sequence in a cache, [sequences, longest, kv_heads, head_dim]."""
    size = cache.shape[1]
    place = torch.arange(longest, device=cache.device)
    # Entries beyond the needed ones may point anywhere: read block 0, which the mask hides.
    block = block_table[:, place // size].where(place < seq_lens[:, None], 0)
    return bits(cache)[block.long(), place % size].view(cache.dtype)


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
) -> tuple[Tensor, Tensor]:
    blocks, block_size = k_cache.shape[:2]
    longest = min(max_seqlen_k, block_table.shape[1] * block_size) if blocks else 0
    k = _gathered(k_cache, block_table, seq_lens, longest).to(wide(q).dtype)
    v = _gathered(v_cache, block_table, seq_lens, longest).to(wide(q).dtype)
    k, v = k * per_head(k_scale, k), v * per_head(v_scale, v)
    return _ragged(
        q, k, v, seq_lens, cu_seqlens_q, max_seqlen_q, scale, causal, window, softcap, sinks
    )


def merge_attention_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    # Some kernels say +inf for a side without keys.
    lse = torch.stack((lse_a, lse_b)).nan_to_num(math.nan, -math.inf, -math.inf)
    out = torch.stack((wide(out_a), wide(out_b)))
    # A softmax over the two sides. 0 * NaN is NaN, so a side without keys loses its values.
    out = out.masked_fill((lse == -math.inf).unsqueeze(-1), 0)
    weights, merged = _softmax(lse.movedim(0, -1), lse.new_full((), -math.inf))
    merged_out = (weights.movedim(-1, 0).unsqueeze(-1) * out).sum(dim=0)
    return merged_out.to(out_a.dtype), merged
