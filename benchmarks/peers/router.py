"""Routers and what surrounds experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peers.registry import compiled, peer, sgl, vllm


def empty(gating: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Room for weights float32 and ids int32, [tokens, k] each."""
    shape = (gating.shape[0], k)
    return gating.new_empty(shape, dtype=torch.float32), gating.new_empty(shape, dtype=torch.int32)


def _share(weights: Tensor, renormalize: bool) -> Tensor:
    return weights / weights.sum(-1, keepdim=True) if renormalize else weights


@peer("torch", "topk_softmax")
@compiled("topk_softmax")
def topk_softmax(gating: Tensor, k: int, renormalize: bool) -> Any:
    weights, ids = gating.float().softmax(-1).topk(k)
    return _share(weights, renormalize), ids.int()


@sgl("topk_softmax", "topk_softmax")
def sgl_topk_softmax(gating: Tensor, k: int, renormalize: bool) -> Any:
    weights, ids = empty(gating, k)
    torch.ops.sgl_kernel.topk_softmax(weights, ids, gating, renormalize, 0.0, None)
    return weights, ids


@vllm("topk_softmax", "topk_softmax", "_moe_C")
def vllm_topk_softmax(gating: Tensor, k: int, renormalize: bool) -> Any:
    weights, ids = empty(gating, k)
    torch.ops._moe_C.topk_softmax(weights, ids, torch.empty_like(ids), gating, renormalize, None)
    return weights, ids


@peer("torch", "topk_sigmoid")
def topk_sigmoid(gating: Tensor, k: int, renormalize: bool, correction_bias: Tensor) -> Any:
    scores = gating.float().sigmoid()
    ids = (scores + correction_bias).topk(k).indices
    return _share(scores.gather(-1, ids), renormalize), ids.int()


@sgl("topk_sigmoid", "topk_sigmoid")
def sgl_topk_sigmoid(gating: Tensor, k: int, renormalize: bool, correction_bias: Tensor) -> Any:
    weights, ids = empty(gating, k)
    torch.ops.sgl_kernel.topk_sigmoid(weights, ids, gating, renormalize, correction_bias)
    return weights, ids


@vllm("topk_sigmoid", "topk_sigmoid", "_moe_C")
def vllm_topk_sigmoid(gating: Tensor, k: int, renormalize: bool, correction_bias: Tensor) -> Any:
    weights, ids = empty(gating, k)
    torch.ops._moe_C.topk_sigmoid(
        weights, ids, torch.empty_like(ids), gating, renormalize, correction_bias
    )
    return weights, ids


@peer("torch", "grouped_topk")
@compiled("grouped_topk")
def grouped_topk(
    gating: Tensor,
    k: int,
    num_groups: int,
    topk_groups: int,
    scoring: str,
    correction_bias: Tensor,
) -> Any:
    scores = gating.float().sigmoid()
    choice = scores + correction_bias
    grouped = choice.unflatten(-1, (num_groups, -1))
    best = grouped.topk(2, dim=-1).values.sum(-1).topk(topk_groups).indices
    kept = torch.zeros_like(grouped[..., 0]).scatter(-1, best, 1.0).bool()
    left = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)
    ids = left.topk(k).indices
    return _share(scores.gather(-1, ids), True), ids.int()


@sgl("grouped_topk", "moe_fused_gate")
def sgl_grouped_topk(
    gating: Tensor,
    k: int,
    num_groups: int,
    topk_groups: int,
    scoring: str,
    correction_bias: Tensor,
) -> Any:
    call = torch.ops.sgl_kernel.moe_fused_gate
    return tuple(call(gating, correction_bias, num_groups, topk_groups, k, 0, 1.0, False))


@vllm("grouped_topk", "grouped_topk", "_moe_C")
def vllm_grouped_topk(
    gating: Tensor,
    k: int,
    num_groups: int,
    topk_groups: int,
    scoring: str,
    correction_bias: Tensor,
) -> Any:
    sigmoid = 1  # Of vLLM's ScoringFunc.
    call = torch.ops._moe_C.grouped_topk
    return tuple(call(gating, num_groups, topk_groups, k, True, 1.0, correction_bias, sigmoid))


@peer("torch", "moe_align_block_size")
def torch_align(topk_ids: Tensor, num_experts: int, block_size: int) -> Any:
    pairs = topk_ids.numel()
    ids, order = topk_ids.flatten().sort()
    experts = torch.arange(num_experts + 1, device=ids.device, dtype=ids.dtype)
    starts = torch.searchsorted(ids, experts)
    ends = ((starts.diff() + block_size - 1) // block_size).cumsum(0) * block_size
    # Each pair stands as far behind its expert's first place as behind its first pair.
    shift = torch.cat((ends.new_zeros(1), ends[:-1])) - starts[:-1]
    reached = min(pairs, num_experts)
    places = (reached + (pairs - reached) // block_size) * block_size
    sorted_pairs = torch.full((places,), pairs, dtype=torch.int32, device=ids.device)
    at = torch.arange(pairs, device=ids.device) + shift[ids.long()]
    sorted_pairs[at] = order.int()
    first = torch.arange(0, places, block_size, device=ids.device)
    return sorted_pairs, torch.searchsorted(ends, first, right=True).int(), ends[-1:].int()


def room(topk_ids: Tensor, experts: int, block: int) -> list[Tensor]:
    """Room for sorted pairs, the expert of each block, and how many pairs there are."""
    pairs = topk_ids.numel()
    places = min(pairs + experts * (block - 1), pairs * block)
    return [
        topk_ids.new_empty(size, dtype=torch.int32) for size in (places, -(-places // block), 1)
    ]


@sgl("moe_align_block_size", "moe_align_block_size")
def sgl_align(topk_ids: Tensor, num_experts: int, block_size: int) -> Any:
    """Its experts count from -1, for what is on another device."""
    out = room(topk_ids, num_experts + 1, block_size)
    sums = topk_ids.new_empty(num_experts + 2)
    call = torch.ops.sgl_kernel.moe_align_block_size
    call(topk_ids, num_experts + 1, block_size, *out, sums, True, False)
    return tuple(out)


@vllm("moe_align_block_size", "moe_align_block_size", "_moe_C")
def vllm_align(topk_ids: Tensor, num_experts: int, block_size: int) -> Any:
    out = room(topk_ids, num_experts, block_size)
    torch.ops._moe_C.moe_align_block_size(topk_ids, num_experts, block_size, *out, None)
    return tuple(out)


@peer("torch", "moe_sum")
@compiled("moe_sum")
def moe_sum(x: Tensor) -> Tensor:
    return x.sum(1)


@sgl("moe_sum", "moe_sum_reduce")
def sgl_moe_sum(x: Tensor) -> Tensor:
    out = torch.empty_like(x[:, 0])
    torch.ops.sgl_kernel.moe_sum_reduce(x, out, 1.0)
    return out


@vllm("moe_sum", "moe_sum", "_moe_C")
def vllm_moe_sum(x: Tensor) -> Tensor:
    out = torch.empty_like(x[:, 0])
    torch.ops._moe_C.moe_sum(x, out)
    return out
