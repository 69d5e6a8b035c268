"""Normalisations by Triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.kernels import norm as kernels
from hal_triton.kernels.rotary import rotate
from hal_triton.layout import empty, empty_like, flat_like, rows_like, same, unit, whole_rows
from hal_triton.rotary import how, lie_together, turn

Run = Callable[..., Any]


@prepared
def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Run:
    return _rms_norm(x, weight, eps, 0)


@prepared
def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Run:
    return _rms_norm(x, weight, eps, 1)


@prepared
def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Run:
    return _fused(x, residual, weight, eps, 0)


@prepared
def fused_add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Run:
    return _fused_(x, residual, weight, eps, 0)


@prepared
def gemma_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Run:
    return _fused(x, residual, weight, eps, 1)


@prepared
def gemma_fused_add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> Run:
    return _fused_(x, residual, weight, eps, 1)


@prepared
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Run:
    rows_in, rows, stride = rows_like(x)
    empty, weight_in, bias_in = empty_like(x), flat_like(weight), flat_like(bias)
    columns = x.shape[-1]
    plan, numbers = whole_rows(x.device, rows, columns), (rows, columns, stride, eps)
    if plan.several:
        constants = plan.several, plan.block, unit(columns, stride)
        launch = kernels.layer_norm.bind(plan.grid, numbers, constants, plan.num_warps)
    else:
        launch = kernels.long_layer_norm.bind(plan.grid, numbers, (plan.block,), plan.num_warps)

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
        out = empty(x)
        launch(out, rows_in(x), weight_in(weight), bias_in(bias))
        return out

    return run


def normed(shape: Sequence[int], weight: Tensor, eps: float, dtype: torch.dtype) -> Run:
    """The RMS norm in a dtype of contiguous tensors of this shape, which need not have it."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    made, weight_in = empty(shape, weight, dtype), flat_like(weight)
    launch = _launch(weight, rows, columns, (columns, columns, 0, 0), eps, 0)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        out = made()
        launch(out, x, weight_in(weight), None, None)
        return out

    return run


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: int) -> Run:
    empty, weight_in, columns = empty_like(x), flat_like(weight), x.shape[-1]
    rows_in, rows, stride = rows_like(x)
    launch = _launch(x, rows, columns, (columns, stride, 0, 0), eps, offset)

    def run(x: Tensor, weight: Tensor | None, eps: float = eps) -> Tensor:
        out = empty(x)
        launch(out, rows_in(x), weight_in(weight), None, None)
        return out

    return run


def _fused(x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: int) -> Run:
    empty, empty_total, weight_in = empty_like(x), empty_like(residual), flat_like(weight)
    rows_in, rows, stride = rows_like(x)
    residual_in, _, by = rows_like(residual)
    columns = x.shape[-1]
    launch = _launch(x, rows, columns, (columns, stride, by, columns), eps, offset)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float = eps) -> Any:
        out, total = empty(x), empty_total(residual)
        launch(out, rows_in(x), weight_in(weight), residual_in(residual), total)
        return out, total

    return run


def _fused_(x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: int) -> Run:
    weight_in = flat_like(weight)
    (rows_in, rows, stride), (residual_in, _, by) = rows_like(x), rows_like(residual)
    if not rows_in is residual_in is same:
        return _fused_by_copies(_fused(x, residual, weight, eps, offset))
    launch = _launch(x, rows, x.shape[-1], (stride, stride, by, by), eps, offset)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float = eps) -> Any:
        launch(x, x, weight_in(weight), residual, residual)
        return x, residual

    return run


def _fused_by_copies(functional: Run) -> Run:
    """In place where a kernel cannot write into the arguments as they lie."""

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 0.0) -> Any:
        normed, total = functional(x, residual, weight)
        return x.copy_(normed), residual.copy_(total)

    return run


def _launch(
    like: Tensor, rows: int, columns: int, strides: tuple[int, ...], eps: float, offset: int
) -> Run:
    plan, numbers = whole_rows(like.device, rows, columns), (rows, columns, *strides, eps)
    if plan.several:
        constants = offset, plan.several, plan.block, unit(columns, *strides)
        return kernels.rms_norm.bind(plan.grid, numbers, constants, plan.num_warps)
    constants = offset, plan.block
    return kernels.long_rms_norm.bind(plan.grid, numbers, constants, plan.num_warps)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
) -> Tensor:
    out, head_dim = qkv.new_empty(qkv.shape), q_weight.shape[0]
    given = _heads(qkv, num_q_heads, num_kv_heads, head_dim)
    made = _heads(out, num_q_heads, num_kv_heads, head_dim)
    weights = q_weight.contiguous(), k_weight.contiguous()
    turn(made[:2], given[:2], cos_sin_cache, positions, is_neox, weights=weights, eps=eps)
    made[2].copy_(given[2])
    return out


@prepared
def qk_norm_rope_(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
) -> Run:
    head_dim = q_weight.shape[0]
    both = _heads(qkv, num_q_heads, num_kv_heads, head_dim)[:2]
    together = lie_together(positions, *both, cos_sin_cache, q_weight, k_weight)
    first = num_q_heads * head_dim, num_kv_heads * head_dim
    launch = rotate.bind(*how(both, both, cos_sin_cache, is_neox, eps=eps)) if together else None

    def run(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        if launch is None:
            return qkv.copy_(qk_norm_rope(qkv, q_weight, k_weight, *rest, **named))
        key, (cache, positions, *_) = qkv.narrow(1, *first), rest
        launch(qkv, qkv, key, key, cache, positions, None, q_weight, k_weight)
        return qkv

    return run


def _heads(
    qkv: Tensor, q_heads: int, kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the queries, the keys and the values."""
    heads = qkv.unflatten(-1, (q_heads + 2 * kv_heads, head_dim))
    q, k, v = heads.split((q_heads, kv_heads, kv_heads), dim=1)
    return q, k, v
