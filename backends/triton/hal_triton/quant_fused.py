"""Ops that quantise what another has computed, in one kernel, by Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal_triton.activation import silu_and_mul
from hal_triton.kernels import quant as kernels
from hal_triton.layout import WIDEST, flat, rows_of, unit
from hal_triton.norm import fused_add_rms_norm, rms_norm
from hal_triton.quant import (
    Coding,
    coding,
    per_tensor_quant,
    per_token_group_quant,
    per_token_quant,
)

if TYPE_CHECKING:
    from torch import Tensor


def silu_and_mul_quant(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    columns = x.shape[-1] // 2
    if scale is None and group_size is None and columns > WIDEST:
        return per_token_quant(silu_and_mul(x.float()), dtype=dtype)
    into = coding(x, columns, scale, group_size, dtype, scale_layout, ue8m0)
    x, _, stride = rows_of(x)
    plan = into.pieces(columns)
    constants = *into.constants(plan), unit(columns, stride)
    numbers, tensors = (columns, stride, *into.numbers), (into.q, into.scale, x)
    kernels.silu_and_mul_quantise(plan.grid, tensors, numbers, constants, plan.num_warps)
    return into.q, into.scale


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
    if x.shape[-1] > WIDEST:
        normed = rms_norm(x.float(), weight, eps)
        return _apart(normed, scale, group_size, dtype, scale_layout, ue8m0)
    into = coding(x, x.shape[-1], scale, group_size, dtype, scale_layout, ue8m0)
    _norm(into, x, weight, None, None, eps)
    return into.q, into.scale


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
    if x.shape[-1] > WIDEST:
        normed, total = fused_add_rms_norm(x.float(), residual, weight, eps)
        return *_apart(normed, scale, group_size, dtype, scale_layout, ue8m0), total
    into = coding(x, x.shape[-1], scale, group_size, dtype, scale_layout, ue8m0)
    total = residual.new_empty(residual.shape)
    _norm(into, x, weight, residual, total, eps)
    return into.q, into.scale, total


def _norm(
    into: Coding,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    total: Tensor | None,
    eps: float,
) -> None:
    columns = x.shape[-1]
    x, _, stride = rows_of(x)
    residual, _, by = (None, 0, 0) if residual is None else rows_of(residual)
    plan = into.whole_rows(columns)
    tensors = into.q, into.scale, x, flat(weight), residual, total
    numbers = columns, stride, by, *into.numbers, eps
    constants = *into.constants(plan), unit(columns, stride, by)
    kernels.rms_norm_quantise(plan.grid, tensors, numbers, constants, plan.num_warps)


def _apart(
    x: Tensor,
    scale: Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
    layout: str,
    ue8m0: bool,
) -> tuple[Tensor, Tensor]:
    """The codes of rows that registers do not hold, which have been computed in float32."""
    if scale is not None:
        return per_tensor_quant(x, scale, dtype=dtype)
    if group_size is None:
        return per_token_quant(x, dtype=dtype)
    return per_token_group_quant(x, group_size, dtype=dtype, scale_layout=layout, ue8m0=ue8m0)
