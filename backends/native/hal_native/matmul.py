"""Products with quantised matrices in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hal_native.arithmetic import wide


def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    each = (1,) if a_scale.numel() == 1 else (*a.shape[:-1], 1)
    result = _sums(a, b) * a_scale.reshape(each) * b_scale.reshape(-1)
    if bias is not None:
        result = result + bias.float()
    return result.to(out_dtype).contiguous()


def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (128, 128),
    out_dtype: torch.dtype,
) -> Tensor:
    return block_product(a, b, a_scale, b_scale, block).to(out_dtype).contiguous()


def w4a16_mm(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Tensor:
    weight = from_nibbles(qweight, scales, group_size, zeros, wide(x).dtype)
    return product(wide(x), weight).to(x.dtype).contiguous()


def product(a: Tensor, b: Tensor) -> Tensor:
    """The vectors of ``a`` [..., k] times each row of ``b`` [..., n, k]."""
    return torch.einsum("...k,...nk->...n", a, b)


def block_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, block: Sequence[int] = (128, 128)
) -> Tensor:
    """The product of codes in float32, with the scales applied block by block."""
    by_row = _spread(b_scale, -2, b.shape[-2], block[0])
    total = product(a[..., :0].float(), b[..., :0].float())
    for i, start in enumerate(range(0, a.shape[-1], block[1])):
        columns = slice(start, start + block[1])
        # Sums of codes are all but exact in float32, sums of scaled ones are not.
        sums = product(a[..., columns].float(), b[..., columns].float())
        total = total + sums * a_scale[..., i, None] * by_row[..., i]
    return total


def from_nibbles(
    packed: Tensor, scales: Tensor, size: int, zeros: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The values of [..., n, k / 2] bytes of two codes, ``size`` columns of which share a scale."""
    codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2).to(dtype)
    columns = codes.shape[-1]
    zero = 8 if zeros is None else _spread(zeros.to(dtype), -1, columns, size)
    return (codes - zero) * _spread(scales.to(dtype), -1, columns, size)


def _spread(scale: Tensor, dim: int, places: int, size: int) -> Tensor:
    """One scale for each of ``places`` along ``dim``, where there was one for each ``size``."""
    return scale.index_select(dim, torch.arange(places, device=scale.device) // size)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.int8:
        # Exact, as float32 is not past 1024 columns; not every device multiplies integers.
        return product(a.double(), b.double()).float()
    return product(a.float(), b.float())
