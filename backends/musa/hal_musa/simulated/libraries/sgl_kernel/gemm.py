"""Quantisation to 8 bits, into outputs that are given."""

from __future__ import annotations

import torch
from torch import Tensor


def sgl_per_token_group_quant_8bit(
    input: Tensor,
    output_q: Tensor,
    output_s: Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool = False,
    fuse_silu_and_mul: bool = False,
    masked_m: Tensor | None = None,
    enable_v2: bool | None = None,
) -> None:
    """The second form for groups of 16, 32, 64 and 128, unless said; the first fuses nothing."""
    if enable_v2 is None:
        enable_v2 = group_size in (16, 32, 64, 128)
    args = (input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0)
    if enable_v2:
        return torch.ops.sgl_kernel.sgl_per_token_group_quant_8bit_v2(
            *args, fuse_silu_and_mul, masked_m
        )
    assert not fuse_silu_and_mul, "only v2 support fuse_silu_and_mul"
    assert masked_m is None, "only v2 support masked_m"
    return torch.ops.sgl_kernel.sgl_per_token_group_quant_8bit(*args)


sgl_per_token_group_quant_fp8 = sgl_per_token_group_quant_8bit
sgl_per_token_group_quant_int8 = sgl_per_token_group_quant_8bit


def sgl_per_token_quant_fp8(input: Tensor, output_q: Tensor, output_s: Tensor) -> None:
    """A scale a row, without a floor: a row of zeros has codes of 448 where there are few rows."""
    torch.ops.sgl_kernel.sgl_per_token_quant_fp8(input, output_q, output_s)
