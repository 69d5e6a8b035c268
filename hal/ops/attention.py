"""Declarations of the attention ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op
from hal.ops.kv_cache import INDEX, check_cache, check_scale

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(scale: float | None) -> None:
    """Require a scale of the scores, if given, to be a finite number."""
    check(scale is None or -math.inf < scale < math.inf, "scale must be finite", scale=scale)


def _check_query(
    q: Tensor, kv_heads: int, head_dim: int, cu_seqlens_q: Tensor, sinks: Tensor | None
) -> None:
    check_floating(sinks=sinks)
    check(
        q.dim() == 3 and q.shape[2] > 0,
        "q must be [tokens, heads, head_dim], head_dim at least 1",
        q=q,
    )
    check(q.shape[2] == head_dim, lambda: f"q must have the head_dim of the keys, {head_dim}", q=q)
    check(
        kv_heads > 0 and q.shape[1] % kv_heads == 0,
        lambda: f"the heads of q must be a multiple of the kv_heads, {kv_heads}",
        q=q,
    )
    check_dtype(INDEX, cu_seqlens_q=cu_seqlens_q)
    check(
        cu_seqlens_q.dim() == 1 and cu_seqlens_q.shape[0] > 0,
        "cu_seqlens_q must be [sequences + 1]",
        cu_seqlens_q=cu_seqlens_q,
    )
    check_shape((q.shape[1],), sinks=sinks)


def _check_options(
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float | None,
    window: Sequence[int],
    softcap: float,
) -> None:
    check(max_seqlen_q >= 0, "max_seqlen_q must not be negative", max_seqlen_q=max_seqlen_q)
    check(max_seqlen_k >= 0, "max_seqlen_k must not be negative", max_seqlen_k=max_seqlen_k)
    check_finite(scale)
    check(softcap >= 0, "softcap must not be negative", softcap=softcap)
    check(softcap < math.inf, "softcap must be finite; 0 is off", softcap=softcap)
    check(
        len(window) == 2 and window[0] >= -1 and window[1] >= -1,
        "window must be (left, right), each at least 0 or -1 for no limit",
        window=window,
    )


def _results(q: Tensor, value_head_dim: int) -> tuple[Tensor, Tensor]:
    out = q.new_empty((q.shape[0], q.shape[1], value_head_dim))
    return out, q.new_empty(q.shape[:2], dtype=_lse_dtype(q))


def _lse_dtype(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32


@op
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
    """Attention of ragged sequences: ``softmax(scale * q @ k.T) @ v``, and the log of the sum.

    Sequence ``b`` is the rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of ``q``, and of ``k``
    and ``v``; either may be empty. Head ``h`` of ``q`` reads head ``h * kv_heads // heads`` of
    ``k`` and ``v``. Everything is computed in float32 (float64 for float64) and rounded once. What
    query ``i`` of ``len_q`` sees of ``len_k`` keys is aligned bottom-right, so that the last query
    stands at the last key: with ``p = i + len_k - len_q``, key ``j`` is visible if ``p - left <= j
    <= p + right``, and ``j <= p`` if ``causal``.

    A query that sees no key, or whose scores are all -inf, gives ``out`` 0 and ``lse`` -inf, with
    ``sinks`` 0 and the sink. Rows of ``q`` past ``cu_seqlens_q[-1]``, the padding of a captured
    batch, give 0 and -inf. NaN and infinities in ``k`` and ``v`` reach the queries that see them,
    in ``v`` only their own column, whatever the weight; a score of +inf gives NaN.

    Args:
        q: [tokens, heads, head_dim], floating point; a head_dim of up to 256 is served everywhere.
        k: [k_tokens, kv_heads, head_dim], the dtype of ``q``; heads is a multiple of kv_heads.
        v: [k_tokens, kv_heads, value_head_dim], the dtype of ``q``.
        cu_seqlens_q: [sequences + 1], int32 or int64: where each sequence starts in ``q``, the
            first at 0.
        cu_seqlens_k: [sequences + 1], int32 or int64: the same in ``k`` and ``v``.
        max_seqlen_q: No sequence has more queries; may be larger than the longest.
        max_seqlen_k: No sequence has more keys; may be larger than the longest.
        scale: Finite; multiplies the scores. None is ``head_dim ** -0.5``.
        causal: Whether a query sees no key behind its own position.
        window: (left, right): how many keys before and after its own position a query sees; -1 is
            no limit.
        softcap: Scaled scores become ``softcap * tanh(score / softcap)``, before the mask; 0 is
            off.
        sinks: [heads], floating point: adds ``exp(sink)`` to the denominator, neither scaled nor
            capped, and so to ``lse``; None adds nothing (gpt-oss, arXiv 2508.10925).

    Returns:
        out: [tokens, heads, value_head_dim], the dtype of ``q``.
        lse: [tokens, heads], float32 (float64 for float64): the natural log of the sum of
            ``exp(score)``.

    Example:
        >>> q, k, v = torch.zeros(1, 1, 4), torch.ones(2, 1, 4), torch.tensor([[[1.0]], [[3.0]]])
        >>> hal.ops.varlen_attention(q, k, v, torch.tensor([0, 1]), torch.tensor([0, 2]), 1, 2)
        (tensor([[[2.]]]), tensor([[0.6931]]))
    """
    check_floating(q=q)
    check(k.dim() == 3, "k must be [tokens, kv_heads, head_dim]", k=k)
    _check_query(q, k.shape[1], k.shape[2], cu_seqlens_q, sinks)
    check_dtype((q.dtype,), k=k, v=v)
    check(
        v.dim() == 3 and v.shape[:2] == k.shape[:2],
        lambda: (
            f"v must be [{k.shape[0]}, {k.shape[1]}, value_head_dim], as many tokens and heads as k"
        ),
        v=v,
    )
    check_dtype(INDEX, cu_seqlens_k=cu_seqlens_k)
    check_shape(cu_seqlens_q.shape, cu_seqlens_k=cu_seqlens_k)
    _check_options(max_seqlen_q, max_seqlen_k, scale, window, softcap)
    return _results(q, v.shape[2])


@op
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
    """``varlen_attention`` over keys and values in a paged cache.

    Decode, chunked prefill and speculative verification are the same call with one, many or a few
    queries a sequence.

    Key ``j`` of sequence ``b`` is ``k_cache[block_table[b, j // block_size], j % block_size]``,
    for ``j`` below ``seq_lens[b]``; its last keys are those of its queries, which the cache
    already holds. Rows beyond that, and blocks that no sequence names, are never used, whatever
    they hold; entries of ``block_table`` beyond the needed ones may be anything, -1 or out of
    range too. Everything else is as in ``varlen_attention``, ``causal`` included: it is off unless
    given, and one query at the last key sees the same either way.

    Args:
        q: [tokens, heads, head_dim], floating point; a head_dim of up to 256 is served everywhere.
        k_cache: [blocks, block_size, kv_heads, head_dim], the dtype of ``q``, float8_e4m3fn or
            float8_e5m2; any block size of at least 1, any strides.
        v_cache: [blocks, block_size, kv_heads, value_head_dim], the dtype of ``k_cache``.
        block_table: [sequences, blocks of the longest], int32 or int64.
        seq_lens: [sequences], int32 or int64: keys of each sequence, those of its new tokens
            included.
        cu_seqlens_q: [sequences + 1], int32 or int64: where each sequence starts in ``q``, the
            first at 0.
        max_seqlen_q: No sequence has more queries; may be larger than the longest.
        max_seqlen_k: No sequence has more keys; may be larger than the longest.
        scale: Finite; multiplies the scores. None is ``head_dim ** -0.5``.
        causal: Whether a query sees no key behind its own position.
        window: (left, right): how many keys before and after its own position a query sees; -1 is
            no limit.
        softcap: Scaled scores become ``softcap * tanh(score / softcap)``, before the mask; 0 is
            off.
        sinks: [heads], floating point: adds ``exp(sink)`` to the denominator and so to ``lse``.
        k_scale: What the keys of an 8-bit cache are multiplied with: a number, a tensor of one
            element or [kv_heads]; None is 1. Only for 8-bit caches.
        v_scale: The same for the values.

    Returns:
        out: [tokens, heads, value_head_dim], the dtype of ``q``.
        lse: [tokens, heads], float32 (float64 for float64): the natural log of the sum of
            ``exp(score)``.

    Example:
        >>> q, k_cache = torch.zeros(1, 1, 4), torch.zeros(3, 1, 1, 4)
        >>> v_cache = torch.tensor([8.0, 3.0, 1.0]).view(3, 1, 1, 1)
        >>> table, lens, starts = torch.tensor([[2, 1]]), torch.tensor([2]), torch.tensor([0, 1])
        >>> hal.ops.paged_attention(q, k_cache, v_cache, table, lens, starts, 1, 3)
        (tensor([[[2.]]]), tensor([[0.6931]]))
    """
    check_floating(q=q)
    check_cache(k_cache, v_cache, q.dtype)
    _check_query(q, k_cache.shape[2], k_cache.shape[3], cu_seqlens_q, sinks)
    check_dtype(INDEX, block_table=block_table, seq_lens=seq_lens)
    sequences = cu_seqlens_q.shape[0] - 1
    check(
        block_table.dim() == 2 and block_table.shape[0] == sequences,
        lambda: f"block_table must be [{sequences}, blocks], a row for each sequence",
        block_table=block_table,
    )
    check_shape((sequences,), seq_lens=seq_lens)
    check_scale(k_cache, k_scale=k_scale, v_scale=v_scale)
    _check_options(max_seqlen_q, max_seqlen_k, scale, window, softcap)
    return _results(q, v_cache.shape[3])


@op
def merge_attention_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from the attention over each of two sets of them.

    ``lse = log(exp(lse_a) + exp(lse_b))`` (natural) and ``out = exp(lse_a - lse) * out_a +
    exp(lse_b - lse) * out_b``, computed in float32 (float64 for float64) for any size of ``lse``,
    and rounded once (arXiv 2501.01005, 2.2).

    An ``lse`` of -inf says that a side has no keys: what its ``out`` holds does not count, NaN
    included. +inf, by which some kernels mark such a side, means the same. Both sides without keys
    give ``out`` 0 and ``lse`` -inf.

    Args:
        out_a: [tokens, heads, head_dim], floating point.
        lse_a: [tokens, heads], float32 (float64 if ``out_a`` is float64).
        out_b: [tokens, heads, head_dim], the dtype of ``out_a``.
        lse_b: [tokens, heads], the dtype of ``lse_a``.

    Returns:
        out: [tokens, heads, head_dim], the dtype of ``out_a``.
        lse: [tokens, heads], the dtype of ``lse_a``.

    Example:
        >>> out, lse = torch.ones(1, 1, 1), torch.zeros(1, 1)
        >>> hal.ops.merge_attention_states(out, lse, 3 * out, lse)
        (tensor([[[2.]]]), tensor([[0.6931]]))
    """
    check_floating(out_a=out_a)
    check(out_a.dim() == 3, "out_a must be [tokens, heads, head_dim]", out_a=out_a)
    check_dtype((out_a.dtype,), out_b=out_b)
    check_shape(out_a.shape, out_b=out_b)
    check_dtype((_lse_dtype(out_a),), lse_a=lse_a, lse_b=lse_b)
    check_shape(out_a.shape[:2], lse_a=lse_a, lse_b=lse_b)
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)
