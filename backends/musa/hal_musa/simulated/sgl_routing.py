"""sgl_kernel's choice of experts, its sums over them, and its grammar masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal_musa.simulated.host import check, host, only, sent, write
from hal_musa.simulated.mate_gate import gate

__all__ = ["KERNELS", "bitmask"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _best(scores: Tensor, count: int) -> Tensor:
    """The lowest id of equals."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _routed(weights: Tensor, ids: Tensor, gating: Tensor) -> None:
    only("gating_output", gating.dtype, *_FLOATS)
    check(weights.dtype == torch.float32, "topk_weights has to be float32")
    check(ids.dtype == torch.int32, "topk_indices has to be int32")
    check(weights.shape[-1] <= gating.shape[-1], "topk exceeds the experts")


def _topk_softmax(
    topk_weights: Tensor,
    topk_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    moe_softcapping: float,
    correction_bias: Tensor | None,
) -> None:
    """Weights have the bias in them; a row with NaN has id 0 and weight -1 in all places."""
    _routed(topk_weights, topk_indices, gating_output)
    logits = host(gating_output).float()
    if moe_softcapping:
        logits = moe_softcapping * torch.tanh(logits / moe_softcapping)
    if correction_bias is not None:
        logits = logits + host(correction_bias)
    probabilities = logits.softmax(-1)
    ids = _best(probabilities, topk_weights.shape[-1])
    weights = probabilities.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    lost = probabilities.isnan().any(-1, keepdim=True)
    write(topk_weights, weights.masked_fill(lost, -1.0))
    write(topk_indices, ids.masked_fill(lost, 0))


def _topk_sigmoid(
    topk_weights: Tensor,
    topk_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    correction_bias: Tensor | None,
) -> None:
    """A weight is (s + bias) - bias: of large biases little of s is left; a zero sum gives NaN."""
    _routed(topk_weights, topk_indices, gating_output)
    scores = torch.sigmoid(host(gating_output).float())
    bias = torch.zeros(scores.shape[-1]) if correction_bias is None else host(correction_bias)
    ids = _best(scores + bias, topk_weights.shape[-1])
    weights = (scores + bias).gather(1, ids) - bias[ids]
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    write(topk_weights, weights)
    write(topk_indices, ids)


def _moe_fused_gate(
    input: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> list[Tensor]:
    experts = input.shape[1]
    only("input", input.dtype, *_FLOATS)
    check(bias.dtype == input.dtype, "input and bias should have the same dtype")
    check(experts & (experts - 1) == 0, f"{experts} experts are no power of two")
    check(experts % num_expert_group == 0, "experts are not divisible by groups")
    check(experts // num_expert_group <= 32, "a group has more than 32 experts")
    args = (num_expert_group, topk_group, topk, num_fused_shared_experts, routed_scaling_factor)
    found = gate(host(input), host(bias), *args, True, apply_routed_scaling_factor_on_output)
    return [sent(x, input) for x in found]


def _summed(input: Tensor, output: Tensor, factor: float) -> None:
    only("input", input.dtype, *_FLOATS)
    write(output, host(input).float().sum(1) * factor)


def bitmask(logits: Tensor, bitmask: Tensor, indices: Tensor | None = None) -> None:
    """Bit 1 keeps, lowest first; columns beyond the mask stay."""
    only("logits", logits.dtype, *_FLOATS)
    check(bitmask.dtype == torch.int32, "bitmask has to be int32")
    check(logits.is_contiguous(), "logits have to be contiguous")
    here, words = host(logits).view(-1, logits.shape[-1]), host(bitmask)
    words = words.reshape(-1, words.shape[-1])
    keep = ((words[..., None] >> torch.arange(32, dtype=torch.int32)) & 1).flatten(1).bool()
    width = min(here.shape[-1], keep.shape[-1])
    rows = torch.arange(len(here)) if indices is None else host(indices).long()
    here[rows, :width] = here[rows, :width].masked_fill(~keep[rows, :width], -torch.inf)


KERNELS: dict[str, Callable[..., Any]] = {
    "topk_softmax": _topk_softmax,
    "topk_sigmoid": _topk_sigmoid,
    "moe_fused_gate": _moe_fused_gate,
    "moe_sum_reduce": _summed,
    "moe_sum": lambda input, output: _summed(input, output, 1.0),
}
