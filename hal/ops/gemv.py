"""Declarations of products for a few rows, fused with what follows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op
from hal.ops.experts import BLOCK, check_block_scale, check_routing
from hal.ops.matmul import FLOAT32, FP8, groups_of

if TYPE_CHECKING:
    from torch import Tensor


def _check_nibbles(x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    check_floating(x=x)
    check(scale is not None, "a uint8 weight needs weight_scale", weight=weight)
    check_floating(weight_scale=scale)
    if scale is not None:
        each = scale.shape[:-1] == weight.shape[:-1]
        groups, columns = scale.shape[-1] if scale.dim() else 0, 2 * weight.shape[-1]
        even = columns == 0 if groups == 0 else columns % groups == 0
        required = "weight_scale must have groups of equal size for each row of weight"
        check(each and even, required, weight_scale=scale, weight=weight)


def _check_codes(x: Tensor, weight: Tensor, x_scale: Tensor | None, scale: Tensor | None) -> None:
    check_dtype(FP8, x=x)
    check(x_scale is not None, "an 8-bit weight needs x_scale", weight=weight)
    check_dtype(FLOAT32, x_scale=x_scale)
    check_shape((*x.shape[:-1], groups_of(x.shape[-1], BLOCK)), x_scale=x_scale)
    check_block_scale("weight", weight, "weight_scale", scale)


def _check_factors(
    x: Tensor, weight: Tensor, x_scale: Tensor | None, weight_scale: Tensor | None
) -> torch.dtype:
    """Require what goes with the weight's dtype; return the dtype of the result."""
    packed = weight.dtype == torch.uint8
    check(x.dim() > 0, "x must be [..., k]", x=x)
    same = x.shape[-1] == (2 if packed else 1) * weight.shape[-1]
    columns = "two columns for each of weight" if packed else "as many columns as weight"
    check(same, f"x must have {columns}", x=x, weight=weight)
    if weight.dtype in FP8:
        _check_codes(x, weight, x_scale, weight_scale)
        return torch.bfloat16
    check(x_scale is None, "x_scale goes with an 8-bit weight", weight=weight)
    if weight.dtype == torch.uint8:
        _check_nibbles(x, weight, weight_scale)
    else:
        check_floating(x=x)
        check_dtype((x.dtype, *FP8, torch.uint8), weight=weight)
        check(weight_scale is None, "weight_scale goes with an 8-bit or uint8 weight", x=x)
    return x.dtype


def _activated(rows: int, activation: str | None) -> int:
    """How many results there are for so many rows of the weight."""
    known = activation in (None, "swiglu")
    check(known, "activation must be 'swiglu' or None", activation=activation)
    if activation is None:
        return rows
    check(rows % 2 == 0, "weight must have an even number of rows for swiglu", rows=rows)
    return rows // 2


@op
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
    """``x @ weight.T``, and then SwiGLU or an RMS norm of the product, for a few rows.

    The weight's dtype says how the product is computed: a floating point one as it is, uint8 as in
    ``w4a16_mm`` with a zero of 8, and 8-bit floats as in ``block_scaled_mm`` with blocks of 128.
    Everything is computed in float32 (float64 for float64), what follows the product too, and the
    result is rounded once. NaN in a row of ``x`` stays in that row. The op is right for any number
    of rows, and meant for few.

    Args:
        x: [..., k], floating point; codes of float8_e4m3fn or float8_e5m2 if ``weight`` has them.
        weight: [n, k], the dtype of ``x``; or [n, k / 2] uint8; or [n, k], float8_e4m3fn or
            float8_e5m2.
        x_scale: [..., ceil(k / 128)], float32, with 8-bit floats only.
        weight_scale: With uint8 [n, groups], floating point, where groups divides k and all groups
            have k / groups columns; with 8-bit floats [ceil(n / 128), ceil(k / 128)], float32.
        activation: "swiglu" gives ``silu(y[..., :n / 2]) * y[..., n / 2:]`` of the product ``y``,
            as ``silu_and_mul``; None gives ``y``. Not together with ``norm_weight``.
        norm_weight: [n], floating point: the RMS norm of each row of the product, over n, as
            ``rms_norm``; None is no norm.
        eps: Inside the root of the norm; finite and not negative.

    Returns:
        [..., n], or [..., n / 2] with "swiglu"; the dtype of ``x``, bfloat16 for 8-bit floats.

    Example:
        >>> x, weight = torch.ones(1, 2), torch.tensor([[1.0, 2.0], [2.0, 2.0]])
        >>> hal.ops.fused_gemv(x, weight)
        tensor([[3., 4.]])
        >>> hal.ops.fused_gemv(x, weight, norm_weight=torch.ones(2))
        tensor([[0.8485, 1.1314]])
    """
    check(weight.dim() == 2, "weight must be [n, k]", weight=weight)
    dtype = _check_factors(x, weight, x_scale, weight_scale)
    one = activation is None or norm_weight is None
    check(one, "activation and norm_weight exclude each other", activation=activation)
    check_floating(norm_weight=norm_weight)
    check_shape(weight.shape[:1], norm_weight=norm_weight)
    check(0 <= eps < math.inf, "eps must be finite and not negative", eps=eps)
    return x.new_empty((*x.shape[:-1], _activated(weight.shape[0], activation)), dtype=dtype)


@op
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
    """``fused_gemv`` with the weights of the experts that each token has chosen.

    Result ``j`` of a token is ``topk_weights[j] * act(x @ weight[topk_ids[j]].T)``: the routed
    weight counts after the activation. It is computed in float32 (float64 for float64) and rounded
    once. An id outside of 0 to experts - 1 gives zeros, whatever the token and its weight hold.
    The op is right for any number of tokens, and meant for few; ``fused_experts`` is for many.

    Args:
        x: [..., k], a row for each token, or [..., topk, k], one for each of its choices; otherwise
            as in ``fused_gemv``.
        weight: [experts, n, k], or [experts, n, k / 2] uint8, as in ``fused_gemv``; at least one
            expert.
        topk_weights: [..., topk], floating point; None is 1.
        topk_ids: [..., topk], int32 or int64.
        x_scale: [..., ceil(k / 128)] or [..., topk, ceil(k / 128)], as ``x``, float32, with 8-bit
            floats only.
        weight_scale: [experts, ...], each as in ``fused_gemv``.
        activation: "swiglu" or None, as in ``fused_gemv``.

    Returns:
        [..., topk, n], or [..., topk, n / 2] with "swiglu"; the dtype of ``x``, bfloat16 for 8-bit
        floats.

    Example:
        >>> weight, ids = torch.tensor([[[1.0]], [[10.0]]]), torch.tensor([[1, 0, 2]])
        >>> hal.ops.fused_moe_gemv(torch.ones(1, 1), weight, None, ids)
        tensor([[[10.],
                 [ 1.],
                 [ 0.]]])
    """
    check(weight.dim() == 3, "weight must be [experts, n, k]", weight=weight)
    check(weight.shape[0] > 0, "weight must have at least one expert", weight=weight)
    dtype = _check_factors(x, weight, x_scale, weight_scale)
    check_routing(topk_weights, topk_ids)
    each = x.shape[:-1] == topk_ids.shape[: x.dim() - 1] and x.dim() >= topk_ids.dim()
    required = "topk_ids must be [..., topk] where x is [..., k] or [..., topk, k]"
    check(each, required, topk_ids=topk_ids, x=x)
    return x.new_empty((*topk_ids.shape, _activated(weight.shape[1], activation)), dtype=dtype)
