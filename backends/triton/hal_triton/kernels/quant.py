"""Quantisation to 8 bits, alone or of what a program has just computed."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.activation import silu
from hal_triton.kernels.norm import over_root, scaled
from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def largest_magnitude(x, AXIS: tl.constexpr):
    """Over an axis of float32; as integers, magnitudes keep their order and NaN is the largest."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, AXIS).to(tl.float32, bitcast=True)


@triton.jit
def exponent_above(scale):
    """The biased exponent of the least power of two not below; 255 for an infinity and NaN."""
    bits = scale.to(tl.int32, bitcast=True)
    exponent = ((bits >> 23) & 255) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    return tl.minimum(exponent, 255)


@triton.jit
def scale_of(peak, LARGEST: tl.constexpr, UE8M0: tl.constexpr):
    scale = tl.div_rn(tl.where(peak < 1e-10, 1e-10, peak), tl.full(peak.shape, LARGEST, tl.float32))
    if UE8M0:
        exponent = exponent_above(scale)
        power = (exponent << 23).to(tl.float32, bitcast=True)
        scale = tl.where(exponent == 255, scale, power)
    return scale


@triton.jit
def encoded(x, scale, KIND: tl.constexpr, LARGEST: tl.constexpr, FITS: tl.constexpr):
    """X / scale clamped and rounded half to even; NaN is 0 as an integer.

    FITS says that the scale was made so that no x exceeds it times the largest code, but for what
    rounding takes back: there is nothing to clamp.
    """
    # The quotient by a reciprocal, then what is left of x by it again: rounded as by one division,
    # whose own code is many times longer where x is 0.
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    value = x * inverse
    if not FITS:
        # Of an infinite quotient nothing that is a number would be left.
        value = tl.clamp(value, -2 * LARGEST, 2 * LARGEST, tl.PropagateNan.ALL)
    minus = tl.where(scale < float("inf"), -scale, 0.0)
    value = tl.fma(tl.fma(value, minus, x), inverse, value)
    if not FITS:
        value = tl.clamp(value, -LARGEST, LARGEST, tl.PropagateNan.ALL)
    if tl.int8 == KIND:
        value = tl.where(value == value, value, 0.0)
        # Past 1.5 * 2**23 float32 has no fractions left, so that the sum is rounded.
        value = (value + 12582912.0) - 12582912.0
    return value.to(KIND)


@launcher
def quantise(
    q,
    scale,
    x,
    weight,
    residual,
    total,
    given,
    ids,
    columns: tl.int32,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    tiles: tl.int32,
    inner: tl.int32,
    room: tl.int32,
    scale_matrix: tl.int64,
    scale_row: tl.int64,
    scale_stride: tl.int64,
    experts: tl.int32,
    eps: tl.float32,
    OF: tl.constexpr,
    LARGEST: tl.constexpr,
    UE8M0: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Codes of "x", of its "silu_and_mul" or "rms_norm", and the scale, or a copy of the given one.

    The rows of x are matrices of inner rows, of tiles of ROWS, with scales for room rows, the last
    of which are padding. With ids, a row is not there whose id is that of no expert. The norm is of
    whole rows, with residual and total as in ``rms_norm``.
    """
    await_previous(PDL)
    KIND: tl.constexpr = q.dtype.element_ty
    columns = columns // UNIT * UNIT
    matrix, tile = tl.program_id(0) * 0, tl.program_id(0)
    if tiles < tl.num_programs(0):
        matrix, tile = tile // tiles, tile % tiles
    within = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    row = (matrix * inner + within).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    column = first + tl.arange(0, BLOCK)[None, :]
    there = within < inner
    if ids is not None:
        expert = tl.load(ids + row, there, -1)
        there &= (expert >= 0) & (expert < experts)
    mask = there & (column < columns)
    at = x + row * (x_stride // UNIT * UNIT) + column
    value = tl.load(at, mask, 0.0).to(tl.float32)
    if OF == "silu_and_mul":
        value = silu(value) * tl.load(at + columns, mask, 0.0).to(tl.float32)
    if residual is not None:
        by = residual + row * (residual_stride // UNIT * UNIT) + column
        value += tl.load(by, mask, 0.0).to(tl.float32)
        tl.store(total + row * columns + column, value.to(total.dtype.element_ty), mask)
    if OF == "rms_norm":
        value = scaled(over_root(value, columns, eps), weight, column, column < columns, 0)
        # Past the columns of a row that is NaN there is NaN, which would be the peak of a group.
        value = tl.where(mask, value, 0.0)
    where = q + row * columns + column
    if given is not None:
        made = tl.load(given)
        tl.store(where, encoded(value, made, KIND, LARGEST, False), mask)
        if tl.program_id(0) + tl.program_id(1) == 0:
            tl.store(scale, made)
    else:
        GROUPS: tl.constexpr = BLOCK // GROUP
        grouped = tl.reshape(value, (ROWS, GROUPS, GROUP))
        made = scale_of(largest_magnitude(grouped, 2), LARGEST, UE8M0)
        codes = encoded(grouped, made[:, :, None], KIND, LARGEST, True)
        tl.store(where, tl.reshape(codes, (ROWS, BLOCK)), mask)
        group = first // GROUP + tl.arange(0, GROUPS)[None, :]
        scaled_to = tl.maximum(columns, 1)  # A row without columns has a scale too.
        kept = there & (group * GROUP < scaled_to)
        to = scale + matrix.to(tl.int64) * scale_matrix + within.to(tl.int64) * scale_row
        if scale.dtype.element_ty == tl.int32:
            exponent = tl.where(kept, exponent_above(made), 0)
            # A scale for a whole row is alone in its word.
            BYTES: tl.constexpr = 4 if GROUPS >= 4 else GROUPS
            fours = tl.reshape(exponent, (ROWS, GROUPS // BYTES, BYTES))
            word = tl.sum(fours << (tl.arange(0, BYTES) * 8)[None, None, :], 2)
            place = first // (GROUP * 4) + tl.arange(0, GROUPS // BYTES)[None, :]
            inside = (within < room) & (place * (GROUP * 4) < scaled_to)
            tl.store(to + place.to(tl.int64) * scale_stride, word, inside)
        else:
            inside = (within < room) & (group * GROUP < scaled_to)
            tl.store(to + group.to(tl.int64) * scale_stride, tl.where(kept, made, 0.0), inside)


@launcher
def quantise_long(
    q,
    scale,
    x,
    columns: tl.int32,
    x_stride: tl.int64,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """A row that registers do not hold, with one scale."""
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0).to(tl.int64)
    at = x + row * (x_stride // UNIT * UNIT)
    place = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        value = tl.load(at + start + place, start + place < columns, 0.0)
        bits = value.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        peaks = tl.maximum(peaks, bits)
    made = scale_of(tl.max(peaks, 0, keep_dims=True).to(tl.float32, bitcast=True), LARGEST, False)
    tl.store(scale + row + tl.arange(0, 1), made)
    for start in range(0, columns, BLOCK):
        column = start + place
        value = tl.load(at + column, column < columns, 0.0).to(tl.float32)
        codes = encoded(value, made, q.dtype.element_ty, LARGEST, True)
        tl.store(q + row * columns + column, codes, column < columns)


@launcher
def find_peaks(
    peaks,
    x,
    count: tl.int64,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """The largest magnitude of every so-manieth block; a peak for each program."""
    await_previous(PDL)
    count = count // UNIT * UNIT
    place = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.int32)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, count, tl.num_programs(0).to(tl.int64) * BLOCK):
        value = tl.load(x + start + place, start + place < count, 0.0).to(tl.float32)
        largest = tl.maximum(largest, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(peaks + tl.program_id(0), tl.max(largest, 0).to(tl.float32, bitcast=True))


@launcher
def quantise_all(
    q,
    scale,
    x,
    peaks,
    count: tl.int64,
    peaks_count: tl.int32,
    GIVEN: tl.constexpr,
    LARGEST: tl.constexpr,
    PEAKS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """With the scale of all peaks, or with that which is given in their place."""
    await_previous(PDL)
    count = count // UNIT * UNIT
    if GIVEN:
        made = tl.load(peaks + tl.arange(0, 1))
    else:
        some = tl.arange(0, PEAKS)
        peak = largest_magnitude(tl.load(peaks + some, some < peaks_count, 0.0)[None, :], 1)
        made = scale_of(peak, LARGEST, False)
    if tl.program_id(0) == 0:
        tl.store(scale + tl.arange(0, 1), made)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, place < count, 0.0).to(tl.float32)
    codes = encoded(value, made, q.dtype.element_ty, LARGEST, not GIVEN)
    tl.store(q + place, codes, place < count)
