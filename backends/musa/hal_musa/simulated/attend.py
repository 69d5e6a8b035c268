"""Attention of one sequence in float32 on the host, for all kernels that attend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attend", "hidden"]


def hidden(rows: int, keys: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys a row may not see, [rows, keys]: masks are aligned at the bottom right.

    A window side that is negative is open.
    """
    row = torch.arange(rows)[:, None] + (keys - rows)
    key = torch.arange(keys)[None, :]
    right = 0 if causal else right
    gone = torch.zeros(rows, keys, dtype=torch.bool)
    if left >= 0:
        gone |= key < row - left
    if right >= 0:
        gone |= key > row + right
    return gone


def _scores(q: Tensor, k: Tensor) -> Tensor:
    shared = q.shape[1] // k.shape[1]
    return torch.einsum("rhd,khd->hrk", q.float(), k.float().repeat_interleave(shared, 1))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    gone: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    qv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax of scaled scores times values, of ``q`` [rows, heads, dim] and fewer heads of keys.

    Args:
        q: [rows, heads, dim].
        k: [keys, kv_heads, dim].
        v: [keys, kv_heads, value_dim].
        scale: Of the scores.
        gone: [rows, keys], what is not seen.
        bias: Added to the scores, [heads, rows, keys].
        softcap: Of the scaled scores; 0 is none.
        sink: [heads], a score without a value.
        qv: [rows, heads, value_dim], whose product with the values is added to the scores.

    Returns:
        ``out`` [rows, heads, value_dim] and the LSE [heads, rows], float32: 0 and -inf for a row
        that sees nothing.
    """
    scores = _scores(q, k) if qv is None else _scores(q, k) + _scores(qv, v)
    scores = scores * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if gone is not None:
        scores = scores.masked_fill(gone, -math.inf)
    lse = torch.logsumexp(scores, -1)
    if sink is not None:
        lse = torch.logaddexp(lse, sink.float()[:, None])
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    values = v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hrk,khd->rhd", weights, values), lse
