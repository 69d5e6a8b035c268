"""Routing to experts: a program ranks those of some tokens, and has all of a token's at once."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.pdl import await_previous
from hal_triton.launch import launcher

# Experts are compared by int32 keys. One that is taken gets LOWEST plus its rank for a key, one
# that is not there ABSENT: both are below the keys of all numbers.
LOWEST = tl.constexpr(-(2**31))
ABSENT = tl.constexpr(-(2**31) + 2**20)
NAN = tl.constexpr(2**31 - 1)


@triton.jit
def key_of(x):
    """In the order of float32 numbers, with -0 below 0 and NaN anywhere."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_or_nan(x):
    """With NaN, which any calculation may make of either sign, above all numbers."""
    return tl.where(x == x, key_of(x), NAN)


@triton.jit
def take(key, column, k, UNIQUE: tl.constexpr, BLOCK: tl.constexpr):
    """Take the k largest of each row [ROWS, BLOCK], one after the other, of equal ones the first.

    UNIQUE spares the search for the first, and takes all that are equal at once.
    """
    for rank in range(k):
        taken = key == tl.max(key, 1)[:, None]
        if not UNIQUE:
            taken = column == tl.min(tl.where(taken, column, BLOCK), 1)[:, None]
        key = tl.where(taken, LOWEST + rank, key)
    return key


@triton.jit
def take_scores(key, column, valid, k, BLOCK: tl.constexpr):
    """The same of scores, of which two are seldom equal; valid are the rows to look at."""
    quick = take(key, column, k, True, BLOCK)
    count = tl.sum((quick < LOWEST + k).to(tl.int32), 1)[:, None]
    most = tl.max(tl.max(tl.where(valid, count, k), 1), 0)
    # Equal ones were all taken, and too many in the end, unless there are no more than k.
    if (k == BLOCK) | (most > k):
        quick = take(key, column, k, False, BLOCK)
    return quick


@triton.jit
def capped(x, cap):
    """The cap times tanh(x / cap), near 0 by Cephes' polynomial, where exponentials cancel."""
    u = x / cap
    square = u * u
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    far = cap - 2 * cap / (tl.exp(2 * tl.abs(u)) + 1)
    return tl.where(tl.abs(u) < 0.625, x + x * (square * p), tl.where(x < 0, -far, far))


@triton.jit
def sigmoid(x):
    """Rounded once near 1, and not cut off near 0."""
    e = tl.exp(-tl.abs(x))
    low = e / (1 + e)
    return tl.where(x >= 0, 1 - low, low)


@triton.jit
def exponentials(logit):
    """Those of the softmax of each row [ROWS, BLOCK], and whether it has none.

    That is so with NaN and with +inf; a row of nothing but -inf has zeros.
    """
    logit = tl.where(logit < float("inf"), logit, float("inf"))
    # Integers have a maximum in one instruction where float32 has none.
    peak = number_of(tl.max(key_of(logit), 1))[:, None]
    e = tl.exp(logit - tl.where(tl.abs(peak) < float("inf"), peak, 0.0))
    return e, peak == float("inf")


@triton.jit
def some(total):
    """A sum of weights to divide by, which are all 0 if it is."""
    return tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
def sum_of_taken(x, key, k):
    return tl.sum(tl.where(key < LOWEST + k, x, 0.0), 1)


@triton.jit
def store_taken(weights, ids, weight, key, expert, row, there, k, width):
    """The k that are taken, in the first of a row's width places."""
    at, rank = row.to(tl.int64) * width, key & 0xFFFF
    # Flat, since Triton lays out scattered stores of two dimensions the other way round.
    mask = tl.ravel(there & (key < LOWEST + k))
    tl.store(tl.ravel(weights + at + rank), tl.ravel(weight), mask)
    tl.store(tl.ravel(ids + at + rank), tl.ravel(tl.broadcast_to(expert, key.shape)), mask)


@launcher
def topk_softmax(
    weights,
    ids,
    gating,
    bias,
    rows: tl.int32,
    experts: tl.int32,
    k: tl.int32,
    stride: tl.int64,
    bias_stride: tl.int64,
    softcap: tl.float32,
    CAPPED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    there = (row < rows) & (column < experts)
    at = gating + row.to(tl.int64) * stride + column
    logit = tl.load(at, there, float("-inf")).to(tl.float32)
    if CAPPED:
        logit = tl.where(there, capped(logit, softcap), float("-inf"))
    if bias is not None:
        logit += tl.load(bias + column * bias_stride, column < experts, 0.0).to(tl.float32)
    e, broken = exponentials(logit)
    # Of a logit in 16 bits, at least 13 of a float32's are 0 and have room for the index. Logits
    # are in the order of their exponentials, but for those that are 0. Adding 0 makes 0 of -0.
    PACKED: tl.constexpr = (
        gating.dtype.element_ty.primitive_bitwidth == 16 and not CAPPED and bias is None
    )
    if PACKED:
        key = key_of(tl.where(e > 0, logit + 0.0, float("-inf")))
        key = tl.where(there, (key & -BLOCK) | (BLOCK - 1 - column), ABSENT)
        key = take(key, column, k, True, BLOCK)
    else:
        key = take_scores(tl.where(there, key_of(e), ABSENT), column, row < rows, k, BLOCK)
    # The sum is 0 or at least 1, since the largest is taken.
    inverse = 1 / some(sum_of_taken(e, key, k) if RENORMALIZE else tl.sum(e, 1))
    weight = e * tl.where(broken, float("nan"), inverse)
    key = tl.where(broken, LOWEST + column, key)
    store_taken(weights, ids, weight, key, column, row, there, k, k)


@launcher
def topk_scores(
    weights,
    ids,
    gating,
    bias,
    rows: tl.int32,
    experts: tl.int32,
    k: tl.int32,
    width: tl.int32,
    num_groups: tl.int32,
    topk_groups: tl.int32,
    stride: tl.int64,
    bias_stride: tl.int64,
    factor: tl.float32,
    shared_weight: tl.float32,
    SOFTMAX: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BEST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    """The k best of the best groups, and shared experts in the rest of the width."""
    await_previous(PDL)
    BLOCK: tl.constexpr = GROUPS * SIZE
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    # Groups of any number and size, in places for powers of two.
    group, member, group_size = column // SIZE, column % SIZE, experts // num_groups
    expert = group * group_size + member
    present = (group < num_groups) & (member < group_size)
    there = (row < rows) & present
    at = gating + row.to(tl.int64) * stride + expert
    logit = tl.load(at, there, float("-inf")).to(tl.float32)
    if SOFTMAX:
        e, broken = exponentials(logit)
        score = e * tl.where(broken, float("nan"), 1 / some(tl.sum(e, 1)))
    else:
        score = sigmoid(logit)
    choice = score
    if bias is not None:
        choice += tl.load(bias + expert * bias_stride, present, 0.0).to(tl.float32)
    key = tl.where(there, key_or_nan(choice), ABSENT)
    broken = tl.max(key, 1)[:, None] == NAN
    if GROUPS > 1:
        kept = best_groups(key, num_groups, topk_groups, BEST, ROWS, GROUPS, SIZE)
        key = tl.where(kept, key, ABSENT)
    key = take_scores(key, column, row < rows, k, BLOCK)
    weight = score
    if RENORMALIZE:
        weight = score / some(sum_of_taken(score, key, k))
    weight *= tl.where(broken, float("nan"), factor)
    key = tl.where(broken, LOWEST + expert, key)
    store_taken(weights, ids, weight, key, expert, row, there, k, width)
    for first in range(0, width - k, BLOCK):
        shared = first + column
        mask = (row < rows) & (shared < width - k)
        to = row.to(tl.int64) * width + k + shared
        tl.store(weights + to, tl.where(broken & mask, float("nan"), shared_weight), mask)
        tl.store(ids + to, tl.broadcast_to(experts + shared, mask.shape), mask)


@triton.jit
def best_groups(
    key,
    num_groups,
    topk_groups,
    BEST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Which of [ROWS, GROUPS * SIZE] are in the best groups, by the sum of the BEST of each."""
    grouped = tl.reshape(key, (ROWS, GROUPS, SIZE))
    best = tl.max(grouped, 2)
    if BEST == 2:
        member = tl.arange(0, SIZE)[None, None, :]
        first = tl.min(tl.where(grouped == best[:, :, None], member, SIZE), 2)
        second = tl.max(tl.where(member == first[:, :, None], LOWEST, grouped), 2)
        best = key_or_nan(number_of(best) + number_of(second))
    group = tl.arange(0, GROUPS)[None, :]
    best = take(tl.where(group < num_groups, best, ABSENT), group, topk_groups, False, GROUPS)
    kept = (best < LOWEST + topk_groups)[:, :, None]
    return tl.reshape(tl.broadcast_to(kept, (ROWS, GROUPS, SIZE)), (ROWS, GROUPS * SIZE))


@launcher
def sum_experts(
    out,
    x,
    rows: tl.int32,
    columns: tl.int32,
    k: tl.int32,
    row_stride: tl.int64,
    expert_stride: tl.int64,
    scale: tl.float32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    columns = columns // UNIT * UNIT
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    at = x + row * (row_stride // UNIT * UNIT) + column
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, k, 4):
        # Several, so that their loads are under way together.
        for i in tl.static_range(4):
            expert = tl.full((1, 1), first + i, tl.int64)
            one = at + expert * (expert_stride // UNIT * UNIT)
            total += tl.load(one, mask & (expert < k), 0.0).to(tl.float32)
    tl.store(out + row * columns + column, (total * scale).to(out.dtype.element_ty), mask)
