"""Routing to experts, and what surrounds them, in plain torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hal_native.arithmetic import wide

if TYPE_CHECKING:
    from torch import Tensor


def topk_softmax(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    logits = _logits(gating, correction_bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    score = _softmax(_biased(logits, correction_bias))
    return _taken(score, score.argsort(dim=-1, descending=True, stable=True)[..., :k], renormalize)


def topk_sigmoid(
    gating: Tensor, k: int, *, renormalize: bool = False, correction_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    score, choice = _choice(_sigmoid(_logits(gating, correction_bias)), correction_bias)
    ids = choice.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return _taken(score, ids, renormalize)


def grouped_topk(
    gating: Tensor,
    k: int,
    *,
    num_groups: int,
    topk_groups: int,
    scoring: str = "softmax",
    correction_bias: Tensor | None = None,
    renormalize: bool = True,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0,
    scale_on_output: bool = False,
) -> tuple[Tensor, Tensor]:
    logits = _logits(gating, correction_bias)
    scores = _sigmoid(logits) if scoring == "sigmoid" else _softmax(logits)
    score, choice = _choice(scores, correction_bias)
    best = 1 if correction_bias is None else 2
    kept = _kept(choice.unflatten(-1, (num_groups, -1)), topk_groups, best)
    ids = choice.argsort(dim=-1, descending=True, stable=True)
    # What is kept goes first; a score cannot say so, since any number may be one.
    ahead = kept.gather(-1, ids).byte().argsort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, ahead)[..., : k - num_fused_shared_experts]
    weights, ids = _taken(score, ids, renormalize, routed_scaling_factor if scale_on_output else 1)
    if not num_fused_shared_experts:
        return weights, ids
    return _with_shared(
        weights,
        ids,
        gating.shape[-1] + torch.arange(num_fused_shared_experts, device=ids.device),
        1.0 if scale_on_output else 1 / routed_scaling_factor,
    )


def moe_align_block_size(
    topk_ids: Tensor, num_experts: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    pairs, device = topk_ids.numel(), topk_ids.device
    ids, order = topk_ids.flatten().sort(stable=True)
    # Where each expert starts in that order, and where the last ends; other ids are outside.
    experts = torch.arange(num_experts + 1, device=device)
    starts = torch.searchsorted(ids, experts.to(ids.dtype))
    blocks_of = (starts.diff() + block_size - 1) // block_size
    ends = blocks_of.cumsum(0)

    reached = min(pairs, num_experts)
    block = torch.arange(reached + (pairs - reached) // block_size, device=device)
    owner = torch.searchsorted(ends, block, right=True)  # num_experts past the last block used
    of = owner.clamp(max=num_experts - 1)
    first = starts[of] + (block - (ends - blocks_of)[of]) * block_size
    place = first.unsqueeze(-1) + torch.arange(block_size, device=device)
    filled = place < starts[of + 1].unsqueeze(-1)
    sorted_ids = order[place.clamp(max=pairs - 1)].where(filled, pairs).flatten()
    owner = owner.where(owner < num_experts, -1)
    return sorted_ids.int(), owner.int(), (ends[-1:] * block_size).int()


def moe_sum(x: Tensor, *, scale: float = 1.0) -> Tensor:
    return (wide(x).sum(dim=-2) * scale).to(x.dtype).contiguous()


def _logits(gating: Tensor, bias: Tensor | None) -> Tensor:
    """The logits in the dtype that everything is computed in, which a bias may widen."""
    return gating.double() if bias is not None and bias.dtype == torch.float64 else wide(gating)


def _biased(scores: Tensor, bias: Tensor | None) -> Tensor:
    return scores if bias is None else scores + wide(bias)


def _sigmoid(logits: Tensor) -> Tensor:
    """The sigmoid, equal for equal logits.

    On a CPU torch's own rounds the last elements of a tensor by other code than the rest, so that
    experts with equal logits would not tie. Its softmax treats all rows alike.
    """
    logits = logits.clamp(-1e4, 1e4)  # An infinity less itself is NaN.
    return torch.stack((logits, torch.zeros_like(logits)), dim=-1).softmax(dim=-1)[..., 0]


def _softmax(logits: Tensor) -> Tensor:
    # Without any finite logit the softmax is zeros, not NaN.
    empty = (logits == -math.inf).all(dim=-1, keepdim=True)
    return logits.softmax(dim=-1).masked_fill(empty, 0)


def _choice(scores: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scores, and what chooses; a row with NaN is nothing but NaN in both."""
    choice = _biased(scores, bias)
    broken = choice.isnan().any(dim=-1, keepdim=True)
    return scores.masked_fill(broken, math.nan), choice.masked_fill(broken, math.nan)


def _kept(choice: Tensor, topk_groups: int, best: int) -> Tensor:
    """Which experts are in the best groups; ``choice`` is [..., groups, experts of a group]."""
    group = choice.topk(min(best, choice.shape[-1]), dim=-1).values.sum(dim=-1)
    ranked = group.argsort(dim=-1, descending=True, stable=True)[..., :topk_groups]
    kept = torch.zeros_like(group, dtype=torch.bool).scatter(-1, ranked, True)
    return kept.unsqueeze(-1).expand(choice.shape).flatten(-2)


def _taken(
    score: Tensor, ids: Tensor, renormalize: bool, factor: float = 1
) -> tuple[Tensor, Tensor]:
    """The weights of the chosen experts, and their ids, as the operators return them."""
    weights = score.gather(-1, ids)
    if renormalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
    # The first columns of a single row pass for contiguous with the strides of all columns.
    return (weights * factor).float(), ids.to(torch.int32, memory_format=torch.contiguous_format)


def _with_shared(
    weights: Tensor, ids: Tensor, shared: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Append the shared experts; a row that is NaN stays so."""
    rows = (*ids.shape[:-1], shared.numel())
    # A row with NaN has nothing else.
    weighed = torch.where(weights[..., :1].isnan(), math.nan, weight).expand(rows)
    return (
        torch.cat([weights, weighed.to(weights.dtype)], dim=-1),
        torch.cat([ids, shared.int().expand(rows)], dim=-1),
    )
