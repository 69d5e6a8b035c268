"""Products for a few rows by Triton, fused with what follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal_triton.layout import flat
from hal_triton.norm import normed
from hal_triton.product import BLOCK, Weight, of_pairs, product

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS = {None: None, "swiglu": "silu"}


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
    of, dtype = _weight(x, weight, weight_scale), _dtype(x)
    if norm_weight is None:
        return product(x, x_scale, of, dtype, _ACTIVATIONS[activation])
    result = product(x, x_scale, of, torch.float32, None)
    return normed(result, norm_weight, eps, dtype)


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
    outs = weight.shape[1] // (1 if activation is None else 2)
    out = x.new_empty((*topk_ids.shape, outs), dtype=_dtype(x))
    of, kind = _weight(x, weight, weight_scale), _ACTIVATIONS[activation]
    of_pairs(out, x, x_scale, of, kind, topk_ids.contiguous(), flat(topk_weights))
    return out


def _weight(x: Tensor, weight: Tensor, scale: Tensor | None) -> Weight:
    """The kind that goes by the weight's dtype."""
    if scale is None:
        return Weight(weight)
    if weight.dtype != torch.uint8:
        return Weight(weight, scale, block=BLOCK)
    return Weight(weight, scale, block=(1, max(x.shape[-1] // max(scale.shape[-1], 1), 1)))


def _dtype(x: Tensor) -> torch.dtype:
    return torch.bfloat16 if x.dtype.itemsize == 1 else x.dtype
