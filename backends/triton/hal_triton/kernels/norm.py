"""Normalisations: a program has whole rows in registers, or goes over one long row in pieces."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def over_root(x, columns, eps):
    """X [ROWS, BLOCK], zero past the columns, over the root of each row's mean square."""
    return x * tl.rsqrt(tl.sum(x * x, 1) / columns + eps)[:, None]


@triton.jit
def scaled(x, weight, column, mask, OFFSET: tl.constexpr):
    """Times a weight [columns] that is stored less OFFSET, if there is one."""
    if weight is not None:
        x = x * (tl.load(weight + column, mask, 0.0).to(tl.float32) + OFFSET)
    return x


@launcher
def rms_norm(
    out,
    x,
    weight,
    residual,
    total,
    rows: tl.int32,
    columns: tl.int32,
    out_stride: tl.int64,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    total_stride: tl.int64,
    eps: tl.float32,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of x + residual, where there is one, which goes to total before it is normed."""
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    row = row.to(tl.int64)
    value = tl.load(x + row * (x_stride // UNIT * UNIT) + column, mask, 0.0).to(tl.float32)
    if residual is not None:
        where = residual + row * (residual_stride // UNIT * UNIT) + column
        value += tl.load(where, mask, 0.0).to(tl.float32)
        where = total + row * (total_stride // UNIT * UNIT) + column
        tl.store(where, value.to(total.dtype.element_ty), mask)
    normed = scaled(over_root(value, columns, eps), weight, column, column < columns, OFFSET)
    where = out + row * (out_stride // UNIT * UNIT) + column
    tl.store(where, normed.to(out.dtype.element_ty), mask)


@launcher
def long_rms_norm(
    out,
    x,
    weight,
    residual,
    total,
    rows: tl.int32,
    columns: tl.int32,
    out_stride: tl.int64,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    total_stride: tl.int64,
    eps: tl.float32,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The same of one row that registers do not hold; what is read twice is written last."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + place
        value = _long_value(x, residual, row, x_stride, residual_stride, column, columns)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    for start in range(0, columns, BLOCK):
        column = start + place
        mask = column < columns
        value = _long_value(x, residual, row, x_stride, residual_stride, column, columns)
        if residual is not None:
            where = total + row * total_stride + column
            tl.store(where, value.to(total.dtype.element_ty), mask)
        normed = scaled(value * scale, weight, column, mask, OFFSET)
        tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask)


@triton.jit
def _long_value(x, residual, row, x_stride, residual_stride, column, columns):
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, 0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + row * residual_stride + column, mask, 0.0).to(tl.float32)
    return value


@launcher
def layer_norm(
    out,
    x,
    weight,
    bias,
    rows: tl.int32,
    columns: tl.int32,
    x_stride: tl.int64,
    eps: tl.float32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    row = row.to(tl.int64)
    value = tl.load(x + row * (x_stride // UNIT * UNIT) + column, mask, 0.0).to(tl.float32)
    # A float32 mean is off by some 1e-7 of itself, which shows in rows far from zero: once more.
    for _ in tl.static_range(2):
        mean = tl.sum(value, 1) / columns
        value = tl.where(column < columns, value - mean[:, None], 0.0)
    normed = scaled(over_root(value, columns, eps), weight, column, column < columns, 0)
    if bias is not None:
        normed += tl.load(bias + column, column < columns, 0.0).to(tl.float32)
    tl.store(out + row * columns + column, normed.to(out.dtype.element_ty), mask)


@launcher
def long_layer_norm(
    out,
    x,
    weight,
    bias,
    rows: tl.int32,
    columns: tl.int32,
    x_stride: tl.int64,
    eps: tl.float32,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    mean = 0.0
    for _ in tl.static_range(2):
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, columns, BLOCK):
            sums += _centred(x + row * x_stride, mean, start + place, columns)
        mean += tl.sum(sums, 0) / columns
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        value = _centred(x + row * x_stride, mean, start + place, columns)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    for start in range(0, columns, BLOCK):
        column = start + place
        mask = column < columns
        value = _centred(x + row * x_stride, mean, column, columns)
        normed = scaled(value * scale, weight, column, mask, 0)
        if bias is not None:
            normed += tl.load(bias + column, mask, 0.0).to(tl.float32)
        tl.store(out + row * columns + column, normed.to(out.dtype.element_ty), mask)


@triton.jit
def _centred(x, mean, column, columns):
    mask = column < columns
    return tl.where(mask, tl.load(x + column, mask, 0.0).to(tl.float32) - mean, 0.0)
