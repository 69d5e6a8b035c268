"""Declarations of the ops that quantise to 8 bits and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
GROUP_SIZES = (16, 32, 64, 128)
LAYOUTS = ("row", "column", "tma")


def ceil_div(a: int, b: int) -> int:
    """The number of pieces of ``b`` that hold ``a``, of which the last may be shorter."""
    return -(-a // b)


def new_scale(x: Tensor, groups: int, layout: str, ue8m0: bool) -> Tensor:
    """A scale for the rows of ``x``, strided as ``layout`` says, with zeros where it pads."""
    packed = ue8m0 and layout == "tma"
    columns = ceil_div(groups, 4) if packed else groups
    dtype = torch.int32 if packed else torch.float32
    if layout == "row":
        return x.new_empty((*x.shape[:-1], columns), dtype=dtype)
    rows = x.shape[-2]
    # The tensor memory accelerator of a GPU reads 16 bytes at once.
    room = ceil_div(rows, 4) * 4 if layout == "tma" else rows
    padded = x.new_zeros((*x.shape[:-2], columns, room), dtype=dtype)
    # Not a slice: in torch 2.7 that asks whether there is padding, which compiled code then fixes.
    return padded.narrow(-1, 0, rows).mT


def check_codes(x: Tensor, dtype: torch.dtype) -> None:
    """Require what can be quantised, and a dtype to quantise to."""
    check_floating(x=x)
    names = " or ".join(str(each) for each in CODES)
    check(dtype in CODES, f"dtype must be {names}", dtype=dtype)


def grouped_results(
    x: Tensor, group_size: int | None, dtype: torch.dtype, layout: str, ue8m0: bool
) -> tuple[Tensor, Tensor]:
    """Check the arguments of a dynamic quantisation, and make its empty results."""
    check_codes(x, dtype)
    check(x.dim() > 0, "x must have at least one dimension", x=x)
    fits = group_size is None or group_size in GROUP_SIZES
    check(fits, "group_size must be 16, 32, 64 or 128", group_size=group_size)
    check(layout in LAYOUTS, "scale_layout must be row, column or tma", scale_layout=layout)
    if layout != "row":
        check(x.dim() > 1, f"x must be [..., rows, k] for the {layout} layout", x=x)
    groups = 1 if group_size is None else ceil_div(x.shape[-1], group_size)
    return x.new_empty(x.shape, dtype=dtype), new_scale(x, groups, layout, ue8m0)


def check_static(scale: Tensor) -> None:
    """Require the scale of a whole tensor."""
    check_dtype((torch.float32,), scale=scale)
    check(scale.numel() == 1, "scale must have one element", scale=scale)


@op
def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantise each group of a row with a scale of its own: ``q = round(clamp(x / scale))``.

    A group is ``group_size`` neighbours in the last dimension; the last group of a row may be
    shorter. Its ``scale`` is ``max(abs(x))``, at least 1e-10, over the largest code: 448 for
    float8_e4m3fn, 57344 for float8_e5m2 and 127 for int8. It is computed in float32 (float64 for
    float64) and rounded to float32; the codes are ``x`` over the scale that is returned, by one
    division, clamped to the largest code and rounded half to even. A group of zeros has codes 0
    and the scale of 1e-10.

    With ``ue8m0`` the scale is rounded up to a power of two, exactly; one that is a power of two
    stays. NaN makes the scale and all codes of its group NaN. An infinity makes the scale infinite,
    its own code NaN and the others of its group 0. As a code of int8, NaN is 0: the scale tells.
    No other group is touched.

    Args:
        x: [..., k], floating point, any leading dimensions; empty gives empty.
        group_size: 16, 32, 64 or 128.
        dtype: float8_e4m3fn, float8_e5m2 or int8.
        scale_layout: The strides of the scale, never its shape. ``"row"`` is contiguous.
            ``"column"`` has the rows next to each other, ``stride(-2) == 1``. ``"tma"`` is the
            same with each column padded with zeros to a multiple of 16 bytes. The latter two want
            ``x`` [..., rows, k].
        ue8m0: Round scales up to powers of two. In the layout ``"tma"`` they are packed: the
            biased exponents (E8M0 of the OCP Microscaling Formats, 127 for 1.0, 255 for a scale
            that is infinite or NaN) of four groups in an int32, the first in the lowest byte.

    Returns:
        The codes [..., k] in ``dtype``, and the scale [..., ceil(k / group_size)] float32; packed
        it is [..., ceil(k / group_size / 4)] int32.

    Example:
        >>> x = torch.tensor([[127.0, 2.5] + [0.0] * 14 + [0.5, -0.25]])
        >>> q, scale = hal.ops.per_token_group_quant(x, 16, dtype=torch.int8)
        >>> q[:, [0, 1, 16, 17]]
        tensor([[127,   2, 127, -64]], dtype=torch.int8)
        >>> scale
        tensor([[1.0000, 0.0039]])
    """
    return grouped_results(x, group_size, dtype, scale_layout, ue8m0)


@op
def per_token_quant(
    x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Quantise each row with a scale of its own: ``q = round(clamp(x / scale))``.

    All is as in ``per_token_group_quant``, with one group as long as the row.

    Args:
        x: [..., k], floating point, any leading dimensions; empty gives empty.
        dtype: float8_e4m3fn, float8_e5m2 or int8.

    Returns:
        The codes [..., k] in ``dtype``, and the scale [..., 1] float32.

    Example:
        >>> q, scale = hal.ops.per_token_quant(torch.tensor([[448.0, 17.0], [0.0, 0.0]]))
        >>> q.float()
        tensor([[448.,  16.],
                [  0.,   0.]])
        >>> scale
        tensor([[1.0000e+00],
                [2.2321e-13]])
    """
    return grouped_results(x, None, dtype, "row", False)


@op
def per_tensor_quant(
    x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Quantise with one scale: that of all of ``x``, or a given one.

    Without ``scale`` all is as in ``per_token_group_quant``, with one group for the whole tensor,
    whatever its strides. With it, ``q = round(clamp(x / scale))`` by one division, never a product
    with the inverse; infinities saturate and NaN stays NaN (for int8, 0).

    Args:
        x: Floating point, any shape; empty gives empty codes.
        scale: One element, float32, such as a checkpoint's input scale. It is positive and finite,
            which is not checked, as that would wait for the device.
        dtype: float8_e4m3fn, float8_e5m2 or int8.

    Returns:
        The codes in the shape of ``x`` and in ``dtype``, and the scale [1] float32; a given one as
        a copy.

    Example:
        >>> q, scale = hal.ops.per_tensor_quant(torch.tensor([1.0, -2.0]), dtype=torch.int8)
        >>> q, scale
        (tensor([  64, -127], dtype=torch.int8), tensor([0.0157]))
        >>> hal.ops.per_tensor_quant(torch.tensor([5.0, 900.0]), torch.tensor([2.0]))[0].float()
        tensor([  2.5000, 448.0000])
    """
    check_codes(x, dtype)
    if scale is not None:
        check_static(scale)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((1,), dtype=torch.float32)


def _check_scale(q: Tensor, scale: Tensor, group_size: int | None) -> None:
    """Require a scale that a quantiser would return for ``q``."""
    packed = scale.dtype == torch.int32
    if not packed:
        check(
            scale.dtype.is_floating_point and scale.dtype.itemsize > 1,
            "scale must be floating point, or int32 for packed exponents",
            scale=scale,
        )
    if group_size is None:
        check(not packed, "packed scales need group_size", scale=scale)
        if scale.dim() < 2 and scale.numel() == 1:
            return
    columns = 1 if group_size is None else ceil_div(q.shape[-1] if q.dim() else 1, group_size)
    columns = ceil_div(columns, 4) if packed else columns
    fits = q.dim() > 0 and tuple(scale.shape) == (*q.shape[:-1], columns)
    wanted = "" if group_size is not None else ", [] or [1]"
    check(
        fits,
        lambda: f"scale must have shape {[*q.shape[:-1], columns]}{wanted}",
        scale=scale,
        q=q,
    )


@op
def dequantize(
    q: Tensor,
    scale: Tensor,
    group_size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Codes times their scales: what every quantiser of this family has put in, up to rounding.

    The strides of ``scale`` do not matter, so that one op reads all layouts. The product is in
    float32 (float64 if ``dtype`` or ``scale`` is) and is rounded once; what exceeds ``dtype``
    becomes infinite.

    Args:
        q: [..., k], float8_e4m3fn, float8_e5m2 or int8, such as the weights from ``unpack_int4``.
        scale: Floating point [..., ceil(k / group_size)]; int32 [..., ceil(k / group_size / 4)] of
            packed exponents, as ``per_token_group_quant`` describes them. Without ``group_size``
            [..., 1], or one element for the whole tensor, [] or [1].
        group_size: How many codes share a scale, any positive number; None is the whole row.
        dtype: Floating point of 16 bits or more.

    Returns:
        [..., k] in ``dtype``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [300.0, 400.0]])
        >>> hal.ops.dequantize(*hal.ops.per_token_quant(x, dtype=torch.int8))
        tensor([[  1.0079,   2.0000],
                [299.2126, 400.0000]])
    """
    check_dtype(CODES, q=q)
    wide = dtype.is_floating_point and dtype.itemsize > 1
    check(wide, "dtype must be floating point of 16 bits or more", dtype=dtype)
    positive = group_size is None or group_size > 0
    check(positive, "group_size must be positive", group_size=group_size)
    _check_scale(q, scale, group_size)
    return q.new_empty(q.shape, dtype=dtype)
