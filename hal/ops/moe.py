"""Declarations of the operators around a mixture of experts: routing, blocks, and the sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

SCORINGS = "softmax", "sigmoid"


def _check_routed(gating: Tensor, k: int, bias: Tensor | None) -> None:
    check_floating(gating=gating, correction_bias=bias)
    check(gating.dim() > 0, "gating must be [..., experts]", gating=gating)
    check_shape(gating.shape[-1:], correction_bias=bias)
    check(k >= 1, "k must be at least 1", k=k)


def _results(gating: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*gating.shape[:-1], k)
    ids = gating.new_empty(shape, dtype=torch.int32)
    return gating.new_empty(shape, dtype=torch.float32), ids


def _check_groups(
    experts: int, num_groups: int, topk_groups: int, k: int, num_fused_shared_experts: int
) -> None:
    check(num_groups >= 1, "num_groups must be at least 1", num_groups=num_groups)
    check(
        experts % num_groups == 0,
        lambda: f"num_groups must divide the {experts} experts",
        num_groups=num_groups,
    )
    check(
        1 <= topk_groups <= num_groups,
        lambda: f"topk_groups must be from 1 to num_groups = {num_groups}",
        topk_groups=topk_groups,
    )
    check(
        num_fused_shared_experts >= 0,
        "num_fused_shared_experts must not be negative",
        num_fused_shared_experts=num_fused_shared_experts,
    )
    allowed = topk_groups * (experts // num_groups)
    check(
        1 <= k - num_fused_shared_experts <= allowed,
        lambda: f"k without the shared experts must be from 1 to the {allowed} of the kept groups",
        k=k,
        num_fused_shared_experts=num_fused_shared_experts,
    )


@op
def topk_softmax(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The ``k`` most probable experts of each token: ``softmax(cap(gating) + bias)``, in float32.

    First the cap, ``softcap * tanh(gating / softcap)``, then the bias, then the softmax over all
    experts; so the bias chooses and shows in the weights. Experts come in descending order of
    probability, equal ones by index. ``renormalize`` divides the weights by their sum, and a sum of
    0 gives zeros.

    A row of nothing but -inf has zeros for weights. NaN, or +inf without a cap, makes the weights
    of its row NaN and the ids 0 to k - 1. Ids are in range and distinct, whatever the row. Computed
    in float64 if ``gating`` or the bias is, and the weights rounded once.

    Args:
        gating: [..., experts], floating point, the router's logits.
        k: From 1 to experts.
        renormalize: Whether the weights of a token sum to 1.
        correction_bias: [experts], floating point of any dtype.
        softcap: Finite and not negative; 0 is no cap.

    Returns:
        The weights [..., k] float32, and the ids [..., k] int32.

    Example:
        >>> hal.ops.topk_softmax(torch.tensor([[0.0, 2.0, 1.0]]), 2, renormalize=True)
        (tensor([[0.7311, 0.2689]]), tensor([[1, 2]], dtype=torch.int32))
    """
    _check_routed(gating, k, correction_bias)
    check(k <= gating.shape[-1], "k must be at most the number of experts", k=k, gating=gating)
    check(0 <= softcap < math.inf, "softcap must be finite and not negative", softcap=softcap)
    return _results(gating, k)


@op
def topk_sigmoid(
    gating: Tensor, k: int, *, renormalize: bool = False, correction_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` best experts of each token by ``s + bias``, weighted by ``s = sigmoid(gating)``.

    In float32: the bias chooses and does not show in the weights, which are exactly ``s``. Experts
    come in descending order of ``s + bias``, equal ones by index. ``renormalize`` divides the
    weights by their sum, and a sum of 0 gives zeros.

    NaN in a row or in the bias makes the row's weights NaN and its ids 0 to k - 1. Ids are in range
    and distinct, however low the scores. Computed in float64 if ``gating`` or the bias is, and the
    weights rounded once.

    Args:
        gating: [..., experts], floating point, the router's logits.
        k: From 1 to experts.
        renormalize: Whether the weights of a token sum to 1.
        correction_bias: [experts], floating point of any dtype.

    Returns:
        The weights [..., k] float32, and the ids [..., k] int32.

    Example:
        >>> bias = torch.tensor([0.0, 0.0, 1.0])
        >>> hal.ops.topk_sigmoid(torch.tensor([[0.0, 2.0, 1.0]]), 2, correction_bias=bias)
        (tensor([[0.7311, 0.8808]]), tensor([[2, 1]], dtype=torch.int32))
    """
    _check_routed(gating, k, correction_bias)
    check(k <= gating.shape[-1], "k must be at most the number of experts", k=k, gating=gating)
    return _results(gating, k)


@op
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
    """The best experts of each token from its best groups, as DeepSeek routes (arXiv 2412.19437).

    In float32: ``s`` is the softmax over all experts, or the sigmoid, of ``gating``; experts are
    chosen by ``s + bias`` and weighted by exactly ``s``. Groups are runs of ``experts //
    num_groups`` experts. A group scores the sum of its two largest ``s + bias`` (of two equal ones
    both; of a group of one its only), without a bias its largest ``s``; the ``topk_groups`` best
    are kept, equal ones by index, and no expert is taken from another. Experts come in descending
    order of ``s + bias``, equal ones by index.

    Shared experts, which every token has, take the last ``num_fused_shared_experts`` of the ``k``
    places with the ids experts, experts + 1, ... ``renormalize`` divides the routed weights by
    their sum, and a sum of 0 gives zeros. A shared expert weighs ``1 / routed_scaling_factor``,
    since whoever combines the experts multiplies all of them by that factor; ``scale_on_output``
    does so here.

    NaN in a row or in the bias makes the row's weights NaN and its ids 0, 1, ... before the shared
    ones, as does +inf for the softmax; a row of nothing but -inf has a softmax of zeros. Ids are in
    range and distinct. Computed in float64 if ``gating`` or the bias is, and the weights rounded
    once.

    Args:
        gating: [..., experts], floating point, the router's logits.
        k: How many ids a token has, shared ones among them; at least one is routed, and at most as
            many as the kept groups have.
        num_groups: A divisor of experts.
        topk_groups: From 1 to num_groups.
        scoring: ``"softmax"`` or ``"sigmoid"``.
        correction_bias: [experts], floating point of any dtype.
        renormalize: Whether the routed weights of a token sum to 1, before they are scaled.
        num_fused_shared_experts: Not negative.
        routed_scaling_factor: Finite and above 0.
        scale_on_output: Whether the weights are multiplied by the factor.

    Returns:
        The weights [..., k] float32, and the ids [..., k] int32.

    Example:
        >>> gating = torch.tensor([[3.0, -3.0, 2.0, 1.0]])
        >>> groups = {"num_groups": 2, "topk_groups": 1, "scoring": "sigmoid"}
        >>> hal.ops.grouped_topk(gating, 2, **groups)
        (tensor([[0.9526, 0.0474]]), tensor([[0, 1]], dtype=torch.int32))
        >>> hal.ops.grouped_topk(gating, 2, correction_bias=torch.zeros(4), **groups)
        (tensor([[0.5464, 0.4536]]), tensor([[2, 3]], dtype=torch.int32))
    """
    _check_routed(gating, k, correction_bias)
    _check_groups(gating.shape[-1], num_groups, topk_groups, k, num_fused_shared_experts)
    check(scoring in SCORINGS, "scoring must be 'softmax' or 'sigmoid'", scoring=scoring)
    check(
        0 < routed_scaling_factor < math.inf,
        "routed_scaling_factor must be finite and above 0",
        routed_scaling_factor=routed_scaling_factor,
    )
    return _results(gating, k)


@op
def moe_align_block_size(
    topk_ids: Tensor, num_experts: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the routed pairs by expert into blocks of one expert each, for a grouped product.

    A pair is a position in the flattened ``topk_ids``: token ``pair // k``, choice ``pair % k``.
    Experts follow each other, each with as many whole blocks as its pairs need; within an expert
    pairs ascend. What remains of a block, and all that is past the last, holds the number of pairs,
    which is no pair. A pair whose id is not an expert, such as -1, is left out.

    There are as many blocks as the worst case needs: ``e + (pairs - e) // block_size``, where ``e``
    is the smaller of pairs and ``num_experts``. Nothing is read back to the host.

    Args:
        topk_ids: Any shape, int32 or int64, fewer than 2**31 in all.
        num_experts: At least 1 and below 2**31.
        block_size: At least 1 and below 2**31; there must be fewer than 2**31 places in all.

    Returns:
        The pairs [blocks * block_size] int32; the expert of each block [blocks] int32, -1 past the
        last block used; and how many of the first are in use [1] int32, a multiple of the size.

    Example:
        >>> hal.ops.moe_align_block_size(torch.tensor([[1, 0], [1, 1]]), 2, 2)
        (tensor([1, 4, 0, 2, 3, 4], dtype=torch.int32), tensor([0, 1, 1], dtype=torch.int32),
         tensor([6], dtype=torch.int32))
    """
    check_dtype((torch.int32, torch.int64), topk_ids=topk_ids)
    for name, value in {"num_experts": num_experts, "block_size": block_size}.items():
        check(value >= 1, f"{name} must be at least 1", **{name: value})
        check(value < 2**31, f"{name} must be below 2**31", **{name: value})
    pairs = topk_ids.numel()
    check(pairs < 2**31, "topk_ids must have fewer than 2**31 elements", topk_ids=topk_ids)
    # The smaller of two. In compiled code the number of pairs is a symbol, which min() would bind
    # to one side; torch 2.7 does not trace torch.sym_min where it is none.
    reached = (pairs + num_experts - abs(pairs - num_experts)) // 2
    blocks = reached + (pairs - reached) // block_size
    # The number of places in use is an int32.
    check(
        blocks * block_size < 2**31,
        "block_size must leave fewer than 2**31 places in the blocks",
        block_size=block_size,
        topk_ids=topk_ids,
    )
    sizes = blocks * block_size, blocks, 1
    ids, experts, used = (topk_ids.new_empty(size, dtype=torch.int32) for size in sizes)
    return ids, experts, used


@op
def moe_sum(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """The sum over the experts of each token, ``x.sum(-2) * scale``, in float32 and rounded once.

    A token without experts gets zeros. NaN stays in its column of its token; float64 is computed in
    float64.

    Args:
        x: [..., k, hidden], floating point.
        scale: Finite; multiplies the sum.

    Returns:
        [..., hidden], the dtype of ``x``.

    Example:
        >>> hal.ops.moe_sum(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), scale=0.5)
        tensor([[2., 3.]])
    """
    check_floating(x=x)
    check(x.dim() >= 2, "x must be [..., k, hidden]", x=x)
    check(-math.inf < scale < math.inf, "scale must be finite", scale=scale)
    return x.new_empty((*x.shape[:-2], x.shape[-1]))
