"""Activations: a program is some rows by some columns of the result."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def gelu(x):
    return x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    # x / 2 * (1 + tanh(u)) is x * sigmoid(2 * u), which does not cancel.
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1 + tl.exp(-2 * u))


@triton.jit
def gated(gate, up, KIND: tl.constexpr):
    if KIND == "silu":
        return silu(gate) * up
    if KIND == "gelu":
        return gelu(gate) * up
    return gelu_tanh(gate) * up


@triton.jit
def plain(x, KIND: tl.constexpr):
    if KIND == "relu_squared":
        # A comparison with NaN is false, and would make it 0.
        x = tl.where(x <= 0, 0.0, x)
        return x * x
    return x / (1 + tl.exp(-1.702 * x))


@launcher
def gate_and_mul(
    out,
    x,
    rows: tl.int32,
    columns: tl.int32,
    x_stride: tl.int64,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Out [rows, columns] of x [rows, 2 * columns], whose halves are gate and up."""
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    row = row.to(tl.int64)
    start = x + row * (x_stride // UNIT * UNIT) + column
    gate = tl.load(start, mask).to(tl.float32)
    up = tl.load(start + columns, mask).to(tl.float32)
    tl.store(out + row * columns + column, gated(gate, up, KIND).to(out.dtype.element_ty), mask)


@launcher
def interleaved_and_mul(
    out,
    x,
    rows: tl.int32,
    columns: tl.int32,
    x_stride: tl.int64,
    alpha: tl.float32,
    limit: tl.float32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Out [rows, columns] of x [rows, 2 * columns], whose gates and ups alternate."""
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    pair = tl.program_id(1) * BLOCK * 2 + tl.arange(0, BLOCK * 2)[None, :]
    start = x + row.to(tl.int64) * (x_stride // UNIT * UNIT) + pair
    both = tl.load(start, (row < rows) & (pair < 2 * columns)).to(tl.float32)
    gate, up = tl.split(both.reshape(ROWS, BLOCK, 2))
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    result = (up + 1) * (gate / (1 + tl.exp(-alpha * gate)))
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    where = out + row.to(tl.int64) * columns + column
    tl.store(where, result.to(out.dtype.element_ty), mask)


@launcher
def elementwise(
    out,
    x,
    count: tl.int64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    value = plain(tl.load(x + place, mask).to(tl.float32), KIND)
    tl.store(out + place, value.to(out.dtype.element_ty), mask)


@launcher
def scale_and_add(
    out,
    x,
    y,
    count: tl.int64,
    scale: tl.float32,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    value = tl.load(x + place, mask).to(tl.float32) * scale + tl.load(y + place, mask).to(
        tl.float32
    )
    tl.store(out + place, value.to(out.dtype.element_ty), mask)
