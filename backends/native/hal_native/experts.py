"""The experts of a mixture in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.ops.experts import BLOCK
from hal_native.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from hal_native.arithmetic import wide
from hal_native.matmul import block_product, product
from hal_native.quant import quantized

_GATED = {"silu": silu_and_mul, "gelu": gelu_and_mul, "gelu_tanh": gelu_tanh_and_mul}


def fused_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    tokens = wide(x)
    total = torch.zeros(x.shape, dtype=tokens.dtype, device=x.device)
    # Every expert sees every token: which tokens chose it is not known on the host.
    for expert in range(w13.shape[0]):
        chosen = topk_ids == expert
        weight = topk_weights.to(total.dtype).where(chosen, 0).sum(-1, keepdim=True)
        inner = _GATED[activation](_linear(tokens, w13, w13_scale, expert))
        outer = weight * _linear(inner, w2, w2_scale, expert)
        total = total + outer.where(chosen.any(-1, keepdim=True), 0)
    return total.to(x.dtype)


def _linear(x: Tensor, weight: Tensor, scale: Tensor | None, expert: int) -> Tensor:
    if scale is None:
        return product(x, weight[expert].to(x.dtype))
    codes, x_scale = quantized(x, BLOCK, weight.dtype)
    return block_product(codes, weight[expert], x_scale, scale[expert])
