"""The fused gate of DeepSeek's experts, MATE's and sgl_kernel's, on a simulated device."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_musa.simulated.host import check, host, only, register, sent

__all__ = ["OPERATOR", "chosen", "gate", "unpadded"]

_SCHEMA = (
    "gate(Tensor input, Tensor bias, int groups, int topk_groups, int topk, int shared, "
    "float factor, bool renormalize, bool scale_on_output, int unpadded, int map_policy) "
    "-> (Tensor, Tensor)"
)


def _groups_kept(choice: Tensor, groups: int, kept: int) -> Tensor:
    """Scores of groups that are dropped are -inf: a group counts by its two largest."""
    grouped = choice.unflatten(1, (groups, -1))
    score = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
    order = score.sort(dim=-1, descending=True, stable=True).indices[:, :kept]
    keep = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)
    return grouped.masked_fill(~keep[..., None], -torch.inf).flatten(1)


def chosen(scores: Tensor, bias: Tensor, groups: int, kept: int, count: int) -> Tensor:
    """The ids of the ``count`` best by score and bias in the best groups: the lowest of equals.

    Sums are in the scores' dtype.
    """
    choice = _groups_kept((scores + bias).float(), groups, kept)
    return choice.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def gate(
    logits: Tensor,
    bias: Tensor,
    groups: int,
    kept: int,
    topk: int,
    shared: int,
    factor: float,
    renormalize: bool,
    scale_on_output: bool,
) -> tuple[Tensor, Tensor]:
    """Weights float32 and ids int32, [tokens, topk], the shared experts last.

    Weights are the scores without bias, rounded to the logits' dtype before anything is summed;
    where they sum to zero, dividing by the sum gives NaN.
    """
    scores = torch.sigmoid(logits.float()).to(logits.dtype)
    ids = chosen(scores, bias, groups, kept, topk - shared)
    weights = scores.float().gather(1, ids)
    total = weights.sum(-1, keepdim=True)
    if shared:
        more = torch.arange(logits.shape[1], logits.shape[1] + shared)
        ids = torch.cat([ids, more.expand(len(ids), -1)], 1)
        weights = torch.cat([weights, (total / factor).expand(-1, shared)], 1)
    if renormalize:
        weights = weights / total
    return weights * factor if scale_on_output else weights, ids.to(torch.int32)


def unpadded(ids: Tensor, rows: int) -> Tensor:
    """Ids of rows from ``rows`` on are -1; 0 is all rows."""
    if rows:
        ids[rows:] = -1
    return ids


def _kernel(
    input: Tensor,
    bias: Tensor,
    groups: int,
    topk_groups: int,
    topk: int,
    shared: int,
    factor: float,
    renormalize: bool,
    scale_on_output: bool,
    rows: int,
    map_policy: int,
) -> tuple[Tensor, Tensor]:
    experts = input.shape[1]
    only("input", input.dtype, torch.float32, torch.float16, torch.bfloat16)
    check(bias.dtype == input.dtype, "input and bias should have the same dtype")
    check(experts % groups == 0, f"{experts} experts are not divisible by {groups} groups")
    check(experts % 32 == 0, f"{experts} experts are not divisible by 32")
    check(topk > shared, f"topk ({topk}) has to exceed the shared experts ({shared})")
    check(factor != 0, "routed_scaling_factor must not be 0")
    if map_policy:
        raise NotImplementedError("the simulation of MATE maps no expert's index")
    args = (groups, topk_groups, topk, shared, factor, renormalize, scale_on_output)
    weights, ids = gate(host(input), host(bias), *args)
    return sent(weights, input), sent(unpadded(ids, rows), input)


_library = register("simulated_mate", "FRAGMENT", [_SCHEMA], {"gate": _kernel})
OPERATOR = torch.ops.simulated_mate.gate
