"""The kernels: each with exactly the signature of its operator, and the conditions they have."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  # The field's name for it.
from torch import Tensor

# Below this a difference of logits may overflow float32 when it is divided.
_LOWEST_TEMPERATURE = 1e-6


def _wide(x: Tensor) -> Tensor:
    """Operators compute in float32 and round once."""
    return x if x.dtype == torch.float64 else x.float()


def silu_and_mul(x: Tensor) -> Tensor:
    """``silu(x[..., :d]) * x[..., d:]``."""
    # Of rows that lie apart torch rounds some elements differently than of one row.
    gate, up = _wide(x).contiguous().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype).contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight``."""
    wide = _wide(x)
    scale = None if weight is None else weight.to(wide.dtype)
    return F.rms_norm(wide, (x.shape[-1],), scale, eps).to(x.dtype).contiguous()


def fused_add_rms_norm_supports(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> str | None:
    """Narrower types have to be added in float32, which needs a temporary."""
    del weight, eps
    dtypes = {x.dtype, residual.dtype}
    return None if dtypes == {torch.float32} else "x and residual must be float32"


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``rms_norm(s, weight)`` and ``s``, where ``s = x + residual``."""
    total = (x + residual).contiguous()
    return rms_norm(total, weight, eps), total


def fused_add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The same into ``x`` and ``residual``."""
    residual.add_(x)
    return x.copy_(rms_norm(residual.contiguous(), weight, eps)), residual


def softmax_supports(logits: Tensor, *, temperature: Tensor | float = 1.0) -> str | None:
    """Why not, in words that a person reads in ``hal.explain``; None if it serves."""
    if logits.dtype != torch.float32:
        return "logits must be float32"
    if isinstance(temperature, Tensor):
        return "temperature must be one number, not a tensor"
    if not _LOWEST_TEMPERATURE <= temperature < math.inf:
        return f"temperature must be at least {_LOWEST_TEMPERATURE}, and finite"
    return None


def softmax(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    """``exp(logits / temperature)`` over its sum; a row of nothing but -inf is all zeros."""
    shifted = (logits - logits.amax(-1, keepdim=True)) / temperature
    nothing = torch.isneginf(logits).all(-1, keepdim=True)
    # In float32 torch's sum over a hundred thousand columns is off by one in a hundred thousand.
    chances = torch.softmax(shifted, -1, dtype=torch.float64).float()
    return chances.masked_fill(nothing, 0.0).contiguous()
