"""Declarations of the ops that quantise what another op has computed, before it is rounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_floating, check_shape
from hal.op import op
from hal.ops.quant import check_codes, check_static, grouped_results

if TYPE_CHECKING:
    from torch import Tensor


def _results(
    like: Tensor,
    scale: Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
    layout: str,
    ue8m0: bool,
) -> tuple[Tensor, Tensor]:
    """Codes in the shape of ``like`` and their scale, static if ``scale`` is given."""
    if scale is None:
        return grouped_results(like, group_size, dtype, layout, ue8m0)
    check_codes(like, dtype)
    check_static(scale)
    check(group_size is None, "group_size does not go with a scale", group_size=group_size)
    check(layout == "row", "scale_layout does not go with a scale", scale_layout=layout)
    check(not ue8m0, "ue8m0 does not go with a scale", ue8m0=ue8m0)
    return like.new_empty(like.shape, dtype=dtype), scale.new_empty((1,))


def _check_norm(x: Tensor, weight: Tensor | None, eps: float) -> None:
    check_floating(x=x, weight=weight)
    check(x.dim() > 0, "x must have at least one dimension", x=x)
    check_shape(x.shape[-1:], weight=weight)
    check(0 <= eps < math.inf, "eps must be finite and not negative", eps=eps)


@op
def silu_and_mul_quant(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gated SiLU, quantised: ``silu_and_mul`` and then a quantiser, with no rounding in between.

    The product stays in float32 (float64 for float64), so that one beyond float16 does not become
    infinite; then all is as in ``per_token_group_quant``, without ``group_size`` as in
    ``per_token_quant``, and with ``scale`` as in ``per_tensor_quant``.

    Args:
        x: [..., 2d], floating point: the gate, then the factor; empty gives empty.
        scale: One element, float32, positive and finite, for the whole result. None computes the
            scales; the three parameters about them go with None alone.
        group_size: 16, 32, 64 or 128; None is one scale for each row.
        dtype: float8_e4m3fn, float8_e5m2 or int8.
        scale_layout: ``"row"``, ``"column"`` or ``"tma"``, as in ``per_token_group_quant``.
        ue8m0: Round scales up to powers of two, packed in the layout ``"tma"``.

    Returns:
        The codes [..., d] in ``dtype``, and the scale: [1] if it was given, else as from
        ``per_token_group_quant`` with ceil(d / group_size) groups, or one.

    Example:
        >>> q, scale = hal.ops.silu_and_mul_quant(torch.tensor([[20.0, 0.0, 7.0, 5.0]]))
        >>> q.float(), scale
        (tensor([[448.,   0.]]), tensor([[0.3125]]))
    """
    check_floating(x=x)
    even = x.dim() > 0 and x.shape[-1] % 2 == 0
    check(even, "x must have an even last dimension", x=x)
    like = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    return _results(like, scale, group_size, dtype, scale_layout, ue8m0)


@op
def rms_norm_quant(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Root mean square norm, quantised: ``rms_norm``, then a quantiser, no rounding between.

    The norm, times its weight, stays in float32 (float64 for float64); then all is as in
    ``per_token_group_quant``, without ``group_size`` as in ``per_token_quant``, and with ``scale``
    as in ``per_tensor_quant``.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        weight: [d], floating point of any dtype; None stands for ones.
        eps: Finite and not negative, in units of ``x**2``.
        scale: One element, float32, positive and finite, for the whole result. None computes the
            scales; the three parameters about them go with None alone.
        group_size: 16, 32, 64 or 128; None is one scale for each row.
        dtype: float8_e4m3fn, float8_e5m2 or int8.
        scale_layout: ``"row"``, ``"column"`` or ``"tma"``, as in ``per_token_group_quant``.
        ue8m0: Round scales up to powers of two, packed in the layout ``"tma"``.

    Returns:
        The codes [..., d] in ``dtype``, and the scale: [1] if it was given, else as from
        ``per_token_group_quant``.

    Example:
        >>> x, weight = torch.tensor([[1.0, 7.0]]), torch.tensor([320.0, 320.0])
        >>> q, scale = hal.ops.rms_norm_quant(x, weight, 0.0)
        >>> q.float(), scale
        (tensor([[ 64., 448.]]), tensor([[1.]]))
    """
    _check_norm(x, weight, eps)
    return _results(x, scale, group_size, dtype, scale_layout, ue8m0)


@op
def fused_add_rms_norm_quant(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, norm and quantise: ``rms_norm_quant(s, weight)`` and ``s``, where ``s = x + residual``.

    The sum is in float32, or float64 if ``x`` or ``residual`` is; the norm sees it before its
    rounding, and the codes are of the norm before any rounding. All else is as in
    ``fused_add_rms_norm`` and ``rms_norm_quant``.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        residual: The shape of ``x``, floating point; its dtype may differ.
        weight: [d], floating point of any dtype.
        eps: Finite and not negative, in units of ``x**2``.
        scale: One element, float32, positive and finite, for the whole result. None computes the
            scales; the three parameters about them go with None alone.
        group_size: 16, 32, 64 or 128; None is one scale for each row.
        dtype: float8_e4m3fn, float8_e5m2 or int8.
        scale_layout: ``"row"``, ``"column"`` or ``"tma"``, as in ``per_token_group_quant``.
        ue8m0: Round scales up to powers of two, packed in the layout ``"tma"``.

    Returns:
        The codes [..., d] in ``dtype``; the scale, [1] if it was given, else as from
        ``per_token_group_quant``; and ``s`` [..., d] in the dtype of ``residual``.

    Example:
        >>> x, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])
        >>> weight = torch.tensor([320.0, 320.0])
        >>> q, scale, total = hal.ops.fused_add_rms_norm_quant(x, residual, weight, 0.0)
        >>> q.float(), scale, total
        (tensor([[ 64., 448.]]), tensor([[1.]]), tensor([[1., 7.]]))
    """
    _check_norm(x, weight, eps)
    check_floating(residual=residual)
    check_shape(x.shape, residual=residual)
    q, made = _results(x, scale, group_size, dtype, scale_layout, ue8m0)
    return q, made, residual.new_empty(residual.shape)
