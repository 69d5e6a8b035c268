"""Ops that quantise what another has computed, in one kernel, by Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.activation import silu_and_mul
from hal_triton.layout import WIDEST, empty_like, flat_like, rows_like, same
from hal_triton.norm import fused_add_rms_norm, rms_norm
from hal_triton.quant import (
    Run,
    coding,
    per_tensor_quant,
    per_token_group_quant,
    per_token_quant,
)


@prepared
def silu_and_mul_quant(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> Run:
    columns = x.shape[-1] // 2
    if scale is None and group_size is None and columns > WIDEST:
        return lambda x, **_: per_token_quant(silu_and_mul(x.float()), dtype=dtype)
    into = coding(x, columns, scale, group_size, dtype, scale_layout, ue8m0)
    rows_in, _, stride = rows_like(x)
    launch = into.bind("silu_and_mul", into.pieces(columns), columns, (stride, 0))

    def run(x: Tensor, *, scale: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        q, made = into.codes(), into.scales()
        launch(q, made, rows_in(x), None, None, None, scale, None)
        return q, made

    return run


@prepared
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
) -> Run:
    how = group_size, dtype, scale_layout, ue8m0
    if x.shape[-1] > WIDEST:
        return lambda x, weight, *_, scale=None, **_named: _apart(
            rms_norm(x.float(), weight, eps), scale, *how
        )
    norm = _norm(x, weight, None, eps, (scale, *how))
    return lambda x, weight, *_, scale=None, **_named: norm(x, weight, None, None, scale)


@prepared
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
) -> Run:
    how = group_size, dtype, scale_layout, ue8m0
    wide, empty_total = x.shape[-1] > WIDEST, empty_like(residual)
    norm = None if wide else _norm(x, weight, residual, eps, (scale, *how))

    def run(
        x: Tensor, residual: Tensor, weight: Tensor, *_: Any, scale: Any = None, **_named: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        if norm is None:
            normed, total = fused_add_rms_norm(x.float(), residual, weight, eps)
            return *_apart(normed, scale, *how), total
        total = empty_total(residual)
        return *norm(x, weight, residual, total, scale), total

    return run


def _norm(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, how: tuple[Any, ...]
) -> Run:
    """What norms and quantises rows that are like these, to be coded as ``coding`` says."""
    columns, into = x.shape[-1], coding(x, x.shape[-1], *how)
    weight_in, (rows_in, _, stride) = flat_like(weight), rows_like(x)
    residual_in, _, by = (same, 0, 0) if residual is None else rows_like(residual)
    launch = into.bind("rms_norm", into.whole_rows(columns), columns, (stride, by), eps)

    def run(
        x: Tensor,
        weight: Tensor | None,
        residual: Tensor | None,
        total: Tensor | None,
        scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        q, made = into.codes(), into.scales()
        launch(q, made, rows_in(x), weight_in(weight), residual_in(residual), total, scale, None)
        return q, made

    return run


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
