"""Record of the softmax with temperatures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.vocab import HALF, SIZES, Maker, each_row, rows_of, views


def softmax_samples() -> Iterator[Sample]:
    yield from softmax_layouts()
    yield from softmax_temperatures()
    yield from softmax_values()


def softmax_layouts() -> Iterator[Sample]:
    make = Maker(1)
    for size in SIZES:
        yield Sample(f"3x{size}", (make.logits(3, size),))
        yield Sample(f"3x{size} at 0", (make.logits(3, size),), {"temperature": 0.0})
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (2, 0, 8), (1, 32000)]:
        yield Sample(f"shape {shape}", (make.logits(*shape),))
    for name, x in views(make.logits):
        yield Sample(name, (x,), {"temperature": 0.8})


def softmax_temperatures() -> Iterator[Sample]:
    make = Maker(7)
    for dtype in HALF:
        for temperature in (0.0, 0.7, 1.0):
            x = make.logits(4, 130).to(dtype)
            yield Sample(f"{dtype} at {temperature}", (x,), {"temperature": temperature})
    for temperature in (0.3, 1, 1e-30, 1e-50, math.inf):
        yield Sample(f"at {temperature}", (make.logits(3, 65),), {"temperature": temperature})
    yield Sample("float64", (make.logits(5, 64).double(),), {"temperature": 0.7})
    close = torch.tensor([[1.0, 1 + 1e-12, 1 - 1e-12]], dtype=torch.float64)
    yield Sample("a close call of float64", (close,), {"temperature": 0.0})
    per_row = torch.tensor([0.5, 0.0, 1.0, 2.0, -1.0, math.inf, math.nan])
    for dtype in (torch.float32, torch.float64, *HALF):
        kwargs = {"temperature": per_row.to(dtype)}
        yield Sample(f"temperatures {dtype}", (make.logits(7, 40),), kwargs)
    yield Sample("strided temperatures", (make.logits(4, 40),), {"temperature": per_row[:8:2]})
    yield Sample("temperature []", (make.logits(3, 40),), {"temperature": torch.tensor(0.7)})
    grid = {"temperature": torch.tensor([[0.5, 0.0, 1.0], [2.0, 0.1, 3.0]])}
    yield Sample("temperature of each [2, 3]", (make.logits(2, 3, 8),), grid)


def softmax_values() -> Iterator[Sample]:
    make = Maker(8)
    for value in (0.0, 1e4, -6e4, 1e-38, 3e38, math.inf, -math.inf, math.nan):
        for temperature in (0.0, 0.5):
            x = torch.full((2, 64), value)
            yield Sample(f"all {value} at {temperature}", (x,), {"temperature": temperature})
    for value in (math.nan, math.inf, -math.inf, 1e4, -1e4, 3e38):
        for temperature in (0.0, 1.0, math.inf):
            x = make.logits(4, 64)
            x[1, 5] = x[1, 40] = value
            yield Sample(f"two {value} at {temperature}", (x,), {"temperature": temperature})


def softmax_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 7)
    empty = r"logits must have a last dimension of at least 1; logits is \[4, 0\] float32"
    yield Refusal(empty, (torch.zeros(4, 0),))
    yield Refusal(r"logits must have .*; logits is \[\] float32", (torch.tensor(0.0),))
    yield Refusal(r"logits must be floating point; logits is \[4, 7\] int64", (x.long(),))
    for value in (-0.5, -math.inf):
        message = f"temperature must not be negative; temperature is {value}"
        yield Refusal(message, (x,), {"temperature": value})
    yield Refusal("temperature must not be NaN", (x,), {"temperature": math.nan})
    message = r"temperature must have shape \[4\]; temperature is \[7\] float32"
    yield Refusal(message, (x,), {"temperature": torch.ones(7)})
    message = r"temperature must have shape \[4\]; temperature is \[4, 1\] float32"
    yield Refusal(message, (x,), {"temperature": torch.ones(4, 1)})
    message = r"temperature must be floating point; temperature is \[4\] int32"
    yield Refusal(message, (x,), {"temperature": torch.ones(4).int()})


def softmax_oracle(logits: Tensor, *, temperature: Any = 1.0) -> Tensor:
    x = rows_of(logits)
    results = np.zeros_like(x)
    for row, t, result in zip(x, each_row(temperature, logits, len(x)), results, strict=True):
        top = row.max()
        if np.isnan(row).any() or np.isnan(t) or (t > 0 and top == np.inf):
            result[:] = np.nan
        elif top > -np.inf and t <= 0:
            result[row.tolist().index(top)] = 1
        elif top > -np.inf:
            seen = row > -np.inf
            powers = [math.exp((value - top) / t) for value in row[seen]]
            result[seen] = np.array(powers) / math.fsum(powers)
    return torch.from_numpy(results).reshape(logits.shape)


RECORDS = [
    Record(
        "softmax",
        softmax_samples,
        softmax_refusals,
        softmax_oracle,
        rows=("logits", "temperature"),
        far=("logits",),
    ),
]
