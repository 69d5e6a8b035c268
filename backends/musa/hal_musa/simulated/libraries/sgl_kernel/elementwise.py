"""Norms, activations and rotations."""

from __future__ import annotations

import torch
from torch import Tensor


def rmsnorm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    out: Tensor | None = None,
    enable_pdl: bool | None = None,
) -> Tensor:
    """[rows, dim] of float16 or bfloat16; the weight's dtype is not looked at."""
    out = torch.empty_like(input) if out is None else out
    torch.ops.sgl_kernel.rmsnorm(out, input, weight, eps, bool(enable_pdl))
    return out


def gemma_rmsnorm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    out: Tensor | None = None,
    enable_pdl: bool | None = None,
) -> Tensor:
    """As ``rmsnorm`` with a weight counted as 1 + weight."""
    out = torch.empty_like(input) if out is None else out
    torch.ops.sgl_kernel.gemma_rmsnorm(out, input, weight, eps, bool(enable_pdl))
    return out


def fused_add_rmsnorm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """In place on both; no shape, stride or dtype is looked at."""
    torch.ops.sgl_kernel.fused_add_rmsnorm(input, residual, weight, eps, bool(enable_pdl))


def gemma_fused_add_rmsnorm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """In place on both, with a weight counted as 1 + weight."""
    torch.ops.sgl_kernel.gemma_fused_add_rmsnorm(input, residual, weight, eps, bool(enable_pdl))


def _halves(input: Tensor, out: Tensor | None) -> Tensor:
    if input.shape[-1] * input.dtype.itemsize % 16:
        raise ValueError("The pointers must be multiple of 16 bytes.")
    if out is None:
        return input.new_empty((*input.shape[:-1], input.shape[-1] // 2))
    assert input.ndim == out.ndim, f"{input.ndim} != {out.ndim}"
    assert input.shape[:-1] == out.shape[:-1], f"{input.shape[:-1]} != {out.shape[:-1]}"
    assert input.shape[-1] == 2 * out.shape[-1], f"{input.shape[-1]} != {2 * out.shape[-1]}"
    return out


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """[..., 2 d] to [..., d]; strides are not looked at."""
    out = _halves(input, out)
    torch.ops.sgl_kernel.silu_and_mul(out, input)
    return out


def gelu_tanh_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """[..., 2 d] to [..., d]; strides are not looked at."""
    out = _halves(input, out)
    torch.ops.sgl_kernel.gelu_tanh_and_mul(out, input)
    return out


def gelu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """[..., 2 d] to [..., d]; strides are not looked at."""
    out = _halves(input, out)
    torch.ops.sgl_kernel.gelu_and_mul(out, input)
    return out


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool = True,
) -> None:
    """In place; the distance of query's heads is taken for key's too."""
    torch.ops.sgl_kernel.rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
