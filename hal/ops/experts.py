"""Declaration of the experts of a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op
from hal.ops.matmul import FLOAT32, FP8, groups_of

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
INDEX = (torch.int32, torch.int64)
BLOCK = 128


def check_routing(topk_weights: Tensor | None, topk_ids: Tensor) -> None:
    """Require ids [..., topk] and, if given, a weight for each."""
    check_dtype(INDEX, topk_ids=topk_ids)
    check(topk_ids.dim() > 0, "topk_ids must be [..., topk]", topk_ids=topk_ids)
    check_floating(topk_weights=topk_weights)
    check_shape(topk_ids.shape, topk_weights=topk_weights)


def check_block_scale(weight_name: str, weight: Tensor, name: str, scale: Tensor | None) -> None:
    """Require a scale for each block of 128 x 128 of 8-bit weights, and none otherwise."""
    if weight.dtype not in FP8:
        check(scale is None, f"{name} goes with an 8-bit {weight_name}", **{weight_name: weight})
    else:
        given = scale is not None
        check(given, f"an 8-bit {weight_name} needs {name}", **{weight_name: weight})
        check_dtype(FLOAT32, **{name: scale})
        *experts, n, k = weight.shape
        check_shape((*experts, groups_of(n, BLOCK), groups_of(k, BLOCK)), **{name: scale})


def _check_weights(x: Tensor, w13: Tensor, w2: Tensor) -> None:
    check(w13.dim() == 3, "w13 must be [experts, 2 * inter, hidden]", w13=w13)
    check(w13.shape[1] % 2 == 0, "w13 must be [experts, 2 * inter, hidden]", w13=w13)
    check(x.dim() > 0, "x must be [..., hidden]", x=x)
    check(x.shape[-1] == w13.shape[2], "x must have as many columns as w13", x=x, w13=w13)
    check_shape((w13.shape[0], w13.shape[2], w13.shape[1] // 2), w2=w2)
    if w13.dtype in FP8:
        check(x.dtype != torch.float64, "x must have 16 or 32 bits with 8-bit weights", x=x)
    check_dtype((w13.dtype,) if w13.dtype in FP8 else (x.dtype,), w13=w13, w2=w2)


@op
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
    """The experts of a mixture: gated MLPs of the chosen ones, summed by weight.

    For each token, the sum over ``j`` of ``topk_weights[j] * (w2[e] @ h)`` where ``e`` is
    ``topk_ids[j]``, ``h = act(w13[e][:inter] @ x) * (w13[e][inter:] @ x)``. All of it is computed
    in float32 (float64 for float64), and the result is rounded once. An id outside of 0 to experts
    - 1, such as that of an expert on another device, adds 0, whatever its weight; an id that comes
    twice counts twice. NaN and infinities in a token or its weights stay with the token, those in
    an expert with the tokens that chose it.

    With 8-bit weights both products are of 8-bit codes, as in ``block_scaled_mm`` with blocks of
    128: ``x``, and ``h`` before any rounding, are quantised for each token in groups of 128
    columns, the last one smaller. A group's scale is ``max(amax, 1e-10) / limit`` in float32, limit
    being 448 for float8_e4m3fn and 57344 for float8_e5m2; its codes are ``v / scale``, clamped to
    the limit and rounded half to even. A token with an infinity in it gives NaN.

    Args:
        x: [..., hidden], floating point; not float64 with 8-bit weights.
        w13: [experts, 2 * inter, hidden]: the gate's rows, then those of the up projection; the
            dtype of ``x``, float8_e4m3fn or float8_e5m2.
        w2: [experts, hidden, inter], the dtype of ``w13``.
        topk_weights: [..., topk], floating point, multiplied as they are.
        topk_ids: [..., topk], int32 or int64.
        w13_scale: [experts, ceil(2 * inter / 128), ceil(hidden / 128)], float32, only with 8-bit
            weights. Blocks count from the first row, so that one may lie across gate and up.
        w2_scale: [experts, ceil(hidden / 128), ceil(inter / 128)], float32, likewise.
        activation: "silu", "gelu" (erf form) or "gelu_tanh", as in the gated activations.

    Returns:
        [..., hidden], the dtype of ``x``.

    Example:
        >>> x, w2 = torch.ones(1, 1), torch.tensor([[[1.0]], [[10.0]]])
        >>> w13 = torch.tensor([[[0.0], [2.0]], [[1.0], [2.0]]])
        >>> weights, ids = torch.tensor([[0.5, 0.5]]), torch.tensor([[1, -1]])
        >>> hal.ops.fused_experts(x, w13, w2, weights, ids)
        tensor([[7.3106]])
    """
    check_floating(x=x)
    _check_weights(x, w13, w2)
    check_routing(topk_weights, topk_ids)
    same = topk_ids.shape[:-1] == x.shape[:-1]
    check(same, lambda: f"topk_ids must be {[*x.shape[:-1], 'topk']}", topk_ids=topk_ids)
    check_block_scale("w13", w13, "w13_scale", w13_scale)
    check_block_scale("w2", w2, "w2_scale", w2_scale)
    known = "activation must be 'silu', 'gelu' or 'gelu_tanh'"
    check(activation in ACTIVATIONS, known, activation=activation)
    return x.new_empty(x.shape)
