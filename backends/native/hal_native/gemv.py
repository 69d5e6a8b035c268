"""Products for a few rows, fused with what follows them, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_native.activation import silu_and_mul
from hal_native.arithmetic import wide
from hal_native.kv_cache import bits
from hal_native.matmul import block_product, from_nibbles, product
from hal_native.norm import rms_norm


def fused_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    result = _product(x, weight, x_scale, weight_scale)
    if activation is not None:
        result = silu_and_mul(result)
    if norm_weight is not None:
        result = rms_norm(result, norm_weight, eps)
    return _rounded(result, x)


def fused_moe_gemv(
    x: Tensor,
    weight: Tensor,
    topk_weights: Tensor | None,
    topk_ids: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    inside = (topk_ids >= 0) & (topk_ids < weight.shape[0])
    expert = topk_ids.where(inside, 0).long()
    if x.dim() == topk_ids.dim():
        x = x.unsqueeze(-2)
        x_scale = None if x_scale is None else x_scale.unsqueeze(-2)
    scale = None if weight_scale is None else weight_scale[expert]
    chosen = bits(weight)[expert].view(weight.dtype)
    result = _product(x, chosen, x_scale, scale)
    if activation is not None:
        result = silu_and_mul(result)
    if topk_weights is not None:
        result = result * topk_weights.to(result.dtype).unsqueeze(-1)
    return _rounded(result.where(inside.unsqueeze(-1), 0), x)


def _product(
    x: Tensor, weight: Tensor, x_scale: Tensor | None, weight_scale: Tensor | None
) -> Tensor:
    """The product that goes by the weight's dtype, not yet rounded."""
    if weight_scale is None:
        return product(wide(x), wide(weight))
    if x_scale is not None:
        return block_product(x, weight, x_scale, weight_scale)
    size = x.shape[-1] // max(weight_scale.shape[-1], 1)
    values = from_nibbles(weight, weight_scale, max(size, 1), None, wide(x).dtype)
    return product(wide(x), values)


def _rounded(result: Tensor, x: Tensor) -> Tensor:
    dtype = torch.bfloat16 if x.dtype.itemsize == 1 else x.dtype
    return result.to(dtype).contiguous()
