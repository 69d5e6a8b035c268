"""Products for a few rows by Triton, fused with what follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.layout import empty, flat_like
from hal_triton.norm import normed
from hal_triton.product import BLOCK, Weight, native, of_pairs, product

Run = Callable[..., Any]

_ACTIVATIONS = {None: None, "swiglu": "silu"}


@prepared
def fused_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Run:
    of, dtype, norm = _weight(x, weight, weight_scale), _dtype(x), None
    if norm_weight is not None:
        norm = normed((*x.shape[:-1], weight.shape[0]), norm_weight, eps, dtype)
        dtype = torch.float32
    fast = native(weight, _dtype(x))
    multiply = product(x, x_scale, of, dtype, _ACTIVATIONS[activation], fast)

    def run(
        x: Tensor,
        weight: Tensor,
        *,
        x_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        norm_weight: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        out = multiply(x, x_scale, weight, weight_scale, None, None)
        return out if norm is None else norm(out, norm_weight)

    return run


@prepared
def fused_moe_gemv(
    x: Tensor,
    weight: Tensor,
    topk_weights: Tensor | None,
    topk_ids: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
) -> Run:
    outs = weight.shape[1] // (1 if activation is None else 2)
    made = empty((*topk_ids.shape, outs), x, _dtype(x))
    of, kind, routed_in = (
        _weight(x, weight, weight_scale),
        _ACTIVATIONS[activation],
        flat_like(topk_weights),
    )
    multiply = of_pairs(x, x_scale, of, outs, kind, topk_ids.numel(), True)

    def run(
        x: Tensor,
        weight: Tensor,
        topk_weights: Tensor | None,
        topk_ids: Tensor,
        *,
        x_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        out, routed = made(), routed_in(topk_weights)
        multiply(out, x, x_scale, weight, weight_scale, None, None, topk_ids.contiguous(), routed)
        return out

    return run


def _weight(x: Tensor, weight: Tensor, scale: Tensor | None) -> Weight:
    """The kind that goes by the weight's dtype."""
    if scale is None:
        return Weight(weight)
    if weight.dtype != torch.uint8:
        return Weight(weight, scale, block=BLOCK)
    return Weight(weight, scale, block=(1, max(x.shape[-1] // max(scale.shape[-1], 1), 1)))


def _dtype(x: Tensor) -> torch.dtype:
    return torch.bfloat16 if x.dtype.itemsize == 1 else x.dtype
