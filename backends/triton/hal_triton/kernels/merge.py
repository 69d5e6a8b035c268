"""The sum of two attentions: a program is some rows, each a head of a token."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def _side(out, lse, at, lse_at, valid, mask):
    """Values and log-sum of a side; without keys those are 0 and -inf."""
    total = tl.load(lse + lse_at, valid, 0.0)
    # Some kernels say +inf for a side without keys.
    total = tl.where(total == float("inf"), float("-inf"), total)
    value = tl.load(out + at, mask, 0.0).to(tl.float32)
    return tl.where(total[:, None] == float("-inf"), 0.0, value), total


@launcher
def merge(
    out,
    lse,
    out_a,
    lse_a,
    out_b,
    lse_b,
    rows: tl.int32,
    heads: tl.int32,
    columns: tl.int32,
    a_token: tl.int64,
    a_head: tl.int64,
    b_token: tl.int64,
    b_head: tl.int64,
    lse_a_token: tl.int64,
    lse_a_head: tl.int64,
    lse_b_token: tl.int64,
    lse_b_head: tl.int64,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    valid = row < rows
    mask = valid[:, None] & (column < columns)
    token, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    at = token * (a_token // UNIT * UNIT) + head * (a_head // UNIT * UNIT)
    a, total_a = _side(
        out_a, lse_a, at[:, None] + column, token * lse_a_token + head * lse_a_head, valid, mask
    )
    at = token * (b_token // UNIT * UNIT) + head * (b_head // UNIT * UNIT)
    b, total_b = _side(
        out_b, lse_b, at[:, None] + column, token * lse_b_token + head * lse_b_head, valid, mask
    )
    # A comparison with NaN is false, and then both weights are NaN.
    most = tl.where(total_a > total_b, total_a, total_b)
    shift = tl.where(most == float("-inf"), 0.0, most)
    weight_a, weight_b = tl.exp(total_a - shift), tl.exp(total_b - shift)
    both = weight_a + weight_b
    # Divided before they are multiplied, so that no product overflows.
    share = tl.where(both == 0, 1.0, both)
    value = (weight_a / share)[:, None] * a + (weight_b / share)[:, None] * b
    where = out + row.to(tl.int64)[:, None] * columns + column
    tl.store(where, value.to(out.dtype.element_ty), mask)
    if tl.program_id(1) == 0:
        tl.store(lse + row, shift + tl.log(both), valid)
