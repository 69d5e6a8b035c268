"""Products for many rows by cuBLAS, and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hal import prepared
from hal_cuda.crossing import portable, product_wins, wins
from hal_cuda.matmul import blocks_product, blocks_refused, known
from hal_triton import gemv as triton
from hal_triton.kernels.activation import gate_and_mul
from hal_triton.layout import empty, tile, unit
from hal_triton.norm import normed

__all__ = ["fused_gemv", "fused_gemv_supports"]

Run = Callable[..., Any]

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
) -> Run:
    rows, follows = x.shape[:-1].numel(), activation is not None or norm_weight is not None
    if x_scale is not None:
        if product_wins("block_scaled_mm", rows, weight):
            return _of_blocks
    elif wins("linear and more" if follows else "linear", rows, x):
        return _followed(x, weight, activation, norm_weight, eps) if follows else _linear
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
    x: Tensor, weight: Tensor, activation: str | None, norm_weight: Tensor | None, eps: float
) -> Run:
    rows, (outs, columns), made = x.shape[:-1].numel(), weight.shape, x.shape[:-1]
    if norm_weight is None:
        after = _gated(x, rows, outs // 2)
    else:
        after = normed((rows, outs), norm_weight, eps, x.dtype)

    def run(x: Tensor, weight: Tensor, *, norm_weight: Tensor | None = None, **_: Any) -> Tensor:
        product = torch.mm(x.reshape(rows, columns), weight.t(), out_dtype=torch.float32)
        return after(product, norm_weight).view(*made, -1)

    return run


def _gated(x: Tensor, rows: int, columns: int) -> Run:
    """What makes [rows, columns] of the dtype of ``x`` of products in float32, gates first."""
    made = empty((rows, columns), x)
    grid, shape, num_warps = tile("gate", x.device, rows, columns)
    constants = "silu", *shape, unit(columns, 2 * columns)
    launch = gate_and_mul.bind(grid, (rows, columns, 2 * columns), constants, num_warps)

    def run(product: Tensor, norm_weight: None) -> Tensor:
        out = made()
        launch(out, product)
        return out

    return run
