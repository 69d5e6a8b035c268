"""Records of the products for a few rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.matmul import BF16, E4M3, E5M2, F16, F32, Maker, flat_rows, numbers

COLUMNS = [0, 1, 2, 3, 7, 8, 15, 17, 31, 33, 63, 65, 127, 129, 256, 1408]
Call = tuple[list[Tensor], dict[str, Any]]


class Factors(Maker):
    """Draws ``x`` and a weight of each kind, with what goes with them."""

    def plain(self, rows: tuple[int, ...], *shape: int, dtype: torch.dtype = F32) -> Call:
        weight = self.randn(*shape) / max(shape[-1], 1) ** 0.5
        return [self.randn(*rows, shape[-1], dtype=dtype), weight.to(dtype)], {}

    def four(
        self, rows: tuple[int, ...], *shape: int, groups: int = 1, dtype: torch.dtype = F32
    ) -> Call:
        *lead, k = shape
        scale = (self.scale(*lead, groups) * 10 / max(k, 1) ** 0.5).to(dtype)
        args = [self.randn(*rows, k, dtype=dtype), self.nibbles(*lead, k // 2)]
        return args, {"weight_scale": scale}

    def eight(self, rows: tuple[int, ...], *shape: int, code: torch.dtype = E4M3) -> Call:
        *experts, n, k = shape
        across = math.ceil(k / 128)
        scales = {
            "x_scale": self.scale(*rows, across),
            "weight_scale": self.scale(*experts, math.ceil(n / 128), across) / max(k, 1) ** 0.5,
        }
        return [self.codes(*rows, k, dtype=code), self.codes(*shape, dtype=code)], scales

    def each(self, rows: tuple[int, ...], *shape: int) -> Iterator[tuple[str, Call]]:
        yield "float32", self.plain(rows, *shape)
        yield "4 bits", self.four(rows, *shape)
        yield "8 bits", self.eight(rows, *shape)


def gemv_samples() -> Iterator[Sample]:
    make = Factors(21)
    for i, k in enumerate(COLUMNS):
        for dtype in (F32, F16, BF16):
            args, kwargs = make.plain((1 + i % 3,), 6 + 2 * (i % 5), k, dtype=dtype)
            follows = ({}, {"activation": "swiglu"}, {"norm_weight": make.randn(args[1].shape[0])})
            yield Sample(f"k {k} {dtype}", tuple(args), kwargs | follows[i % 3])
        args, kwargs = make.eight((2,), 5 + i, k)
        yield Sample(f"k {k}, 8 bits", tuple(args), kwargs)
    for groups, k in [(1, 2), (1, 130), (2, 128), (4, 256), (11, 1408), (3, 6), (64, 64)]:
        for dtype in (F32, F16, BF16):
            args, kwargs = make.four((3,), 10, k, groups=groups, dtype=dtype)
            yield Sample(f"4 bits, {groups} groups of {k} {dtype}", tuple(args), kwargs)
    for name, (args, kwargs) in make.each((4,), 260, 192):
        yield Sample(f"{name}, swiglu", tuple(args), kwargs | {"activation": "swiglu"})
        for eps in (1e-6, 1.0, 0.0):
            norm = {"norm_weight": make.randn(260).to(BF16), "eps": eps}
            yield Sample(f"{name}, norm, eps {eps}", tuple(args), kwargs | norm)
    for rows in [(), (0,), (1,), (17,), (2, 3), (2, 1, 3)]:
        for name, (args, kwargs) in make.each(rows, 14, 32):
            yield Sample(f"{name}, rows {rows}", tuple(args), kwargs)
    for name, (args, kwargs) in make.each((3,), 0, 16):
        yield Sample(f"{name}, no results", tuple(args), kwargs)
        norm = {"norm_weight": torch.ones(0)}
        yield Sample(f"{name}, norm of nothing", tuple(args), kwargs | norm)
    args, kwargs = make.plain((3,), 8, 40, dtype=torch.float64)
    yield Sample("float64", tuple(args), {"norm_weight": make.randn(8).double()})
    args, kwargs = make.eight((3,), 130, 140, code=E5M2)
    yield Sample("e5m2", tuple(args), kwargs)
    yield from gemv_layouts(make)
    yield from gemv_values(make)


def turned(x: Tensor) -> Tensor:
    """The same values column by column."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def gemv_layouts(make: Factors) -> Iterator[Sample]:
    for name, (args, kwargs) in make.each((4,), 12, 64):
        laid = {key: turned(value) for key, value in kwargs.items()}
        yield Sample(f"{name}, column by column", tuple(map(turned, args)), laid)
        rows = (args[0][::2], args[1][::3])
        parts = {
            key: value[:: 2 if key == "x_scale" else 3] if value.shape[0] > 1 else value
            for key, value in kwargs.items()
        }
        yield Sample(f"{name}, some rows", rows, parts)
    x, weight = make.randn(4, 99)[:, 3:67], make.randn(12, 80)[:, 5:69]
    yield Sample("parts of wider tensors", (x, weight), {"norm_weight": make.randn(24)[::2]})
    yield Sample("expanded", (x[:1].expand(4, 64), weight[:1].expand(12, 64)))


def gemv_values(make: Factors) -> Iterator[Sample]:
    for name, (args, kwargs) in make.each((4,), 10, 40):
        for value in (math.nan, 0.0):
            x = torch.where(torch.arange(4)[:, None] == 1, value, args[0].float())
            for follows in ({"activation": "swiglu"}, {"norm_weight": torch.ones(10)}):
                broken = (x.to(args[0].dtype), args[1])
                label = f"{name}, a row of {value}, {next(iter(follows))}"
                yield Sample(label, broken, kwargs | follows)
    x, weight = make.plain((3,), 8, 16)[0]
    for scale in (1e-25, 1e18):
        yield Sample(f"norm of {scale}", (x * scale, weight), {"norm_weight": torch.ones(8)})
    big = (x.to(F16) * 1000, weight.to(F16) * 100)
    yield Sample("overflow", big)
    yield Sample("a product beyond float16, normed", big, {"norm_weight": torch.ones(8)})


def gemv_refusals() -> Iterator[Refusal]:
    make = Factors(0)
    (x, weight), _ = make.plain((4,), 6, 8)
    yield Refusal(r"weight must be \[n, k\]; weight is \[8\] float32", (x, weight[0]))
    yield Refusal(r"x must be \[\.\.\., k\]; x is \[\]", (x[0, 0], weight))
    message = r"x must have 1 columns for each of weight; x is \[4, 7\] .*, weight is \[6, 8\]"
    yield Refusal(message, (x[:, 1:], weight))
    message = (
        "weight must be float32 or float8_e4m3fn or float8_e5m2 or uint8; weight is .*bfloat16"
    )
    yield Refusal(message, (x, weight.to(BF16)))
    yield Refusal("x must be floating point; x is .*int64", (x.long(), weight))
    ones = {"norm_weight": torch.ones(6)}
    message = "activation and norm_weight exclude each other; activation is 'swiglu'"
    yield Refusal(message, (x, weight), ones | {"activation": "swiglu"})
    message = "activation must be 'swiglu' or None; activation is 'gelu'"
    yield Refusal(message, (x, weight), {"activation": "gelu"})
    message = "weight must have an even number of rows for swiglu; rows is 5"
    yield Refusal(message, (x, weight[1:]), {"activation": "swiglu"})
    message = r"norm_weight must have shape \[6\]; norm_weight is \[8\] float32"
    yield Refusal(message, (x, weight), {"norm_weight": torch.ones(8)})
    message = r"weight_scale goes with an 8-bit or uint8 weight; x is \[4, 8\] float32"
    yield Refusal(message, (x, weight), {"weight_scale": torch.ones(6, 1)})
    message = r"x_scale goes with an 8-bit weight; weight is \[6, 8\] float32"
    yield Refusal(message, (x, weight), {"x_scale": torch.ones(4, 1)})
    yield from coded_refusals(make)


def coded_refusals(make: Factors) -> Iterator[Refusal]:
    (x, weight), scales = make.four((4,), 6, 8, groups=2)
    yield Refusal(r"a uint8 weight needs weight_scale; weight is \[6, 4\] uint8", (x, weight))
    message = "x must have 2 columns for each of weight; x is .*, weight is "
    yield Refusal(message, (x[:, 1:], weight), scales)
    message = r"weight_scale must have groups of equal size .*; weight_scale is \[6, 3\]"
    yield Refusal(message, (x, weight), {"weight_scale": torch.ones(6, 3)})
    yield Refusal("weight_scale must have .* \\[\\]", (x, weight), {"weight_scale": torch.ones(())})
    yield Refusal(
        "weight_scale must .* \\[6, 0\\]", (x, weight), {"weight_scale": torch.ones(6, 0)}
    )
    (x, weight), scales = make.eight((4,), 6, 8)
    message = r"an 8-bit weight needs x_scale; weight is \[6, 8\] float8_e4m3fn"
    yield Refusal(message, (x, weight), scales | {"x_scale": None})
    message = r"an 8-bit weight needs weight_scale; weight is \[6, 8\] float8_e4m3fn"
    yield Refusal(message, (x, weight), scales | {"weight_scale": None})
    message = r"x must be float8_e4m3fn or float8_e5m2; x is \[4, 8\] bfloat16"
    yield Refusal(message, (x.to(BF16), weight), scales)
    message = r"x_scale must have shape \[4, 1\]; x_scale is \[4\] float32"
    yield Refusal(message, (x, weight), scales | {"x_scale": torch.ones(4)})
    message = r"weight_scale must have shape \[1, 1\]; weight_scale is \[6, 1\] float32"
    yield Refusal(message, (x, weight), scales | {"weight_scale": torch.ones(6, 1)})


def routed(make: Factors, call: Call, *rows: int, topk: int = 2, weighted: bool = True) -> Sample:
    """A sample of a call with experts drawn for each token, one in five out of range."""
    (x, weight), kwargs = call
    ids = torch.randint(-1, len(weight) + 1, (*rows, topk), generator=make.generator).int()
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
    yield Sample("column by column", (turned(x), turned(weight), turned(weights), turned(ids)))
    yield Sample("expanded", (x[:1].expand(4, 16), weight[:1].expand(3, 8, 16), None, ids))


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


def values_of(weight: Tensor, scale: Any) -> np.ndarray:
    """A weight [n, k] of any kind in float64."""
    if weight.dtype == torch.uint8:
        packed, factors = weight.numpy().astype(np.int64), numbers(scale)
        codes = np.zeros((packed.shape[0], packed.shape[1] * 2))
        codes[:, 0::2], codes[:, 1::2] = packed % 16 - 8, packed // 16 - 8
        size = codes.shape[1] // max(factors.shape[1], 1)
        for group in range(factors.shape[1]):
            codes[:, group * size : (group + 1) * size] *= factors[:, group : group + 1]
        return codes
    values = numbers(weight).copy()
    if scale is not None:
        for i, row in enumerate(numbers(scale)):
            for j, factor in enumerate(row):
                values[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128] *= factor
    return values


def tokens_of(x: Tensor, scale: Any) -> np.ndarray:
    rows = flat_rows(x).copy()
    if scale is not None:
        for group, factor in enumerate(flat_rows(scale).T):
            rows[:, group * 128 : group * 128 + 128] *= factor[:, None]
    return rows


def gate(row: np.ndarray, activation: str | None) -> np.ndarray:
    if activation is None:
        return row
    first, second = row[: len(row) // 2], row[len(row) // 2 :]
    return first / (1 + np.exp(-first)) * second


def gemv_oracle(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Any = None,
    weight_scale: Any = None,
    activation: Any = None,
    norm_weight: Any = None,
    eps: float = 1e-6,
) -> Tensor:
    values, results = values_of(weight, weight_scale), []
    for token in tokens_of(x, x_scale):
        row = gate((values * token).sum(axis=1), activation)
        if norm_weight is not None and len(row):
            row = row / np.sqrt((row * row).sum() / len(row) + eps) * numbers(norm_weight)
        results.append(row)
    width = len(values) // (2 if activation else 1)
    return torch.from_numpy(np.array(results).reshape(*x.shape[:-1], width))


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
    Record("fused_gemv", gemv_samples, gemv_refusals, gemv_oracle),
    Record("fused_moe_gemv", moe_samples, moe_refusals, moe_oracle),
]
