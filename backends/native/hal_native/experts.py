"""The experts of a mixture in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_native.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from hal_native.arithmetic import wide
from hal_native.matmul import block_product, product

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
    codes, x_scale = _quantised(x, weight.dtype)
    return block_product(codes, weight[expert], x_scale, scale[expert])


def _quantised(x: Tensor, dtype: torch.dtype, size: int = 128) -> tuple[Tensor, Tensor]:
    """Codes and a scale for each ``size`` columns of float32 ``x``, the last group smaller."""
    limit = torch.finfo(dtype).max
    groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    # Division by a number is multiplication with its inverse on some devices.
    divisor = torch.full((), limit, device=x.device)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / divisor
    codes = (groups / scale).clamp(-limit, limit).to(dtype).flatten(-2)
    return codes[..., : x.shape[-1]], scale.squeeze(-1)
