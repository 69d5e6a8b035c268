"""Rotary embeddings, with or without a norm before them: a program is some heads of some tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher


@triton.jit
def _turned(
    out,
    x,
    weight,
    cos,
    sin,
    present,
    first,
    heads,
    head_dim,
    half,
    out_stride,
    x_stride,
    eps,
    IS_NEOX: tl.constexpr,
    COPIES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Heads from the first on of the tokens that x and out [TOKENS, 1, 1] are at, where present."""
    head = first + tl.arange(0, HEADS)[None, :, None]
    pair = tl.arange(0, HALF)[None, None, :]
    here = present & (head < heads)
    mask = here & (pair < half)
    x += head.to(tl.int64) * x_stride
    out += head.to(tl.int64) * out_stride
    if IS_NEOX:
        one, other = pair, pair + half
    else:
        one, other = 2 * pair, 2 * pair + 1
    a = tl.load(x + one, mask, 0.0).to(tl.float32)
    b = tl.load(x + other, mask, 0.0).to(tl.float32)
    if weight is not None:
        squares = tl.sum(tl.fma(a, a, b * b), 2)
    if REST > 0:
        column = 2 * half + tl.arange(0, REST)[None, None, :]
        inside = here & (column < head_dim)
        rest = tl.load(x + column, inside, 0.0)
        if weight is not None:
            value = rest.to(tl.float32)
            # Spelled as well: a product that is fused into the sum with another thread's would be
            # rounded in one of the two threads only.
            squares += tl.sum(tl.fma(value, value, 0.0), 2)
    kind = out.dtype.element_ty
    if weight is not None:
        scale = tl.rsqrt(squares / head_dim + eps)[:, :, None]
        a = a * scale * tl.load(weight + one, pair < half, 0.0).to(tl.float32)
        b = b * scale * tl.load(weight + other, pair < half, 0.0).to(tl.float32)
        if REST > 0:
            by = tl.load(weight + column, column < head_dim, 0.0).to(tl.float32)
            tl.store(out + column, (rest.to(tl.float32) * scale * by).to(kind), inside)
    elif COPIES and REST > 0:
        tl.store(out + column, rest, inside)
    # Spelled, so that no compiler chooses which product is not rounded, by the tile or alignment.
    tl.store(out + one, tl.fma(-b, sin, a * cos).to(kind), mask)
    tl.store(out + other, tl.fma(a, sin, b * cos).to(kind), mask)


@launcher
def rotate(
    q_out,
    q,
    k_out,
    k,
    cos_sin_cache,
    positions,
    offsets,
    q_weight,
    k_weight,
    tokens: tl.int32,
    q_heads: tl.int32,
    k_heads: tl.int32,
    head_dim: tl.int32,
    half: tl.int32,
    q_out_token: tl.int64,
    q_out_head: tl.int64,
    q_token: tl.int64,
    q_head: tl.int64,
    k_out_token: tl.int64,
    k_out_head: tl.int64,
    k_token: tl.int64,
    k_head: tl.int64,
    cache_stride: tl.int64,
    axis_stride: tl.int64,
    section_0: tl.int32,
    section_1: tl.int32,
    eps: tl.float32,
    IS_NEOX: tl.constexpr,
    COPIES: tl.constexpr,
    SECTIONS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Heads of queries and, past those, of keys.

    With SECTIONS, pairs below section_0 turn by positions[0], those below section_1 by
    positions[1], and the rest by positions[2].
    """
    await_previous(PDL)
    head_dim = head_dim // UNIT * UNIT
    half = half // UNIT * UNIT
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None, None]
    present = token < tokens
    token = token.to(tl.int64)
    pair = tl.arange(0, HALF)[None, None, :]
    if SECTIONS:
        axis = (pair >= section_0).to(tl.int64) + (pair >= section_1).to(tl.int64)
        position = tl.load(positions + axis * axis_stride + token, present, 0).to(tl.int64)
    else:
        position = tl.load(positions + token, present, 0).to(tl.int64)
        if offsets is not None:
            position += tl.load(offsets + token, present, 0).to(tl.int64)
    row = cos_sin_cache + position * (cache_stride // UNIT * UNIT) + pair
    cos = tl.load(row, present & (pair < half), 0.0).to(tl.float32)
    sin = tl.load(row + half, present & (pair < half), 0.0).to(tl.float32)
    q_blocks = tl.cdiv(q_heads, HEADS)
    block = tl.program_id(1)
    if block < q_blocks:
        _turned(
            q_out + token * (q_out_token // UNIT * UNIT),
            q + token * (q_token // UNIT * UNIT),
            q_weight,
            cos,
            sin,
            present,
            block * HEADS,
            q_heads,
            head_dim,
            half,
            q_out_head // UNIT * UNIT,
            q_head // UNIT * UNIT,
            eps,
            IS_NEOX,
            COPIES,
            HEADS,
            HALF,
            REST,
        )
    else:
        if k is not None:
            _turned(
                k_out + token * (k_out_token // UNIT * UNIT),
                k + token * (k_token // UNIT * UNIT),
                k_weight,
                cos,
                sin,
                present,
                (block - q_blocks) * HEADS,
                k_heads,
                head_dim,
                half,
                k_out_head // UNIT * UNIT,
                k_head // UNIT * UNIT,
                eps,
                IS_NEOX,
                COPIES,
                HEADS,
                HALF,
                REST,
            )
