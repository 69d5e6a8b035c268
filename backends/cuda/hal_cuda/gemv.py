"""Products for many rows by cuBLAS, and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hal import prepared
from hal_cuda.crossing import portable, wins
from hal_cuda.matmul import blocks_product, blocks_refused, known
from hal_triton import gemv as triton
from hal_triton.kernels.activation import gate_and_mul
from hal_triton.layout import tile, unit
from hal_triton.norm import normed

__all__ = ["fused_gemv", "fused_gemv_supports"]

_HALVES = (torch.bfloat16, torch.float16)
_WIDE = "dtype" in torch.ops.aten.mm.overloads()
"""Whether torch gives products of 16 bits in float32, as it does since 2.8."""


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
    rows, follows = x.shape[:-1].numel(), activation is not None or norm_weight is not None
    if x_scale is not None:
        what, by_cublas = "block_scaled_mm", _of_blocks
    else:
        what, by_cublas = ("linear and more", _followed) if follows else ("linear", _linear)
    if wins(what, rows, x):
        return by_cublas
    scales = {"x_scale": x_scale, "weight_scale": weight_scale}
    after = {"activation": activation, "norm_weight": norm_weight, "eps": eps}
    return portable(triton.fused_gemv, x, weight, **scales, **after)


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
    follows = activation is not None or norm_weight is not None
    if x_scale is not None:
        if follows or not known():
            return "cuBLAS rounds a product of 8-bit floats before what follows, if it knows scales"
        return blocks_refused(x, weight, torch.bfloat16)
    if weight.dtype not in _HALVES:
        return "cuBLAS has what other kernels have not for weights of 16 bits alone"
    return None if _WIDE or not follows else "this torch rounds a product before what follows it"


def _of_blocks(
    x: Tensor, weight: Tensor, *, x_scale: Tensor, weight_scale: Tensor, **options: Any
) -> Tensor:
    return blocks_product(x, weight, x_scale, weight_scale)


def _linear(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return functional.linear(x, weight)


def _followed(
    x: Tensor,
    weight: Tensor,
    *,
    activation: str | None,
    norm_weight: Tensor | None,
    eps: float,
    **options: Any,
) -> Tensor:
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    product = torch.mm(rows, weight.t(), out_dtype=torch.float32)
    if activation is None:
        result = normed(product, norm_weight, eps, x.dtype)
    else:
        result = _gated(product, x.dtype)
    return result.view(*x.shape[:-1], result.shape[-1])


def _gated(product: Tensor, dtype: torch.dtype) -> Tensor:
    rows, columns = product.shape[0], product.shape[1] // 2
    out = product.new_empty((rows, columns), dtype=dtype)
    grid, shape, num_warps = tile(rows, columns)
    constants = "silu", *shape, unit(columns, 2 * columns)
    gate_and_mul(grid, (out, product), (rows, columns, 2 * columns), constants, num_warps)
    return out
