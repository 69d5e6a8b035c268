"""Records of the limits that keep some tokens of a distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.vocab import HALF, SIZES, Maker, each_row, rows_of, views, with_nan


def limit_samples(name: str, numbers: list[Any], tensors: list[Tensor]) -> Iterator[Sample]:
    """Samples of the op whose limit is ``name``; tensors hold a limit for each of five rows."""
    make = Maker(2)
    for size in SIZES:
        yield Sample(f"3x{size}", (make.probs(3, size), numbers[0]))
    for number in numbers:
        for dtype in (torch.float32, torch.float64, *HALF):
            yield Sample(f"{name} {number} {dtype}", (make.probs(4, 66).to(dtype), number))
        yield Sample(f"{name} {number}, ties", (torch.full((2, 8), 0.125), number))
        few = torch.tensor([[0.25, 0.125, 0.25, 0.125, 0.25], [0.0, 0.5, 0.0, 0.5, 0.0]])
        yield Sample(f"{name} {number}, some ties", (few, number))
        yield Sample(f"{name} {number}, sum of 96", (make.probs(3, 34) * 96, number))
    for tensor in tensors:
        described = f"{name} {tensor.dtype} {list(tensor.shape)}"
        for dtype in (torch.float32, torch.bfloat16):
            yield Sample(f"{described} {dtype}", (make.probs(5, 40).to(dtype), tensor))
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (2, 0, 8), (1, 8000)]:
        yield Sample(f"shape {shape}", (make.probs(*shape), numbers[0]))
    grid = torch.stack([tensors[0][:3], tensors[0][2:]])
    yield Sample(f"{name} of each [2, 3]", (make.probs(2, 3, 8), grid))
    yield Sample(f"{name} of each, strided", (make.probs(2, 8), tensors[0][1::2]))
    for layout, p in views(make.probs):
        yield Sample(layout, (p, numbers[0]))
    for value in (0.0, 1e4, 6e4, 1e-38, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value), numbers[0]))
    yield Sample("one NaN", (with_nan(make.probs(4, 64)), numbers[0]))
    zeros = make.probs(4, 64) * torch.tensor([[1], [0], [1], [1]])
    yield Sample("one row of zeros", (zeros, numbers[0]))


TOP_K = [3, 1, 2, 0, -1, 66, 67, 2**31, 2**32 + 1, 2**40, -(2**63)]
TOP_K_ROWS = torch.tensor([3, 0, 40, 1, -5])
FAR_TOP_K = torch.tensor([2**32 + 1, -(2**32) + 2, 2**40, 2**31, 3])
TOP_P = [0.75, 0.5, 0.9, 0.25, 0.125, 0.0, -1.0, 1.0, 1, 1.5, math.inf, 1e-30]
CLOSE_MASS = torch.tensor([[0.699999989, 0.2, 0.100000011]], dtype=torch.float64)
TOP_P_ROWS = torch.tensor([0.75, 0.0, 1.0, 0.3, 0.9])
MIN_P = [0.25, 0.5, 0.1, 0.0, -1.0, 1.0, 1, 2.0, math.inf, 1e-30]
MIN_P_ROWS = torch.tensor([0.25, 0.0, 1.0, 0.03, 2.0])


def forms(rows: Tensor, *dtypes: torch.dtype) -> list[Tensor]:
    return [rows.to(dtype) for dtype in dtypes] + [rows[0]]


def top_k_samples() -> Iterator[Sample]:
    yield from limit_samples("top_k", TOP_K, forms(TOP_K_ROWS, torch.int64, torch.int32))
    yield Sample("top_k of each beyond 32 bits", (Maker(3).probs(5, 40), FAR_TOP_K))
    close = torch.tensor([[0.25, 0.25 + 1e-12, 0.25 - 1e-12, 0.25]], dtype=torch.float64)
    yield Sample("a close call of float64", (close, 1))


def top_p_samples() -> Iterator[Sample]:
    dtypes = torch.float32, torch.float64, *HALF
    yield from limit_samples("top_p", TOP_P, forms(TOP_P_ROWS, *dtypes))
    # All sums are exact: 717 are kept, of a limit in bfloat16 716.
    yield Sample("top_p 0.7 of 1024 equal ones", (torch.full((2, 1024), 2.0**-10), 0.7))
    # In float32 the limit is below what precedes the second token.
    yield Sample("a close call of float64", (CLOSE_MASS, 0.7))


def min_p_samples() -> Iterator[Sample]:
    dtypes = torch.float32, torch.float64, *HALF
    yield from limit_samples("min_p", MIN_P, forms(MIN_P_ROWS, *dtypes))
    close = torch.tensor([[0.5, 0.05 - 1e-12, 0.05 + 1e-12]], dtype=torch.float64)
    yield Sample("a close call of float64", (close, 0.1))


def limit_refusals(name: str, number: Any, kind: str, other: Tensor) -> Iterator[Refusal]:
    p = torch.ones(4, 7)
    message = r"probs must have a last dimension of at least 1; probs is \[4, 0\] float32"
    yield Refusal(message, (torch.zeros(4, 0), number))
    yield Refusal(r"probs must have .*; probs is \[\] float32", (torch.tensor(1.0), number))
    yield Refusal(r"probs must be floating point; probs is \[4, 7\] int64", (p.long(), number))
    limit = torch.full((7,), number)
    dtype = str(limit.dtype).removeprefix("torch.")
    message = rf"{name} must have shape \[4\]; {name} is \[7\] {dtype}"
    yield Refusal(message, (p, limit))
    yield Refusal(rf"{name} must have shape \[\]; {name} is \[1\] {dtype}", (p[0], limit[:1]))
    yield Refusal(rf"{name} must be {kind}; {name} is \[4\] ", (p, other))


def top_k_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("top_k", 2, "int32 or int64", torch.ones(4))
    message = f"top_k must fit in a signed 64-bit integer; found {2**63}"
    yield Refusal(message, (torch.ones(4, 7), 2**63))


def top_p_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("top_p", 0.5, "floating point", torch.ones(4).int())
    yield Refusal("top_p must not be NaN", (torch.ones(4, 7), math.nan))


def min_p_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("min_p", 0.5, "floating point", torch.ones(4).int())
    yield Refusal("min_p must not be NaN", (torch.ones(4, 7), math.nan))


def drawable(row: np.ndarray, top_k: Any = None, top_p: Any = None, min_p: Any = None) -> list[int]:
    """The ids of the tokens that the limits leave, in descending order."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if min_p is not None:
        limit = min(max(min_p, 0.0), 1.0) * row.max()
        order = [token for token in order if row[token] >= limit]
    if top_k is not None and top_k > 0:
        order = order[:top_k]
    if top_p is not None and top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(row[order])[:-1]])
        order = order[: max(1, int((before < top_p).sum()))]
    return order


def renorm_oracle(limit_name: str, probs: Tensor, limit: Any) -> Tensor:
    p = rows_of(probs)
    results = np.zeros_like(p)
    for row, value, result in zip(p, each_row(limit, probs, len(p)), results, strict=True):
        if np.isnan(row).any():
            result[:] = np.nan
            continue
        tokens = drawable(row, **{limit_name: value})
        total = math.fsum(row[tokens])
        if total > 0:
            result[tokens] = row[tokens] / total
    return torch.from_numpy(results).reshape(probs.shape)


def top_k_oracle(probs: Tensor, top_k: Any) -> Tensor:
    return renorm_oracle("top_k", probs, top_k)


def top_p_oracle(probs: Tensor, top_p: Any) -> Tensor:
    return renorm_oracle("top_p", probs, top_p)


def min_p_oracle(probs: Tensor, min_p: Any) -> Tensor:
    return renorm_oracle("min_p", probs, min_p)


RECORDS = [
    Record(
        "top_k_renorm",
        top_k_samples,
        top_k_refusals,
        top_k_oracle,
        rows=("probs", "top_k"),
        far=("probs",),
    ),
    Record(
        "top_p_renorm",
        top_p_samples,
        top_p_refusals,
        top_p_oracle,
        rows=("probs", "top_p"),
        far=("probs",),
    ),
    Record(
        "min_p_renorm",
        min_p_samples,
        min_p_refusals,
        min_p_oracle,
        rows=("probs", "min_p"),
        far=("probs",),
    ),
]
