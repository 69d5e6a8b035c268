"""Declarations of the gated activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.checks import check, check_floating
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor


def _gated(x: Tensor) -> Tensor:
    check_floating(x=x)
    check(x.dim() > 0 and x.shape[-1] % 2 == 0, "x must have an even last dimension", x=x)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@op(grad=True)
def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU gate: ``silu(x[..., :d]) * x[..., d:]``, computed in float32 and rounded once.

    Args:
        x: [..., 2 * d], floating point.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.silu_and_mul(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
        tensor([[0.0000, 1.4621]])
    """
    return _gated(x)


@op(grad=True)
def gelu_and_mul(x: Tensor) -> Tensor:
    """GELU gate, erf form: ``gelu(x[..., :d]) * x[..., d:]``, in float32 and rounded once.

    Args:
        x: [..., 2 * d], floating point.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.gelu_and_mul(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
        tensor([[0.0000, 1.6827]])
    """
    return _gated(x)


@op(grad=True)
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """GELU gate, tanh form: ``gelu_tanh(x[..., :d]) * x[..., d:]``, in float32 and rounded once.

    ``gelu_tanh(g) = g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g**3)))`` (arXiv 1606.08415).

    Args:
        x: [..., 2 * d], floating point.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.gelu_tanh_and_mul(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
        tensor([[0.0000, 1.6824]])
    """
    return _gated(x)
