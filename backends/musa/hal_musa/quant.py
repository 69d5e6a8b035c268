"""Quantisation to 8 bits by sgl_kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal import Kernel
from hal.ops.quant import per_token_quant
from hal_musa.libraries import HALVES, Offer, aligned, never, vendor

__all__ = ["OFFERS"]

_GROUPS = "sgl_kernel.sgl_per_token_group_quant_8bit"
_LARGEST = 448.0
_LEAST = 1e-10
"""What the absolute maximum is raised to."""


def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """By the first of sgl_kernel's two, which divides once as the op does.

    The other one multiplies with two different inverses, and has 16 bits alone. Neither declares
    that it writes: compiled code that called them would take them for dead.
    """
    columns = x.shape[-1]
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(
        (*x.shape[:-1], columns // group_size), dtype=torch.float32, device=x.device
    )
    if x.numel():
        quantise: Any = vendor(_GROUPS)
        views = aligned(x).view(-1, columns), q.view(-1, columns), scale.view(-1, scale.shape[-1])
        limits = _LEAST, -_LARGEST, _LARGEST
        quantise(*views, group_size, *limits, scale_ue8m0=False, enable_v2=False)
    return q, scale


def per_token_group_quant_supports(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> str | None:
    if dtype == torch.int8:
        return "sgl_kernel's codes of int8 are cut off, not rounded"
    if dtype != torch.float8_e4m3fn or x.dtype not in (torch.float32, *HALVES):
        return "sgl_kernel quantises 16 and 32 bits to float8_e4m3fn"
    if scale_layout != "row":
        return "sgl_kernel tells layouts by strides, which one row or one group have alike"
    if ue8m0:
        return "sgl_kernel takes the next power of two by a logarithm, which is not exact"
    return None if x.shape[-1] % group_size == 0 else "sgl_kernel takes whole groups"


_ZEROS = "of a row of zeros sgl_kernel makes codes of 448 and a scale of 0, in batches of few rows"

OFFERS = {
    "per_token_group_quant": [
        Offer(
            Kernel(
                fn=per_token_group_quant,
                supports=per_token_group_quant_supports,
                name="sgl_kernel",
                graph_safe=True,
                deterministic=True,
                batch_invariant=True,
            ),
            needs=(_GROUPS, "sgl_kernel::sgl_per_token_group_quant_8bit"),
            since=31,
        )
    ],
    "per_token_quant": [
        never(per_token_quant, "sgl_kernel", _ZEROS, "sgl_kernel.sgl_per_token_quant_fp8")
    ],
}
"""By op what there is."""
