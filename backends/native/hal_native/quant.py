"""Quantisation to 8 bits, and back, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hal.ops.quant import ceil_div, new_scale
from hal_native.arithmetic import padded, wide

FLOOR = 1e-10
"""The least maximum that a scale is made from, so that zeros have a scale to divide by."""


def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    return quantized(x, group_size, dtype, scale_layout, ue8m0)


def per_token_quant(
    x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    return quantized(x, None, dtype)


def per_tensor_quant(
    x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    if scale is not None:
        q = encode(wide(x).contiguous() / scale.reshape(()), dtype)
        return q, scale.reshape(1).clone(memory_format=torch.contiguous_format)
    q, scale = quantized(x.flatten(), None, dtype)
    return q.reshape(x.shape), scale


def dequantize(
    q: Tensor,
    scale: Tensor,
    group_size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    if scale.dtype == torch.int32 and group_size is not None:
        scale = unpacked(scale)[..., : ceil_div(q.shape[-1], group_size)]
    exact = torch.float64 if torch.float64 in (dtype, scale.dtype) else torch.float32
    whole = scale.numel() == 1 and scale.dim() < 2
    each = scale.reshape(()) if whole else spread(scale, q, group_size)
    return (q.contiguous().to(exact) * each.to(exact)).to(dtype)


def quantized(
    x: Tensor,
    group_size: int | None,
    dtype: torch.dtype,
    layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of each group, which is a whole row without ``group_size``."""
    x = wide(x).contiguous()
    scale = scales(peaks(x, group_size), dtype)
    exponents = exponents_above(scale)
    if ue8m0:
        scale = torch.where(scale.isfinite(), powers(exponents), scale)
    q = encode(x / spread(scale, x, group_size), dtype)
    kept = packed(exponents) if ue8m0 and layout == "tma" else scale
    return q, new_scale(x, scale.shape[-1], layout, ue8m0).copy_(kept)


def peaks(x: Tensor, group_size: int | None) -> Tensor:
    """The largest magnitude of each group: [..., k] to [..., groups]."""
    if group_size is None:
        # A zero beside, since an empty row has no maximum.
        return pad(x.abs(), (0, 1)).amax(-1, keepdim=True)
    groups = ceil_div(x.shape[-1], group_size)
    filled = padded(x.abs(), groups * group_size)
    return filled.unflatten(-1, (groups, group_size)).amax(-1)


def scales(peak: Tensor, dtype: torch.dtype) -> Tensor:
    # A division by a number is a product with its rounded inverse on some devices.
    return (peak.clamp(min=FLOOR) / torch.full_like(peak, largest(dtype))).float()


def largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else 127.0


def encode(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp, then round half to even; the casts alone saturate on some devices only."""
    clamped = scaled.clamp(-largest(dtype), largest(dtype))
    if not dtype.is_floating_point:
        clamped = clamped.round().masked_fill(clamped.isnan(), 0)
    return clamped.to(dtype)


def spread(scale: Tensor, x: Tensor, group_size: int | None) -> Tensor:
    """The scale of each element of ``x``, or one that broadcasts over its row."""
    if group_size is None:
        return scale
    return scale.index_select(-1, torch.arange(x.shape[-1], device=scale.device) // group_size)


def exponents_above(scale: Tensor) -> Tensor:
    """The biased exponent of the least power of two not below; 255 for an infinity and NaN."""
    # Positive and normal, so that the bits below the exponent are zero for powers of two alone.
    bits = scale.view(torch.int32)
    return ((bits >> 23 & 255) + (bits & 0x7FFFFF != 0)).clamp(max=255)


def powers(exponents: Tensor) -> Tensor:
    return (exponents << 23).view(torch.float32)


def packed(exponents: Tensor) -> Tensor:
    """Four exponents to an int32, the first in the lowest byte; none is 0."""
    filled = pad(exponents, (0, -exponents.shape[-1] % 4))
    fours = filled.unflatten(-1, (filled.shape[-1] // 4, 4))
    return (fours << _shifts(fours)).sum(-1, dtype=torch.int32)


def unpacked(words: Tensor) -> Tensor:
    """The scales that are packed in int32, four for each; NaN for 255."""
    exponents = (words.contiguous().unsqueeze(-1) >> _shifts(words) & 255).flatten(-2)
    return powers(exponents).masked_fill(exponents == 255, torch.nan)


def _shifts(x: Tensor) -> Tensor:
    return torch.arange(0, 32, 8, dtype=torch.int32, device=x.device)
