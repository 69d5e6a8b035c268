"""Activations, gated and plain, in plain torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import gelu, relu, silu

from hal_native.arithmetic import fitting, wide

if TYPE_CHECKING:
    from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (silu(gate) * up).to(x.dtype).contiguous()


def gelu_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    # torch's gelu of contiguous float32 is NaN at infinity, and infinite for 3e38.
    half = (1 + (gate * math.sqrt(0.5)).erf()) / 2
    return (gate * half * up).to(x.dtype).contiguous()


def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (gelu(gate, approximate="tanh") * up).to(x.dtype).contiguous()


def swigluoai_and_mul(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    limit = fitting(limit, wide(x).dtype)
    gate = wide(x[..., 0::2]).clamp(max=limit)
    up = wide(x[..., 1::2]).clamp(-limit, limit)
    return ((up + 1) * gate * (alpha * gate).sigmoid()).to(x.dtype).contiguous()


def relu_squared(x: Tensor) -> Tensor:
    return relu(wide(x)).square().to(x.dtype).contiguous()


def quick_gelu(x: Tensor) -> Tensor:
    w = wide(x)
    return (w * (1.702 * w).sigmoid()).to(x.dtype).contiguous()


def mul_add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    a, b = wide(x), wide(y)
    return (a.to(torch.promote_types(a.dtype, b.dtype)) * scale + b).to(x.dtype).contiguous()
