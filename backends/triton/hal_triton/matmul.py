"""Products with quantised matrices by Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.layout import flat_like
from hal_triton.product import Weight, product

Run = Callable[..., Any]


@prepared
def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (128, 128),
    out_dtype: torch.dtype,
) -> Run:
    weight = Weight(b, b_scale, block=(block[0], block[1]))
    multiply = product(a, a_scale, weight, out_dtype, None)
    return lambda a, b, a_scale, b_scale, **_: multiply(a, a_scale, b, b_scale, None)


@prepared
def w4a16_mm(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Run:
    zeros_in = flat_like(zeros)
    weight = Weight(qweight, scales, zeros_in(zeros), (1, group_size))
    multiply = product(x, None, weight, x.dtype, None)

    def run(x: Tensor, qweight: Tensor, scales: Tensor, *, zeros: Any = None, **_: Any) -> Tensor:
        return multiply(x, None, qweight, scales, zeros_in(zeros))

    return run
