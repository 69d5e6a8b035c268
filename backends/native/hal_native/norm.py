"""Normalisations in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal_native.arithmetic import wide
from hal_native.rotary import rotary_embedding

if TYPE_CHECKING:
    from torch import Tensor


def _over_root(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Arithmetic on transposed rows keeps them transposed.
    return x.to(dtype).contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    normed = _over_root(wide(x), eps)
    return _rounded(normed if weight is None else normed * wide(weight), x.dtype)


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    total = wide(x) + wide(residual)
    normed = _over_root(total, eps) * wide(weight)
    return _rounded(normed, x.dtype), _rounded(total, residual.dtype)


def _one_more(weight: Tensor, *of: Tensor) -> Tensor:
    """``1 + weight`` as exact as the norm ``of`` these is computed."""
    exact = any(each.dtype == torch.float64 for each in of)
    return 1 + (weight.double() if exact else wide(weight))


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return rms_norm(x, _one_more(weight, x), eps)


def gemma_fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    return fused_add_rms_norm(x, residual, _one_more(weight, x, residual), eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    centred = wide(x) - wide(x).mean(-1, keepdim=True)
    # A float32 mean is off by some 1e-7 of itself, which shows in rows far from zero: once more.
    centred = centred - centred.mean(-1, keepdim=True)
    normed = _over_root(centred, eps)
    scaled = normed if weight is None else normed * wide(weight)
    return _rounded(scaled if bias is None else scaled + wide(bias), x.dtype)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
) -> Tensor:
    heads = qkv.unflatten(-1, (num_q_heads + 2 * num_kv_heads, q_weight.shape[0]))
    q, k, v = heads.split((num_q_heads, num_kv_heads, num_kv_heads), dim=1)
    normed = rms_norm(wide(q), q_weight, eps), rms_norm(wide(k), k_weight, eps)
    turned, _ = rotary_embedding(
        positions, torch.cat(normed, dim=1), None, cos_sin_cache, is_neox=is_neox
    )
    return torch.cat((turned.to(v.dtype), v), dim=1).flatten(1)
