"""Stores into a paged cache: a program is some rows, each a head of a token."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.kernels.quant import encoded
from hal_triton.launch import launcher


@triton.jit
def _store(
    x,
    cache,
    scale,
    number,
    token,
    head,
    block,
    place,
    stored,
    width,
    x_token,
    x_head,
    x_column,
    cache_block,
    cache_slot,
    cache_head,
    cache_column,
    scale_stride,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Rows, each of a token and a head, into a place of a block, where they are to be stored."""
    column = tl.arange(0, BLOCK)[None, :].to(tl.int64)
    mask = stored[:, None] & (column < width // UNIT * UNIT)
    at = token * (x_token // UNIT * UNIT) + head * (x_head // UNIT * UNIT)
    value = tl.load(x + at[:, None] + column * x_column, mask)
    if cache.dtype.element_ty != x.dtype.element_ty:
        factor = token.to(tl.float32) * 0 + number
        if scale is not None:
            factor = tl.load(scale + head * scale_stride, stored, 1.0)
        value = encoded(
            value.to(tl.float32), factor[:, None], cache.dtype.element_ty, LARGEST, False
        )
    to = block * (cache_block // UNIT * UNIT) + place * (cache_slot // UNIT * UNIT)
    to += head * (cache_head // UNIT * UNIT)
    tl.store(cache + to[:, None] + column * cache_column, value, mask)


@launcher
def store(
    k_cache,
    v_cache,
    k,
    v,
    k_scale,
    v_scale,
    slots,
    rows: tl.int32,
    heads: tl.int32,
    size: tl.int32,
    k_width: tl.int32,
    v_width: tl.int32,
    k_token: tl.int64,
    k_head: tl.int64,
    k_column: tl.int64,
    v_token: tl.int64,
    v_head: tl.int64,
    v_column: tl.int64,
    k_cache_block: tl.int64,
    k_cache_slot: tl.int64,
    k_cache_head: tl.int64,
    k_cache_column: tl.int64,
    v_cache_block: tl.int64,
    v_cache_slot: tl.int64,
    v_cache_head: tl.int64,
    v_cache_column: tl.int64,
    slot_stride: tl.int64,
    k_scale_stride: tl.int64,
    v_scale_stride: tl.int64,
    k_number: tl.float32,
    v_number: tl.float32,
    SIDE_BY_SIDE: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    if SIDE_BY_SIDE:
        k_column, v_column = 1, 1
        k_cache_column, v_cache_column = 1, 1
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    slot = tl.load(slots + token * slot_stride, row < rows, -1).to(tl.int64)
    stored = slot >= 0
    # A cache has less than 2**31 slots, and what is negative may lie below -2**31.
    slot = tl.where(stored, slot, 0).to(tl.int32)
    block, place = (slot // size).to(tl.int64), (slot % size).to(tl.int64)
    _store(
        k, k_cache, k_scale, k_number, token, head, block, place, stored, k_width,
        k_token, k_head, k_column, k_cache_block, k_cache_slot, k_cache_head, k_cache_column,
        k_scale_stride, LARGEST, BLOCK, UNIT,
    )  # fmt: skip
    _store(
        v, v_cache, v_scale, v_number, token, head, block, place, stored, v_width,
        v_token, v_head, v_column, v_cache_block, v_cache_slot, v_cache_head, v_cache_column,
        v_scale_stride, LARGEST, BLOCK, UNIT,
    )  # fmt: skip
