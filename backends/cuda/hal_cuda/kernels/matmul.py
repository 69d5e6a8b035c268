"""What follows an exact product of integers."""

from __future__ import annotations

import triton.language as tl

from hal_triton.launch import launcher
from hal_triton.layout import tile


@launcher
def _scale(
    out,
    sums,
    a_scale,
    b_scale,
    bias,
    rows: tl.int32,
    columns: tl.int32,
    a_step: tl.int64,
    b_step: tl.int64,
    bias_step: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = columns // 16 * 16  # As cuBLAS takes them, so that 16 bytes are loaded at once.
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    at = row.to(tl.int64) * columns + column
    total = tl.load(sums + at, mask, 0).to(tl.float32)
    total *= tl.load(a_scale + row.to(tl.int64) * a_step, row < rows, 0.0)
    total *= tl.load(b_scale + column.to(tl.int64) * b_step, column < columns, 0.0)
    if bias is not None:
        total += tl.load(bias + column.to(tl.int64) * bias_step, column < columns, 0.0).to(
            tl.float32
        )
    tl.store(out + at, total.to(out.dtype.element_ty), mask)


def scale_sums(out, sums, a_scale, b_scale, bias) -> None:
    """Write ``out = sums * a_scale * b_scale + bias``, in float32 and rounded once.

    Args:
        out: [rows, columns], floating point.
        sums: [rows or more, columns], int32, contiguous.
        a_scale: [rows or 1, 1], float32.
        b_scale: [1, columns or 1], float32.
        bias: [columns], floating point, or None.
    """
    rows, columns = out.shape
    grid, shape, num_warps = tile("scale", out.device, rows, columns)
    steps = (
        a_scale.stride(0) if a_scale.shape[0] > 1 else 0,
        b_scale.stride(1) if b_scale.shape[1] > 1 else 0,
        0 if bias is None else bias.stride(0),
    )
    _scale(grid, (out, sums, a_scale, b_scale, bias), (rows, columns, *steps), shape, num_warps)
