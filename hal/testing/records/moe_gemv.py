"""Record of the product of a few rows with the experts that each is routed to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.factors import BF16, E4M3, E5M2, F16, F32, numbers
from hal.testing.records.gemv import Call, Factors, gate, tokens_of, turned, values_of


def routed(make: Factors, call: Call, *rows: int, topk: int = 2, weighted: bool = True) -> Sample:
    """A sample of a call with experts drawn for each token, one in five out of range."""
    (x, weight), kwargs = call
    ids = make.integers(-1, len(weight) + 1, *rows, topk).int()
    weights = torch.rand((*rows, topk), generator=make.generator) if weighted else None
    return Sample("", (x, weight, weights, ids), kwargs)


def moe_samples() -> Iterator[Sample]:
    make = Factors(22)
    for i, k in enumerate([1, 2, 7, 8, 31, 33, 128, 129, 257]):
        for dtype in (F32, F16, BF16):
            call = make.plain((3,), 4, 6 + 2 * i, k, dtype=dtype)
            yield named(f"k {k} {dtype}", routed(make, call, 3), swiglu=bool(i % 2))
        yield named(f"k {k}, 8 bits", routed(make, make.eight((3,), 4, 130 + i, k), 3))
    for groups, k in [(1, 2), (2, 64), (5, 130)]:
        for dtype in (F32, BF16):
            call = make.four((3,), 4, 10, k, groups=groups, dtype=dtype)
            yield named(f"4 bits, {groups} groups of {k} {dtype}", routed(make, call, 3))
    for rows in [(), (0,), (1,), (9,), (2, 3)]:
        for name, call in make.each(rows, 3, 8, 16):
            yield named(f"{name}, rows {rows}", routed(make, call, *rows), swiglu=True)
        for name, call in make.each((*rows, 2), 3, 8, 16):
            sample = routed(make, call, *rows, weighted=False)
            yield named(f"{name}, rows {rows}, one for each choice", sample)
    for experts, topk in [(1, 1), (8, 8), (3, 0), (2, 5)]:
        call = make.plain((4,), experts, 6, 12)
        yield named(f"{topk} of {experts}", routed(make, call, 4, topk=topk))
    call = make.plain((4,), 3, 0, 12)
    yield named("no results", routed(make, call, 4))
    yield named("no columns", routed(make, make.plain((4,), 3, 5, 0), 4))
    yield from moe_values(make)
    yield from moe_dtypes(Factors(23))


def named(name: str, sample: Sample, swiglu: bool = False) -> Sample:
    kwargs = sample.kwargs | ({"activation": "swiglu"} if swiglu else {})
    return Sample(name, sample.args, kwargs)


def moe_values(make: Factors) -> Iterator[Sample]:
    ids = torch.tensor([[0, 1], [-1, 3], [2, 2], [-(2**31), 2**31 - 1]])
    weights = torch.tensor([[1.0, -1.0], [math.nan, 2.0], [0.0, 1.0], [math.inf, math.nan]])
    for name, ((x, weight), kwargs) in make.each((4,), 3, 8, 16):
        for dtype in (torch.int32, torch.int64):
            args = (x, weight, weights, ids.to(dtype))
            yield Sample(f"{name}, out of range {dtype}", args, kwargs)
        broken = torch.where(torch.arange(4)[:, None] == 3, math.nan, x.float()).to(x.dtype)
        yield Sample(f"{name}, NaN", (broken, weight, None, ids), kwargs)
    x, weight = make.plain((4,), 3, 8, 16)[0]
    some = torch.where(torch.arange(3)[:, None, None] == 2, math.nan, weight)
    yield Sample("a broken expert", (x, some, None, ids))
    ones, halves = torch.ones(4, 1).to(BF16), torch.full((3, 32, 1), 1.5).to(BF16)
    # Half way from 1 to the next number of bfloat16, in which it would round to 1.
    between = torch.full((4, 2), 1 + 2.0**-8)
    yield Sample("weights that bfloat16 lacks", (ones, halves, between, ids.clamp(0, 2)))
    yield Sample("column by column", (turned(x), turned(weight), turned(weights), turned(ids)))
    yield Sample("expanded", (x[:1].expand(4, 16), weight[:1].expand(3, 8, 16), None, ids))


def moe_dtypes(make: Factors) -> Iterator[Sample]:
    call = make.plain((3,), 4, 6, 12, dtype=torch.float64)
    x, weight, weights, ids = routed(make, call, 3).args
    for dtype in (torch.float64, F32, F16, BF16):
        yield Sample(f"float64, weights {dtype}", (x, weight, weights.to(dtype), ids))
    yield named("float64, swiglu", routed(make, call, 3), swiglu=True)
    for dtype in (torch.float64, F16):
        call = make.four((3,), 4, 10, 64, groups=4, dtype=dtype)
        yield named(f"4 bits, {dtype}", routed(make, call, 3))
    (x, weight), kwargs = make.four((3,), 4, 10, 64, groups=4, dtype=F32)
    call = [x.to(BF16), weight], {"weight_scale": kwargs["weight_scale"].half()}
    yield named("4 bits, bfloat16 by float16 scales", routed(make, call, 3))
    for x_dtype, dtype in [(E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)]:
        (x, _), scales = make.eight((3,), 4, 6, 140, code=x_dtype)
        weight = make.codes(4, 6, 140, dtype=dtype)
        sample = routed(make, ([x, weight], scales), 3)
        yield named(f"{x_dtype} by {dtype}", sample, swiglu=True)


def moe_refusals() -> Iterator[Refusal]:
    make = Factors(0)
    x, weight, weights, ids = routed(make, make.plain((4,), 3, 7, 8), 4).args
    yield Refusal(r"weight must be \[experts, n, k\]; weight is", (x, weight[0], weights, ids))
    message = r"weight must have at least one expert; weight is \[0, 7, 8\] float32"
    yield Refusal(message, (x, weight[:0], weights, ids))
    message = r"topk_ids must be \[\.\.\., topk\] where x is .*; topk_ids is \[3, 2\] int32, x is"
    yield Refusal(message, (x, weight, weights[1:], ids[1:]))
    yield Refusal("topk_ids must be .* where x", (x[0], weight, weights, ids))
    yield Refusal("topk_ids must be .* where x", (x[None, :, None], weight, weights, ids))
    message = r"topk_weights must have shape \[4, 2\]; topk_weights is \[4, 1\] float32"
    yield Refusal(message, (x, weight, weights[:, :1], ids))
    message = "topk_ids must be int32 or int64; topk_ids is .* float32"
    yield Refusal(message, (x, weight, weights, weights))
    message = "topk_weights must be floating point; topk_weights is .* int32"
    yield Refusal(message, (x, weight, ids, ids))
    message = "weight must have an even number of rows for swiglu; rows is 7"
    yield Refusal(message, (x, weight, weights, ids), {"activation": "swiglu"})
    args, scales = make.eight((4,), 3, 7, 8)
    message = r"weight_scale must have shape \[3, 1, 1\]; weight_scale is \[1, 1\] float32"
    wrong = scales | {"weight_scale": torch.ones(1, 1)}
    yield Refusal(message, (*args, weights, ids), wrong)
    args, scales = make.four((4,), 3, 7, 8)
    message = r"weight_scale must have groups .*; weight_scale is \[7, 1\] float32"
    yield Refusal(message, (*args, weights, ids), {"weight_scale": torch.ones(7, 1)})


def moe_oracle(
    x: Tensor,
    weight: Tensor,
    topk_weights: Any,
    topk_ids: Tensor,
    *,
    x_scale: Any = None,
    weight_scale: Any = None,
    activation: Any = None,
) -> Tensor:
    scales = [None] * len(weight) if weight_scale is None else weight_scale
    experts = [values_of(w, s) for w, s in zip(weight, scales, strict=True)]
    tokens, topk = tokens_of(x, x_scale), topk_ids.shape[-1]
    width = weight.shape[1] // (2 if activation else 1)
    results = np.zeros((topk_ids.numel(), width))
    weights = np.ones(len(results)) if topk_weights is None else numbers(topk_weights).reshape(-1)
    for i, expert in enumerate(topk_ids.reshape(-1).tolist()):
        token = tokens[i if x.dim() > topk_ids.dim() else i // topk]
        if 0 <= expert < len(experts):
            row = (experts[expert] * token).sum(axis=1)
            results[i] = gate(row, activation) * weights[i]
    return torch.from_numpy(results).reshape(*topk_ids.shape, width)


RECORDS = [
    Record(
        "fused_moe_gemv",
        moe_samples,
        moe_refusals,
        moe_oracle,
        rows=("topk_ids", "topk_weights", "x", "x_scale"),
        far=("x", "x_scale", "weight"),
    ),
]
