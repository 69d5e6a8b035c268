"""Products for a few rows by sgl_kernel, with SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal import Kernel, prepared
from hal.ops.gemv import fused_moe_gemv
from hal_musa.libraries import HALVES, Offer, aligned, never, portable, vendor

__all__ = ["OFFERS"]

_GEMV = "musa_fused_gemv"
_FEW = 4
"""Rows. The weight is read once for each, where others read it once for a tile of rows."""
_OUTS, _COLUMNS = 32, 128
"""Multiples of them have a tile, and end with it: one that has none loads beyond the end."""
_FP8_SINCE = 31
_LINE = 64
"""Bytes that are loaded at once of what nibbles are multiplied with."""


@prepared
def fused_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Callable[..., Any]:
    rows = x.shape[:-1].numel()
    if not 0 < rows <= _FEW:
        scales = {"x_scale": x_scale, "weight_scale": weight_scale}
        after = {"activation": activation, "norm_weight": norm_weight, "eps": eps}
        return portable("gemv", "fused_gemv", x, weight, **scales, **after)
    multiply: Any = vendor(f"sgl_kernel.musa.{_GEMV}")
    gated, made = activation is not None, x.shape[:-1]

    def run(
        x: Tensor,
        weight: Tensor,
        *,
        x_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        by_row = None if x_scale is None else aligned(x_scale.reshape(rows, -1))
        by_group = None if weight_scale is None else aligned(weight_scale)
        factors = aligned(x.reshape(rows, -1), _LINE), aligned(weight)
        return multiply(*factors, by_row, by_group, use_swigelu=gated).view(*made, -1)

    return run


def fused_gemv_supports(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> str | None:
    if norm_weight is not None:
        # Blocks wait for each other in a loop, with no more than a fence of the block, which never
        # ends where they do not all fit at once; all rows add to one sum.
        return "sgl_kernel's norm waits between blocks in a way that is not safe"
    outs = weight.shape[0] if activation is None else weight.shape[0] // 2
    if 0 in weight.shape or outs % _OUTS or x.shape[-1] % _COLUMNS:
        return f"sgl_kernel has tiles for a multiple of {_OUTS} results and {_COLUMNS} columns"
    if weight.dtype == torch.uint8:
        return _nibbles_refused(x, weight_scale)
    if x_scale is not None:
        same = x.dtype == weight.dtype == torch.float8_e4m3fn
        return None if same else "sgl_kernel multiplies float8_e4m3fn"
    return None if x.dtype in HALVES else "sgl_kernel multiplies float16 and bfloat16"


def _supports_on_22(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> str | None:
    if x_scale is not None:
        return f"sgl_kernel has 8-bit floats from mp_{_FP8_SINCE} on"
    return fused_gemv_supports(
        x, weight, weight_scale=weight_scale, activation=activation, norm_weight=norm_weight
    )


def _nibbles_refused(x: Tensor, scale: Tensor | None) -> str | None:
    groups = 0 if scale is None else scale.shape[1]
    if x.dtype not in HALVES or scale is None or scale.dtype == torch.float64:
        return "sgl_kernel multiplies float16 and bfloat16 with nibbles"
    if groups == 1:
        return "with one scale for a row sgl_kernel takes nibbles for signed, without an offset"
    fits = groups > 0 and x.shape[-1] // groups in (64, 128)
    return None if fits else "sgl_kernel takes groups of 64 and of 128 columns"


_NO_KERNEL = (
    "sgl_kernel declares musa_fused_moe_gemv and registers its kernel under another name; it also "
    "weighs before SwiGLU, and not after"
)

OFFERS = {
    "fused_gemv": [
        Offer(
            Kernel(
                fn=fused_gemv,
                supports=fused_gemv_supports,
                name="sgl_kernel",
                graph_safe=True,
                deterministic=True,
            ),
            needs=(f"sgl_kernel.musa.{_GEMV}", f"sgl_kernel::{_GEMV}"),
            since=22,
            before=(_FP8_SINCE, _supports_on_22),
        )
    ],
    "fused_moe_gemv": [
        never(fused_moe_gemv, "sgl_kernel", _NO_KERNEL, "sgl_kernel.musa.musa_fused_moe_gemv")
    ],
}
"""By op what there is."""
