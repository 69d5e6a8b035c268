"""Declarations of the attention over latents (MLA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op
from hal.ops.attention import check_finite
from hal.ops.kv_cache import INDEX

if TYPE_CHECKING:
    from torch import Tensor


def _check_queries(q_nope: Tensor, q_rope: Tensor) -> None:
    check_floating(q_nope=q_nope)
    check_dtype((q_nope.dtype,), q_rope=q_rope)
    check(
        q_nope.dim() == 3 and q_nope.shape[2] > 0,
        "q_nope must be [sequences, heads, latent_dim], latent_dim at least 1",
        q_nope=q_nope,
    )
    check(
        q_rope.dim() == 3 and q_rope.shape[:2] == q_nope.shape[:2],
        "q_rope must be [sequences, heads, rope_dim], with the sequences and heads of q_nope",
        q_rope=q_rope,
        q_nope=q_nope,
    )


def _check_pages(kv_cache: Tensor, width: int, dtype: torch.dtype) -> None:
    check_dtype((dtype,), kv_cache=kv_cache)
    check(
        kv_cache.dim() == 3 and kv_cache.shape[1] > 0 and kv_cache.shape[2] == width,
        lambda: (
            f"kv_cache must be [blocks, block_size, {width}], as wide as q_nope and q_rope, "
            "block_size at least 1"
        ),
        kv_cache=kv_cache,
    )


@op
def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of one query a sequence to paged latents, which are keys and values at once.

    A row of the cache is a latent and a rotated key, shared by all heads: the key is all of it, the
    value its first latent_dim elements. With ``q = [q_nope, q_rope]`` this is ``softmax(scale * q @
    rows.T) @ rows[:, :latent_dim]`` and the log of the sum, in float32 (float64 for float64), each
    rounded once. The up-projections of keys and values are folded into ``q_nope`` before and into
    ``out`` after (arXiv 2405.04434, 2.1).

    Row ``j`` of sequence ``b`` is ``kv_cache[block_table[b, j // block_size], j % block_size]``,
    for ``j`` below ``seq_lens[b]``, its newest one included. Rows beyond that, and blocks that no
    sequence names, are never used, whatever they hold; entries of ``block_table`` beyond the needed
    ones may be anything. A sequence of no rows gives ``out`` 0 and ``lse`` -inf. NaN in a row makes
    its sequence NaN, in a query its head of its sequence; infinities are as in ``paged_attention``.

    Args:
        q_nope: [sequences, heads, latent_dim], floating point, with any strides; a latent_dim of
            512 is served everywhere.
        q_rope: [sequences, heads, rope_dim], the dtype of ``q_nope``, with any strides; a rope_dim
            of 64 is served everywhere.
        kv_cache: [blocks, block_size, latent_dim + rope_dim], the dtype of ``q_nope``; any block
            size of at least 1, any strides.
        block_table: [sequences, blocks of the longest], int32 or int64.
        seq_lens: [sequences], int32 or int64: rows of each sequence.
        scale: Finite; multiplies the scores: of the head_dim before the folding,
            ``(128 + 64) ** -0.5`` in DeepSeek-V3, which the shapes here do not tell.

    Returns:
        out: [sequences, heads, latent_dim], the dtype of ``q_nope``.
        lse: [sequences, heads], float32 (float64 for float64): the natural log of the sum of
            ``exp(score)``.

    Example:
        >>> q_nope, q_rope = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> kv_cache = torch.tensor([[[8.0, 0.0]], [[3.0, 0.0]], [[1.0, 0.0]]])
        >>> table, lens = torch.tensor([[2, 1]]), torch.tensor([2])
        >>> hal.ops.mla_decode(q_nope, q_rope, kv_cache, table, lens, scale=1.0)
        (tensor([[[2.]]]), tensor([[0.6931]]))
    """
    _check_queries(q_nope, q_rope)
    check_finite(scale)
    _check_pages(kv_cache, q_nope.shape[2] + q_rope.shape[2], q_nope.dtype)
    check_dtype(INDEX, block_table=block_table, seq_lens=seq_lens)
    check(
        block_table.dim() == 2 and block_table.shape[0] == q_nope.shape[0],
        lambda: f"block_table must be [{q_nope.shape[0]}, blocks], a row for each sequence",
        block_table=block_table,
    )
    check_shape(q_nope.shape[:1], seq_lens=seq_lens)
    lse = torch.float64 if q_nope.dtype == torch.float64 else torch.float32
    return q_nope.new_empty(q_nope.shape), q_nope.new_empty(q_nope.shape[:2], dtype=lse)
