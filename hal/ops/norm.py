"""Declarations of the normalisations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op
from hal.ops.rotary import INDEX, check_cos_sin

if TYPE_CHECKING:
    from torch import Tensor


def _normed(x: Tensor, eps: float, **vectors: Tensor | None) -> Tensor:
    check_floating(x=x, **vectors)
    check(x.dim() > 0, "x must have at least one dimension", x=x)
    check_shape(x.shape[-1:], **vectors)
    _check_eps(eps)
    return x.new_empty(x.shape)


def _check_eps(eps: float) -> None:
    check(0 <= eps < math.inf, "eps must be finite and not negative", eps=eps)


def _fused(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed = _normed(x, eps, weight=weight)
    check_floating(residual=residual)
    check_shape(x.shape, residual=residual)
    return normed, residual.new_empty(residual.shape)


@op(grad=True)
def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """Root mean square norm: ``x / sqrt(mean(x**2) + eps) * weight``, in float32 and rounded once.

    The mean is over the last dimension (arXiv 1910.07467). The weight is multiplied before the
    rounding, and is not rounded to the dtype of ``x``. A row of zeros gives zeros, with ``eps=0``
    NaN. NaN makes its row NaN; an infinity gives NaN in its place and zeros in the rest of its row.
    A mean square beyond float32 (values near 1e19) counts as infinite; float64 ``x`` is computed in
    float64 throughout.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        weight: [d], floating point of any dtype; None stands for ones.
        eps: Finite and not negative, in units of ``x**2``.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.rms_norm(torch.tensor([[1.0, 7.0]]), torch.tensor([5.0, 10.0]), 0.0)
        tensor([[ 1., 14.]])
    """
    return _normed(x, eps, weight=weight)


@op(inplace=("x", "residual"))
def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Add in float32, then norm: ``rms_norm(s, weight)`` and ``s``, where ``s = x + residual``.

    Each is rounded once. The norm sees ``s`` before its rounding, so a new residual that overflows
    float16 to infinity leaves the norm finite. Rows of zeros, of NaN and of infinities are as in
    ``rms_norm``. The arithmetic is in float64 if ``x`` or ``residual`` is.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        residual: The shape of ``x``, floating point; its dtype may differ, such as a float32
            residual stream beside a bfloat16 ``x``.
        weight: [d], floating point of any dtype.
        eps: Finite and not negative, in units of ``x**2``.

    Returns:
        The norm [..., d] in the dtype of ``x``, and ``s`` [..., d] in the dtype of ``residual``.

    Example:
        >>> x, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])
        >>> hal.ops.fused_add_rms_norm(x, residual, torch.tensor([5.0, 10.0]), 0.0)
        (tensor([[ 1., 14.]]), tensor([[1., 7.]]))
    """
    return _fused(x, residual, weight, eps)


@op
def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Gemma's RMS norm: ``x / sqrt(mean(x**2) + eps) * (1 + weight)``, in float32 and rounded once.

    Gemma's checkpoints store the weight less one (``GemmaRMSNorm`` of transformers); the one is
    added in float32 (float64 for float64 ``x``), so a weight below the resolution of its dtype at 1
    still counts. Rows of zeros, of NaN and of infinities are as in ``rms_norm``.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        weight: [d], floating point of any dtype.
        eps: Finite and not negative, in units of ``x**2``.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.gemma_rms_norm(torch.tensor([[1.0, 7.0]]), torch.tensor([4.0, 9.0]), 0.0)
        tensor([[ 1., 14.]])
    """
    return _normed(x, eps, weight=weight)


@op(inplace=("x", "residual"))
def gemma_fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Add in float32, then norm: ``gemma_rms_norm(s, weight)`` and ``s``, ``s = x + residual``.

    Each is rounded once. The norm sees ``s`` before its rounding, unlike where a model adds in the
    dtype of ``x``. All else is as in ``fused_add_rms_norm``.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        residual: The shape of ``x``, floating point; its dtype may differ.
        weight: [d], floating point of any dtype; counted as ``1 + weight``.
        eps: Finite and not negative, in units of ``x**2``.

    Returns:
        The norm [..., d] in the dtype of ``x``, and ``s`` [..., d] in the dtype of ``residual``.

    Example:
        >>> x, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])
        >>> hal.ops.gemma_fused_add_rms_norm(x, residual, torch.tensor([4.0, 9.0]), 0.0)
        (tensor([[ 1., 14.]]), tensor([[1., 7.]]))
    """
    return _fused(x, residual, weight, eps)


@op(grad=True)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Layer norm: ``(x - mean) / sqrt(var + eps) * weight + bias``, in float32 and rounded once.

    Mean and variance are over the last dimension (arXiv 1607.06450); the variance is divided by d
    and taken about the mean, not as ``mean(x**2) - mean(x)**2``. A constant row gives the bias,
    with ``eps=0`` NaN. NaN or an infinity makes its row NaN. A variance beyond float32 (deviations
    near 1e19) counts as infinite; float64 ``x`` is computed in float64 throughout.

    Args:
        x: [..., d], floating point, any leading dimensions; empty gives empty.
        weight: [d], floating point of any dtype; None stands for ones.
        bias: [d], floating point of any dtype; None stands for zeros.
        eps: Finite and not negative, in units of ``x**2``.

    Returns:
        [..., d], the dtype of ``x``.

    Example:
        >>> hal.ops.layer_norm(torch.tensor([[1.0, 7.0]]), torch.tensor([5.0, 10.0]), None, 0.0)
        tensor([[-5., 10.]])
    """
    return _normed(x, eps, weight=weight, bias=bias)


def _check_packed(qkv: Tensor, head_dim: int, num_q_heads: int, num_kv_heads: int) -> None:
    for name, heads in {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads}.items():
        check(heads >= 0, f"{name} must not be negative", **{name: heads})
    check(qkv.dim() == 2, "qkv must be [tokens, heads * head_dim]", qkv=qkv)
    heads = num_q_heads + 2 * num_kv_heads
    check(
        qkv.shape[1] == heads * head_dim,
        lambda: f"qkv must have {heads} heads of {head_dim} elements in its last dimension",
        qkv=qkv,
    )


@op(inplace=("qkv",))
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
    """``rms_norm`` of every head of packed queries and keys, then ``rotary_embedding`` of it.

    Both are computed in float32 (float64 for float64) and the outcome is rounded once: unlike the
    two ops one after the other, nothing is rounded between norm and rotation. The values pass
    through bit by bit. Heads of zeros, of NaN and of infinities are as in ``rms_norm``, with an
    infinity's NaN in both elements of its pair; no head shows in another one.

    Args:
        qkv: [tokens, (num_q_heads + 2 * num_kv_heads) * head_dim], floating point, with any
            strides: the heads of the queries, then of the keys, then of the values.
        q_weight: [head_dim], floating point of any dtype: of the norm of the queries, for all heads
            the same.
        k_weight: [head_dim], floating point of any dtype: the same of the keys.
        cos_sin_cache: [max_position, rotary_dim], floating point: rotary_dim / 2 cosines, then as
            many sines; rotary_dim is even and at most head_dim, and the rest of each head is normed
            alone.
        positions: [tokens], int32 or int64. Those outside the cache are not checked, which would
            wait for the device.
        num_q_heads: Heads of the queries; may be 0.
        num_kv_heads: Heads of the keys, and of the values; may be 0.
        eps: Finite and not negative, in units of ``qkv**2``.
        is_neox: Pairs are elements (i, i + rotary_dim / 2), else (2i, 2i + 1).

    Returns:
        The shape and dtype of ``qkv``: queries and keys normed and rotated, values as they were.

    Example:
        >>> qkv, weight = torch.tensor([[1.0, 7.0, 7.0, 1.0, 7.0, 1.0]]), torch.tensor([5.0, 5.0])
        >>> start, quarter_turn = torch.tensor([0]), torch.tensor([[0.0, 1.0]])
        >>> args = qkv, weight, 2 * weight, quarter_turn, start
        >>> hal.ops.qk_norm_rope(*args, 1, 1, eps=0.0, is_neox=True)
        tensor([[-7.,  1., -2., 14.,  7.,  1.]])
    """
    check_floating(qkv=qkv, q_weight=q_weight, k_weight=k_weight)
    check(q_weight.dim() == 1, "q_weight must be [head_dim]", q_weight=q_weight)
    check_shape(q_weight.shape, k_weight=k_weight)
    _check_packed(qkv, q_weight.shape[0], num_q_heads, num_kv_heads)
    check_cos_sin(cos_sin_cache, q_weight=q_weight)
    check_dtype(INDEX, positions=positions)
    check_shape(qkv.shape[:1], positions=positions)
    _check_eps(eps)
    return qkv.new_empty(qkv.shape)
