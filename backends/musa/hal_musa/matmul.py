"""Products of 8-bit floats by muDNN, through torch_musa and MATE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hal import Kernel
from hal_musa.libraries import HALVES, Offer, aligned, vendor

__all__ = ["OFFERS"]

_BLOCK = 128
_ROWS = 64
"""Of a weight as many at a time, as SGLang calls MATE."""
_UNIT = 16
_GROUPWISE = "mate.gemm.gemm_fp8_nt_groupwise"
_E4M3 = "muDNN is known to multiply float8_e4m3fn"


def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    rows, (columns, k) = a.shape[:-1].numel(), b.shape
    if not rows:
        return a.new_empty((*a.shape[:-1], columns), dtype=out_dtype)
    a_scale, b_scale = a_scale.reshape(-1, 1), b_scale.reshape(1, -1)
    if a_scale.numel() > 1 or b_scale.numel() > 1:
        # Scales are of one kind: both for the whole, or both for each row.
        a_scale, b_scale = a_scale.expand(rows, 1), b_scale.expand(1, columns)
    factors = aligned(a.reshape(rows, k)), aligned(b).t(), aligned(a_scale), aligned(b_scale)
    product: Any = torch.ops.aten._scaled_mm(*factors, out_dtype=out_dtype)
    return product.view(*a.shape[:-1], columns)


def scaled_mm_supports(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> str | None:
    if a.dtype == torch.int8:
        return "torch_musa has no product of int8"
    if not a.dtype == b.dtype == torch.float8_e4m3fn:
        return _E4M3
    if min(b.shape) == 0 or b.shape[0] % _UNIT or b.shape[1] % _UNIT:
        return f"torch takes weights of a multiple of {_UNIT} rows and columns"
    if bias is not None:
        return "whether muDNN adds a bias before it rounds is not known"
    return None if out_dtype in HALVES else "what muDNN's sums are worth in float32 is not known"


def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (_BLOCK, _BLOCK),
    out_dtype: torch.dtype,
) -> Tensor:
    """Scales lie row by row; column by column, MATE wants them transposed."""
    rows, (columns, k) = a.shape[:-1].numel(), b.shape
    if not rows:
        return a.new_empty((*a.shape[:-1], columns), dtype=out_dtype)
    multiply: Any = vendor(_GROUPWISE)
    product = multiply(
        aligned(a.reshape(rows, k)),
        aligned(b),
        aligned(a_scale.reshape(rows, -1)),
        aligned(b_scale),
        scale_major_mode="K",
        scale_granularity_mnk=(1, _BLOCK, _BLOCK),
        out_dtype=out_dtype,
    )
    return product.view(*a.shape[:-1], columns)


def block_scaled_mm_supports(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (_BLOCK, _BLOCK),
    out_dtype: torch.dtype,
) -> str | None:
    if tuple(block) != (_BLOCK, _BLOCK):
        return f"MATE takes blocks of {_BLOCK} x {_BLOCK}"
    if not a.dtype == b.dtype == torch.float8_e4m3fn:
        return _E4M3
    if min(b.shape) == 0 or b.shape[0] % _ROWS or b.shape[1] % _BLOCK:
        return f"MATE is called with weights of a multiple of {_ROWS} rows and {_BLOCK} columns"
    return None if out_dtype == torch.bfloat16 else "every version of MATE has bfloat16"


OFFERS = {
    "scaled_mm": [
        Offer(
            Kernel(
                fn=scaled_mm,
                supports=scaled_mm_supports,
                name="torch_musa",
                graph_safe=True,
                deterministic=True,
            ),
            needs=("aten::_scaled_mm",),
            since=31,
        )
    ],
    "block_scaled_mm": [
        Offer(
            Kernel(
                fn=block_scaled_mm,
                supports=block_scaled_mm_supports,
                name="mate",
                graph_safe=True,
                deterministic=True,
            ),
            needs=(_GROUPWISE,),
            since=31,
        )
    ],
}
"""By op what there is."""
