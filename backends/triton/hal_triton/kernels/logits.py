"""Softmax with temperatures, and the mask of allowed tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.parameters import float_of
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher

LAST: tl.constexpr = tl.constexpr(0x7FFFFFFF)
"""A column past all others."""


@triton.jit
def peak_of(x, AXIS: tl.constexpr):
    """The largest along an axis, NaN aside, and NaN where there is one, else 0."""
    known = x == x
    peak = tl.max(tl.where(known, x, float("-inf")), AXIS)
    return peak, tl.sum(tl.where(known, 0.0, x), AXIS)


@triton.jit
def powers(x, peak, temperature):
    """exp((x - peak) / temperature); shifted first, so that the largest exponent is 0."""
    temperature = tl.where(temperature <= 0, 1.0, temperature)
    power = tl.exp(tl.div_rn(x - peak, tl.zeros_like(x) + temperature))
    return tl.where(x == float("-inf"), 0.0, power)


@triton.jit
def shares(x, column, peak, first, total, temperature, spoilt):
    """Probabilities, where the powers have a total and the peak is first at a column."""
    greedy = temperature <= 0
    warm = powers(x, peak, temperature) / tl.where(total == 0, 1.0, total)
    one = tl.where(x == float("-inf"), 0.0, (column == first).to(tl.float32))
    # The total of powers of an infinity is NaN.
    return tl.where(greedy, one, warm) + tl.where(greedy, spoilt, total * 0)


@launcher
def softmax(
    out,
    x,
    temperatures,
    rows: tl.int32,
    columns: tl.int32,
    stride: tl.int64,
    step: tl.int32,
    number: tl.int32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (column < columns)
    at = row.to(tl.int64)[:, None]
    value = tl.load(x + at * (stride // UNIT * UNIT) + column, mask, float("-inf")).to(tl.float32)
    temperature = float_of(temperatures, tl.minimum(row, rows - 1), step, number)[:, None]
    peak, spoilt = peak_of(value, 1)
    peak = peak[:, None]
    first = tl.min(tl.where(value == peak, column, LAST), 1)
    total = tl.sum(powers(value, peak, temperature), 1)
    result = shares(
        value, column, peak, first[:, None], total[:, None], temperature, spoilt[:, None]
    )
    tl.store(out + at * columns + column, result, mask)


@triton.jit
def _part(x, columns, stride, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """A program's part of a row, and its columns."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = x + tl.program_id(0).to(tl.int64) * (stride // UNIT * UNIT) + column
    inside = column < columns // UNIT * UNIT
    return tl.load(at, inside, float("-inf")).to(tl.float32), column


@launcher
def softmax_parts(
    parts,
    x,
    temperatures,
    columns: tl.int32,
    stride: tl.int64,
    step: tl.int32,
    number: tl.int32,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of each part of a row its peak, or NaN, the total of its powers, and where the peak is."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    value, column = _part(x, columns, stride, BLOCK, UNIT)
    peak, spoilt = peak_of(value, 0)
    to = parts + (row * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(to, peak + spoilt)
    total = tl.sum(powers(value, peak, float_of(temperatures, row, step, number)), 0)
    tl.store(to + 1, total)
    first = tl.min(tl.where(value == peak, column, LAST), 0)
    tl.store(to + 2, first.to(tl.float32, bitcast=True))


@launcher
def softmax_whole(
    out,
    parts,
    x,
    temperatures,
    columns: tl.int32,
    stride: tl.int64,
    step: tl.int32,
    number: tl.int32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Probabilities of a part of a row, from what all parts of the row say."""
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    temperature = float_of(temperatures, row, step, number)
    part = tl.arange(0, PARTS)
    of = parts + (row * tl.num_programs(1) + part) * 3
    there = part < tl.num_programs(1)
    peaks = tl.load(of, there, float("-inf"))
    firsts = tl.load(of + 2, there, 0.0).to(tl.int32, bitcast=True)
    peak, spoilt = peak_of(peaks, 0)
    total = tl.sum(tl.load(of + 1, there, 0.0) * powers(peaks, peak, temperature), 0)
    first = tl.min(tl.where(peaks == peak, firsts, LAST), 0)
    value, column = _part(x, columns, stride, BLOCK, UNIT)
    result = shares(value, column, peak, first, total, temperature, spoilt)
    columns = columns // UNIT * UNIT
    tl.store(out + row * columns + column, result, column < columns)


@launcher
def forbid(
    logits,
    mask,
    indices,
    rows: tl.int32,
    columns: tl.int32,
    words: tl.int32,
    row_stride: tl.int64,
    column_stride: tl.int64,
    mask_stride: tl.int64,
    SIDE_BY_SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write -inf where a bit is 0, and nothing else."""
    await_previous(PDL)
    if SIDE_BY_SIDE:
        column_stride = 1
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    word = column // 32
    of = mask + row.to(tl.int64) * mask_stride + word
    bits = tl.load(of, (row < rows) & (word < words), 0)
    blocked = (row < rows) & (column < columns) & (((bits >> (column % 32)) & 1) == 0)
    row = row.to(tl.int64)
    if indices is not None:
        row = tl.load(indices + row, row < rows, 0).to(tl.int64)
    to = logits + row * row_stride + column.to(tl.int64) * column_stride
    value = tl.full((ROWS, BLOCK), float("-inf"), tl.float32).to(logits.dtype.element_ty)
    tl.store(to, value, blocked)
