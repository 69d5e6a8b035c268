"""Declarations of the products with quantised matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOAT32 = (torch.float32,)
OUT = (torch.float32, torch.float16, torch.bfloat16)


def groups_of(size: int, group: int) -> int:
    """How many groups of ``group`` cover ``size``, the last one shorter if need be."""
    return -(-size // group)


def _check_factors(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> None:
    check(b.dim() == 2, "b must be [n, k]", b=b)
    check(a.dim() > 0, "a must be [..., k]", a=a)
    check(a.shape[-1] == b.shape[1], "a must have as many columns as b", a=a, b=b)
    required = "out_dtype must be float32, float16 or bfloat16"
    check(out_dtype in OUT, required, out_dtype=out_dtype)


def _check_row_scale(name: str, scale: Tensor, rows: Sequence[int]) -> None:
    check_dtype(FLOAT32, **{name: scale})
    each = (tuple(rows), (*rows, 1))
    fits = tuple(scale.shape) in each or scale.numel() == 1
    required = "must have one element or shape"
    check(fits, lambda: f"{name} {required} {[*rows]} or {[*rows, 1]}", **{name: scale})


@op
def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """A product of 8-bit matrices: ``(a @ b.T) * a_scale * b_scale + bias``.

    Products of 8-bit floats are summed in float32. Those of int8 are summed exactly and then
    rounded to float32. Scales and bias are applied in float32, and the result is rounded once; what
    exceeds ``out_dtype`` is an infinity. NaN and infinities reach the row of ``a`` or the column of
    the result that they are in, and nothing else. Without columns the sum is 0.

    Args:
        a: [..., k], float8_e4m3fn, float8_e5m2 or int8.
        b: [n, k], as a linear layer has its weight; int8 if ``a`` is, else an 8-bit float, which
            may be the other one. Kernels that want [k, n] column by column take ``b.t()``.
        a_scale: float32, of one element, or one for each row of ``a``: [...] or [..., 1].
        b_scale: float32, of one element, or one for each row of ``b``: [n] or [n, 1].
        out_dtype: float32, float16 or bfloat16.
        bias: [n], floating point, added before the result is rounded; None adds nothing.

    Returns:
        [..., n], ``out_dtype``.

    Example:
        >>> a = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
        >>> b, scales = torch.tensor([[1, -1]], dtype=torch.int8), torch.tensor([1.0, 10.0])
        >>> hal.ops.scaled_mm(a, b, scales, torch.tensor([0.5]), out_dtype=torch.float32)
        tensor([[-0.5000],
                [-5.0000]])
    """
    check_dtype((*FP8, torch.int8), a=a, b=b)
    same = (a.dtype in FP8) == (b.dtype in FP8)
    check(same, "a and b must both be int8 or both be 8-bit floats", a=a, b=b)
    _check_factors(a, b, out_dtype)
    _check_row_scale("a_scale", a_scale, a.shape[:-1])
    _check_row_scale("b_scale", b_scale, b.shape[:1])
    check_floating(bias=bias)
    check_shape(b.shape[:1], bias=bias)
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=out_dtype)


@op
def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (128, 128),
    out_dtype: torch.dtype,
) -> Tensor:
    """``a @ b.T`` of 8-bit floats with a scale for each block: DeepSeek-V3's product, 2412.19437.

    ``out[m, n]`` is the sum over ``i`` of ``a[m, i] * a_scale[m, i // block[1]] * b[n, i] *
    b_scale[n // block[0], i // block[1]]``, in float32 and rounded once: the scales count within
    the sum, block by block. Neither n nor k need be a multiple of the block; the last block is then
    smaller. What exceeds ``out_dtype`` is an infinity. NaN reaches the rows and columns of the
    result that it is in, from a scale those of its block, and nothing else.

    Args:
        a: [..., k], float8_e4m3fn or float8_e5m2.
        b: [n, k], float8_e4m3fn or float8_e5m2.
        a_scale: [..., ceil(k / block[1])], float32, any strides, such as column by column.
        b_scale: [ceil(n / block[0]), ceil(k / block[1])], float32, any strides.
        block: (rows of b, columns) that share a scale; each row of ``a`` has its own.
        out_dtype: float32, float16 or bfloat16.

    Returns:
        [..., n], ``out_dtype``.

    Example:
        >>> a, b = torch.ones(1, 4).to(torch.float8_e4m3fn), torch.ones(2, 4)
        >>> scales = torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> b = b.to(torch.float8_e4m3fn)
        >>> hal.ops.block_scaled_mm(a, b, *scales, block=(1, 2), out_dtype=torch.float32)
        tensor([[42., 86.]])
    """
    check_dtype(FP8, a=a, b=b)
    _check_factors(a, b, out_dtype)
    positive = len(block) == 2 and block[0] > 0 and block[1] > 0
    check(positive, "block must be (rows, columns), each at least 1", block=block)
    check_dtype(FLOAT32, a_scale=a_scale, b_scale=b_scale)
    across = groups_of(b.shape[1], block[1])
    check_shape((*a.shape[:-1], across), a_scale=a_scale)
    check_shape((groups_of(b.shape[0], block[0]), across), b_scale=b_scale)
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=out_dtype)


@op
def w4a16_mm(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Tensor:
    """``x @ w.T`` with weights of 4 bits: ``w = (q - zero) * scale``, for groups of columns.

    ``q`` is 0 to 15: of byte ``i`` of a row the low nibble is column ``2 * i`` and the high one
    column ``2 * i + 1``. Without ``zeros`` the zero is 8, whatever the group size, so that weights
    are -8 to 7 times their scale. Weights, products and sums are computed in float32 (float64 for
    float64) without rounding ``w`` to the dtype of ``x``, and the result is rounded once. NaN
    reaches its row of ``x``, or its column of the result, and nothing else.

    Args:
        x: [..., k], floating point, k even.
        qweight: [n, k / 2], uint8.
        scales: [n, ceil(k / group_size)], floating point, not necessarily as ``x``.
        group_size: How many columns share a scale; the last group may be smaller, and k or more is
            one scale for each row.
        zeros: As ``scales``: uint8, one zero in each byte, or floating point; None is 8.

    Returns:
        [..., n], the dtype of ``x``.

    Example:
        >>> qweight = torch.tensor([[0xA9, 0x78]], dtype=torch.uint8)  # 1, 2, 0, -1
        >>> scales = torch.tensor([[1.0, 100.0]])
        >>> hal.ops.w4a16_mm(torch.ones(1, 4), qweight, scales, group_size=2)
        tensor([[-97.]])
    """
    check_floating(x=x, scales=scales)
    check_dtype((torch.uint8,), qweight=qweight)
    check(qweight.dim() == 2, "qweight must be [n, k / 2]", qweight=qweight)
    check(group_size > 0, "group_size must be at least 1", group_size=group_size)
    columns = 2 * qweight.shape[1]
    check(x.dim() > 0, "x must be [..., k]", x=x)
    check(
        x.shape[-1] == columns, "x must have two columns for each of qweight", x=x, qweight=qweight
    )
    shape = (qweight.shape[0], groups_of(columns, group_size))
    check_shape(shape, scales=scales)
    if zeros is not None:
        integer = zeros.dtype == torch.uint8
        required = "zeros must be uint8 or floating point"
        check(integer or zeros.is_floating_point(), required, zeros=zeros)
        check_shape(shape, zeros=zeros)
    return x.new_empty((*x.shape[:-1], qweight.shape[0]))
