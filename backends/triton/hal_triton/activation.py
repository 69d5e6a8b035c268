"""Activations, gated and plain, by Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hal import prepared
from hal_triton.kernels import activation as kernels
from hal_triton.layout import ceil_div, empty, empty_like, rows_like, tile, unit

Run = Callable[..., Any]

_FLAT = 1024


@prepared
def silu_and_mul(x: Tensor) -> Run:
    return _gated(x, "silu")


@prepared
def gelu_and_mul(x: Tensor) -> Run:
    return _gated(x, "gelu")


@prepared
def gelu_tanh_and_mul(x: Tensor) -> Run:
    return _gated(x, "gelu_tanh")


@prepared
def swigluoai_and_mul(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Run:
    columns, (rows_in, rows, stride) = x.shape[-1] // 2, rows_like(x)
    grid, (several, block), num_warps = tile("gate", x.device, rows, columns)
    constants = several, block, unit(columns, stride)
    numbers = rows, columns, stride, alpha, limit
    launch = kernels.interleaved_and_mul.bind(grid, numbers, constants, num_warps)
    made = empty((*x.shape[:-1], columns), x)

    def run(x: Tensor, alpha: float = alpha, limit: float = limit) -> Tensor:
        out = made()
        launch(out, rows_in(x))
        return out

    return run


@prepared
def relu_squared(x: Tensor) -> Run:
    return _elementwise(x, "relu_squared")


@prepared
def quick_gelu(x: Tensor) -> Run:
    return _elementwise(x, "quick_gelu")


@prepared
def mul_add(x: Tensor, y: Tensor, scale: float) -> Run:
    empty, launch = empty_like(x), _mul_add(x, scale)

    def run(x: Tensor, y: Tensor, scale: float) -> Tensor:
        out = empty(x)
        launch(out, x.contiguous(), y.contiguous())
        return out

    return run


@prepared
def mul_add_(x: Tensor, y: Tensor, scale: float) -> Run:
    launch, in_place = _mul_add(x, scale), x.is_contiguous()

    def run(x: Tensor, y: Tensor, scale: float) -> Tensor:
        out = x if in_place else x.contiguous()
        launch(out, out, y.contiguous())
        return x if in_place else x.copy_(out)

    return run


def _gated(x: Tensor, kind: str) -> Run:
    columns, (rows_in, rows, stride) = x.shape[-1] // 2, rows_like(x)
    grid, (several, block), num_warps = tile("gate", x.device, rows, columns)
    constants = kind, several, block, unit(columns, stride)
    made = empty((*x.shape[:-1], columns), x)
    launch = kernels.gate_and_mul.bind(grid, (rows, columns, stride), constants, num_warps)

    def run(x: Tensor) -> Tensor:
        out = made()
        launch(out, rows_in(x))
        return out

    return run


def _elementwise(x: Tensor, kind: str) -> Run:
    empty, count = empty_like(x), x.numel()
    grid = ceil_div(count, _FLAT), 1, 1
    launch = kernels.elementwise.bind(grid, (count,), (kind, _FLAT))

    def run(x: Tensor) -> Tensor:
        out = empty(x)
        launch(out, x.contiguous())
        return out

    return run


def _mul_add(x: Tensor, scale: float) -> Run:
    grid = ceil_div(x.numel(), _FLAT), 1, 1
    return kernels.scale_and_add.bind(grid, (x.numel(), scale), (_FLAT,))
