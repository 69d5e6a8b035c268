"""Routing of tokens to experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def topk_softmax(
    topk_weights: Tensor,
    topk_ids: Tensor,
    gating_output: Tensor,
    renormalize: bool = False,
    moe_softcapping: float = 0.0,
    correction_bias: Tensor | None = None,
) -> None:
    """Into weights float32 and ids int32: softcap, then bias, then softmax over all experts."""
    torch.ops.sgl_kernel.topk_softmax(
        topk_weights, topk_ids, gating_output, renormalize, moe_softcapping, correction_bias
    )


def topk_sigmoid(
    topk_weights: Tensor,
    topk_ids: Tensor,
    gating_output: Tensor,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
) -> None:
    """Into weights float32 and ids int32: a weight is (s + bias) - bias, which is not s."""
    torch.ops.sgl_kernel.topk_sigmoid(
        topk_weights, topk_ids, gating_output, renormalize, correction_bias
    )


def moe_fused_gate(
    input_tensor: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 0,
    apply_routed_scaling_factor_on_output: bool = False,
) -> Any:
    """Weights float32 and ids int32, always renormalised; the eighth argument is not MATE's."""
    return torch.ops.sgl_kernel.moe_fused_gate(
        *(input_tensor, bias, num_expert_group, topk_group, topk, num_fused_shared_experts),
        *(routed_scaling_factor, apply_routed_scaling_factor_on_output),
    )


def moe_sum_reduce(
    input_tensor: Tensor, output_tensor: Tensor, routed_scaling_factor: float = 0
) -> None:
    """The sum over [tokens, k, hidden]'s k times the factor, into an output not declared so."""
    torch.ops.sgl_kernel.moe_sum_reduce(input_tensor, output_tensor, routed_scaling_factor)


def moe_sum(input_tensor: Tensor, output_tensor: Tensor) -> None:
    """The sum over [tokens, k, hidden]'s k."""
    torch.ops.sgl_kernel.moe_sum(input_tensor, output_tensor)
