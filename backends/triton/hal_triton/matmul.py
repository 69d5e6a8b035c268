"""Products with quantised matrices by Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hal_triton.layout import flat
from hal_triton.product import Weight, product

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (128, 128),
    out_dtype: torch.dtype,
) -> Tensor:
    weight = Weight(b, b_scale, block=(block[0], block[1]))
    return product(a, a_scale, weight, out_dtype, None)


def w4a16_mm(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Tensor:
    weight = Weight(qweight, scales, flat(zeros), (1, group_size))
    return product(x, None, weight, x.dtype, None)
