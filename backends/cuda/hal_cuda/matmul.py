"""Products with quantised matrices by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hal import prepared
from hal_cuda.crossing import portable, product_wins
from hal_cuda.kernels.matmul import scale_sums
from hal_cuda.layout import aligned, as_rows, together
from hal_triton import matmul as triton
from hal_triton.layout import ceil_div

__all__ = [
    "block_scaled_mm",
    "block_scaled_mm_supports",
    "blocks_product",
    "blocks_refused",
    "known",
    "scaled_mm",
    "scaled_mm_supports",
    "scaled_product",
]

BLOCK = 128
_UNIT = 16
"""Rows and columns of 8-bit weights that cuBLAS takes are multiples of it."""
_HALVES = (torch.bfloat16, torch.float16)
_LONGEST = 2**17
"""From so many columns on a sum of products of int8 may be beyond int32."""
_FEWEST = 32
"""``torch._int_mm`` takes no fewer than 17 rows."""
_STEP = 4
"""Blocks that lie along a row of the scales of a weight come in as many."""
_ROWS = 4
"""Rows of ``a`` come in as many, so that a column of their scales is a multiple of 16 bytes."""


def known() -> bool:
    """Whether torch, since 2.10, and cuBLAS, since that of CUDA 12.9, know scales of rows."""
    version = [int(part) for part in (torch.version.cuda or "0").split(".")]
    return hasattr(functional, "scaled_mm") and version >= [12, 9]


@prepared
def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Callable[..., Any]:
    if not product_wins("scaled_mm", a.shape[:-1].numel(), b):
        options = {"out_dtype": out_dtype, "bias": bias}
        return portable(triton.scaled_mm, a, b, a_scale, b_scale, **options)
    return scaled_product


def scaled_product(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """What ``scaled_mm`` does."""
    shape = *a.shape[:-1], b.shape[0]
    if not a.numel():
        return a.new_empty(shape, dtype=out_dtype)
    multiply = _of_integers if a.dtype == torch.int8 else _of_floats
    a_scale, b_scale = a_scale.reshape(-1, 1), b_scale.reshape(1, -1)
    return multiply(as_rows(a), aligned(b), a_scale, b_scale, out_dtype, bias).view(shape)


def scaled_mm_supports(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> str | None:
    if min(b.shape) == 0 or b.shape[0] % _UNIT or b.shape[1] % _UNIT:
        return f"cuBLAS takes weights of a multiple of {_UNIT} rows and columns"
    if a.dtype == torch.int8:
        return f"{_LONGEST} columns can overflow int32" if b.shape[1] >= _LONGEST else None
    if a.dtype == b.dtype == torch.float8_e5m2:
        return "cuBLAS multiplies no float8_e5m2 with float8_e5m2"
    if out_dtype not in _HALVES:
        # The sums of tensor cores have 14 bits or so until they are added to those in float32.
        return "sums of 8-bit floats are not good enough for float32"
    if bias is not None and bias.dtype != out_dtype:
        return "cuBLAS adds a bias of the dtype of the result"
    return None


def _of_floats(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    if a_scale.numel() > 1 or b_scale.numel() > 1:
        # Scales are of one kind: both for the whole, or both for each row.
        a_scale, b_scale = a_scale.expand(a.shape[0], 1), b_scale.expand(1, b.shape[0])
    return torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        a,
        b.t(),
        together(a_scale),
        together(b_scale),
        bias=None if bias is None else together(bias),
        out_dtype=out_dtype,
        use_fast_accum=False,
    )


def _of_integers(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    rows, columns = a.shape[0], b.shape[0]
    if rows < _FEWEST:
        a = torch.cat((a, a.new_zeros((_FEWEST - rows, a.shape[1]))))
    sums = torch._int_mm(a, b.t())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    out = sums.new_empty((rows, columns), dtype=out_dtype)
    scale_sums(out, sums, a_scale, b_scale, bias)
    return out


@prepared
def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (BLOCK, BLOCK),
    out_dtype: torch.dtype,
) -> Callable[..., Any]:
    if not product_wins("block_scaled_mm", a.shape[:-1].numel(), b):
        options = {"block": block, "out_dtype": out_dtype}
        return portable(triton.block_scaled_mm, a, b, a_scale, b_scale, **options)
    return _block_scaled_mm


def block_scaled_mm_supports(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (BLOCK, BLOCK),
    out_dtype: torch.dtype,
) -> str | None:
    if tuple(block) != (BLOCK, BLOCK):
        return f"cuBLAS takes blocks of {BLOCK} x {BLOCK}"
    return blocks_refused(a, b, out_dtype)


def blocks_refused(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> str | None:
    """Why cuBLAS cannot multiply 8-bit floats with a scale for each block."""
    if not a.dtype == b.dtype == torch.float8_e4m3fn:
        return "cuBLAS takes scales of blocks with float8_e4m3fn"
    if min(b.shape) == 0 or b.shape[0] % _UNIT or b.shape[1] % BLOCK:
        return f"cuBLAS takes weights of a multiple of {_UNIT} rows and {BLOCK} columns"
    return None if out_dtype == torch.bfloat16 else "only bfloat16 is no better than its sums"


def _block_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, **options: Any
) -> Tensor:
    return blocks_product(a, b, a_scale, b_scale)


def blocks_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """What ``block_scaled_mm`` does, in bfloat16."""
    rows, groups = a.shape[:-1].numel(), b.shape[1] // BLOCK
    codes, by_row = as_rows(a), a_scale.reshape(rows, groups)
    if rows % _ROWS:
        codes, by_row = _padded(codes, _ROWS), _padded(by_row, _ROWS)
    # Scales of rows lie column by column, those of blocks row by row.
    by_row = together(by_row.t()).view(-1).view(groups, -1).t()
    by_block = _padded(b_scale.t(), _STEP).t() if groups % _STEP else b_scale
    by_block = together(by_block).view(-1).view(b_scale.shape[0], -1).t()
    kinds = functional.ScalingType
    out = functional.scaled_mm(
        codes,
        aligned(b).t(),
        by_row,
        kinds.BlockWise1x128,
        by_block,
        kinds.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return out[:rows].view(*a.shape[:-1], b.shape[0])


def _padded(x: Tensor, step: int) -> Tensor:
    """Rows up to a multiple, the last ones of 0."""
    whole = x.new_zeros((ceil_div(x.shape[0], step) * step, x.shape[1]))
    whole[: x.shape[0]].copy_(x)
    return whole
