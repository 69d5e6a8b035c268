"""Declarations of the activations, gated and plain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hal.checks import check, check_floating, check_shape
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

    float64 is computed in float64. NaN stays NaN in its place; a gate of -inf gives NaN.

    Args:
        x: [..., 2 * d], floating point, any leading dimensions; empty gives empty.

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

    ``gelu(g) = g / 2 * (1 + erf(g / sqrt(2)))`` (arXiv 1606.08415). float64 is computed in float64.
    NaN stays NaN in its place; a gate of -inf gives NaN.

    Args:
        x: [..., 2 * d], floating point, any leading dimensions; empty gives empty.

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
    float64 is computed in float64. NaN stays NaN in its place; a gate of -inf gives NaN.

    Args:
        x: [..., 2 * d], floating point, any leading dimensions; empty gives empty.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.gelu_tanh_and_mul(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
        tensor([[0.0000, 1.6824]])
    """
    return _gated(x)


@op
def swigluoai_and_mul(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """Clamped SwiGLU of gpt-oss: ``(up + 1) * gate * sigmoid(alpha * gate)``, interleaved halves.

    ``gate`` is ``x[..., 0::2]``, at most ``limit`` and without a lower bound; ``up`` is
    ``x[..., 1::2]``, within ``-limit`` and ``limit``. Computed in float32 (float64 for float64) and
    rounded once. NaN stays NaN in its place; a gate of -inf gives NaN.

    Args:
        x: [..., 2 * d], floating point; empty gives empty.
        alpha: Finite.
        limit: Above 0; infinity does not clamp.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.swigluoai_and_mul(torch.tensor([[1.0, 2.0, 9.0, -9.0]]))
        tensor([[  2.5374, -41.9997]])
    """
    check(-math.inf < alpha < math.inf, "alpha must be finite", alpha=alpha)
    check(limit > 0, "limit must be above 0", limit=limit)
    return _gated(x)


@op(grad=True)
def relu_squared(x: Tensor) -> Tensor:
    """Squared ReLU: ``max(x, 0)**2``, computed in float32 and rounded once (arXiv 2109.08668).

    float64 is computed in float64. NaN stays NaN in its place; the gradient at 0 is 0.

    Args:
        x: Floating point, any shape; empty gives empty.

    Returns:
        The shape and dtype of ``x``.

    Example:
        >>> hal.ops.relu_squared(torch.tensor([-2.0, 3.0]))
        tensor([0., 9.])
    """
    check_floating(x=x)
    return x.new_empty(x.shape)


@op(grad=True)
def quick_gelu(x: Tensor) -> Tensor:
    """Sigmoid approximation of GELU: ``x * sigmoid(1.702 * x)``, in float32 and rounded once.

    From arXiv 1606.08415, section 2. float64 is computed in float64. NaN stays NaN in its place;
    -inf gives NaN.

    Args:
        x: Floating point, any shape; empty gives empty.

    Returns:
        The shape and dtype of ``x``.

    Example:
        >>> hal.ops.quick_gelu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1542,  0.0000,  0.8458])
    """
    check_floating(x=x)
    return x.new_empty(x.shape)


@op(inplace=("x",))
def mul_add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """``x * scale + y``, computed in float32 and rounded once; ``y`` stays as it is.

    In float64 if ``x`` or ``y`` is. ``scale`` is rounded to that precision first; whether the
    product is rounded to it before the sum is up to the kernel. NaN stays NaN in its place.

    Args:
        x: Floating point, any shape; empty gives empty.
        y: The shape of ``x``, floating point; its dtype may differ.
        scale: Finite.

    Returns:
        The shape and dtype of ``x``.

    Example:
        >>> hal.ops.mul_add(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), 0.5)
        tensor([10.5000, 21.0000])
    """
    check_floating(x=x, y=y)
    check_shape(x.shape, y=y)
    check(-math.inf < scale < math.inf, "scale must be finite", scale=scale)
    return x.new_empty(x.shape)
