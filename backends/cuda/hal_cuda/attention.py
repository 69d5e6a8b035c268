"""Attention by cuDNN and flash attention, made to keep what is broken where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_cuda.crossing import portable, wins
from hal_cuda.kernels.attention import cleaned, finish, spread
from hal_cuda.layout import begin_aligned
from hal_triton import attention as triton
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div

__all__ = [
    "attend",
    "flash",
    "flash_supports",
    "surrounded",
    "varlen_attention",
    "varlen_attention_supports",
]

_HALVES = (torch.bfloat16, torch.float16)
_WIDEST = 128
_NARROW = 64


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
    """By cuDNN for one long sequence that attends to itself, else maybe by flash attention.

    Where the only sequence ends is known to the device alone, and without a mask the padding would
    be seen; with the causal one no query sees a key that comes after it. torch's call of cuDNN for
    ragged sequences plans anew each time, and aligns its mask at the first key.
    """
    given = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    options = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
    otherwise = portable(triton.varlen_attention, *given, **options, sinks=sinks)
    sequences, square = max(cu_seqlens_q.shape[0] - 1, 1), q.shape[0] == k.shape[0]
    if q.shape[2] == v.shape[2] and wins("flash", q.shape[0] // sequences, q):
        otherwise = flash
    cudnn = "narrow cudnn" if q.shape[2] <= _NARROW else "cudnn"
    if not (causal and square and sequences == 1 and wins(cudnn, q.shape[0], q)):
        return otherwise

    def run(*given: Any, **options: Any) -> tuple[Tensor, Tensor]:
        q, k, v, starts, others, *_ = given
        if _same(starts, others):
            return attend(q, k, v, starts, scale)
        return otherwise(*given, **options)

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
    if q.dtype not in _HALVES:
        return "fused attention is in float16 and bfloat16"
    if max(q.shape[2], v.shape[2]) > _WIDEST or q.shape[2] % 8 or v.shape[2] % 8:
        return f"fused attention takes heads of up to {_WIDEST} columns, a multiple of 8"
    if tuple(window) != (-1, -1) or softcap or sinks is not None:
        return "torch's calls of fused attention have no window, softcap or sinks"
    if scale is not None and scale <= 0:
        return "fused attention takes the largest score before it scales"
    if not all(map(_fits, (q, k, v))):
        return "fused attention takes heads that begin at multiples of 16 bytes"
    return None


def flash_supports(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> str | None:
    if q.shape[2] != v.shape[2]:
        return "flash attention takes values as wide as keys"
    return varlen_attention_supports(q, k, v, *args, **kwargs)


def _fits(x: Tensor) -> bool:
    """Whether the strides [tokens, heads, columns] are as fused attention takes them."""
    token, head, column = x.stride()
    return column == 1 and token % 8 == head % 8 == 0 and min(token, head) > 0


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors of one size are one in memory, and so hold the same."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride()


def attend(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Causal attention of one sequence to itself, and the log of the sums.

    Args:
        q: [tokens, heads, head_dim].
        k: [tokens, kv_heads, head_dim].
        v: [tokens, kv_heads, value_head_dim].
        starts: [2]: 0, and the number of tokens that are no padding.
        scale: Above 0; None is ``head_dim ** -0.5``.
    """
    tokens, longest = q.shape[0], planned(q.shape[0])
    values, broken = cleaned(v, longest)
    q, k = (_padded(begin_aligned(x), longest) for x in (q, k))
    out, sums = by_cudnn(q, k, values, scale)
    out = out[:tokens].contiguous()
    lse = finish(out, sums, starts)
    spread(out, v, broken, starts, starts, causal=True)
    return out, lse


def flash(
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
    """By what serves torch's flash attention: the second one, or what torch was told to use.

    ``torch.nn.attention.activate_flash_attention_impl("FA3")`` is how it is told.
    """
    starts, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return surrounded(by_flash, (q, k, v), starts, longest, causal, scale)


def surrounded(
    call: Callable[..., tuple[Tensor, Tensor]],
    given: tuple[Tensor, Tensor, Tensor],
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention by ``call``, with what is broken kept where it is, and padding without results.

    Args:
        call: Has the parameters and the results of ``by_flash``.
        given: Queries, keys and values.
        starts: Where the sequences of queries and of keys begin.
        longest: The most queries and keys that a sequence may have.
        causal: Whether a query sees no key behind its own position.
        scale: Above 0; None is ``head_dim ** -0.5``.
    """
    q, k, v = given
    if not (q.numel() and k.numel()):
        lse = q.new_full(q.shape[:2], -math.inf, dtype=torch.float32)
        return q.new_zeros((*q.shape[:2], v.shape[2])), lse
    values, broken = cleaned(v, v.shape[0])
    q, k = begin_aligned(q), begin_aligned(k)
    of_q, of_k = (x.to(torch.int32).contiguous() for x in starts)
    out, sums = call(q, k, values, of_q, of_k, longest, causal, scale)
    lse = finish(out, sums, of_q)
    spread(out, v, broken, of_q, of_k, causal=causal)
    return out, lse


def by_cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Out [tokens, heads, value_head_dim] and the logs of the sums [heads, tokens]."""
    heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    result = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads_first, None, True, 0.0, True, False, scale=scale
    )
    return result[0].squeeze(0).transpose(0, 1), result[1].view(q.shape[1], q.shape[0])


def by_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest: tuple[int, int],
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Out [tokens, heads, head_dim] and the logs of the sums [heads, tokens]."""
    result = torch.ops.aten._flash_attention_forward(
        q, k, v, starts_q, starts_k, *longest, 0.0, causal, False, scale=scale
    )
    return result[0].contiguous(), result[1]


def planned(tokens: int) -> int:
    """As many tokens or a few more.

    cuDNN plans for 40 ms for each length that it has not seen: there are 8 from one power of two to
    the next, and on average they are longer by a sixteenth.
    """
    step = max(next_power_of_2(tokens) // 16, 128)
    return ceil_div(tokens, step) * step


def _padded(x: Tensor, longest: int) -> Tensor:
    """``x`` with rows of 0 up to so many."""
    tokens = x.shape[0]
    if tokens == longest:
        return x
    whole = x.new_empty((longest, *x.shape[1:]))
    whole[:tokens].copy_(x)
    whole[tokens:].zero_()
    return whole
