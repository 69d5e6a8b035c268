"""Ops that quantise what another has computed: the two in sequence, in float32, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_native.activation import silu_and_mul
from hal_native.arithmetic import wide
from hal_native.norm import rms_norm
from hal_native.quant import per_tensor_quant, quantized


def silu_and_mul_quant(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    return _either(silu_and_mul(wide(x)), scale, group_size, dtype, scale_layout, ue8m0)


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
    normed = rms_norm(wide(x), weight, eps)
    return _either(normed, scale, group_size, dtype, scale_layout, ue8m0)


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
    total = wide(x) + wide(residual)
    normed = rms_norm(total, weight, eps)
    q, made = _either(normed, scale, group_size, dtype, scale_layout, ue8m0)
    return q, made, total.to(residual.dtype).contiguous()


def _either(
    x: Tensor,
    scale: Tensor | None,
    group_size: int | None,
    dtype: torch.dtype,
    layout: str,
    ue8m0: bool,
) -> tuple[Tensor, Tensor]:
    if scale is not None:
        return per_tensor_quant(x, scale, dtype=dtype)
    return quantized(x, group_size, dtype, layout, ue8m0)
