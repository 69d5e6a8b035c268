"""Products with quantised matrices by Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.layout import flat_like
from hal_triton.product import Weight, native, product
from hal_triton.target import served

Run = Callable[..., Any]


_LONGEST = 2**17
"""From so many columns on a sum of products of int8 may be beyond int32."""


@prepared
def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Run:
    a_in, b_in, bias_in = flat_like(a_scale), flat_like(b_scale), flat_like(bias)
    by_a = a_in(a_scale).view(-1, 1).expand(a.shape[:-1].numel(), 1).view(*a.shape[:-1], 1)
    weight = Weight(b, b_in(b_scale).view(-1, 1).expand(b.shape[0], 1))
    multiply = product(a, by_a, weight, out_dtype, fast=native(b, out_dtype))

    def run(
        a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, bias: Any = None, **_: Any
    ) -> Tensor:
        return multiply(a, a_in(a_scale), b, b_in(b_scale), None, bias_in(bias))

    return run


def scaled_mm_supports(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, **kwargs: Any
) -> str | None:
    if b.dtype == torch.int8 and b.shape[1] >= _LONGEST:
        return f"{_LONGEST} columns can overflow int32"
    return served(a, b, a_scale, b_scale, **kwargs)


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
    multiply = product(a, a_scale, weight, out_dtype, fast=native(b, out_dtype))
    return lambda a, b, a_scale, b_scale, **_: multiply(a, a_scale, b, b_scale, None, None)


@prepared
def w4a16_mm(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Run:
    zeros_in = flat_like(zeros)
    weight = Weight(qweight, scales, zeros_in(zeros), (1, group_size))
    multiply = product(x, None, weight, x.dtype)

    def run(x: Tensor, qweight: Tensor, scales: Tensor, *, zeros: Any = None, **_: Any) -> Tensor:
        return multiply(x, None, qweight, scales, zeros_in(zeros), None)

    return run
