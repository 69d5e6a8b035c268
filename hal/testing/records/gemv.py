"""Record of the product for a few rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.factors import BF16, E4M3, E5M2, F16, F32, Maker, flat_rows, numbers

COLUMNS = [0, 1, 2, 3, 7, 8, 15, 17, 31, 33, 63, 65, 127, 129, 256, 1408]
Call = tuple[list[Tensor], dict[str, Any]]


class Factors(Maker):
    """Draws ``x`` and a weight of each kind, with what goes with them."""

    def plain(self, rows: tuple[int, ...], *shape: int, dtype: torch.dtype = F32) -> Call:
        weight = self(*shape) / max(shape[-1], 1) ** 0.5
        return [self(*rows, shape[-1], dtype=dtype), weight.to(dtype)], {}

    def four(
        self, rows: tuple[int, ...], *shape: int, groups: int = 1, dtype: torch.dtype = F32
    ) -> Call:
        *lead, k = shape
        scale = (self.scale(*lead, groups) * 10 / max(k, 1) ** 0.5).to(dtype)
        args = [self(*rows, k, dtype=dtype), self.nibbles(*lead, k // 2)]
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
            follows = ({}, {"activation": "swiglu"}, {"norm_weight": make(args[1].shape[0])})
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
            norm = {"norm_weight": make(260).to(BF16), "eps": eps}
            yield Sample(f"{name}, norm, eps {eps}", tuple(args), kwargs | norm)
    for rows in [(), (0,), (1,), (17,), (2, 3), (2, 1, 3)]:
        for name, (args, kwargs) in make.each(rows, 14, 32):
            yield Sample(f"{name}, rows {rows}", tuple(args), kwargs)
    for name, (args, kwargs) in make.each((3,), 0, 16):
        yield Sample(f"{name}, no results", tuple(args), kwargs)
        norm = {"norm_weight": torch.ones(0)}
        yield Sample(f"{name}, norm of nothing", tuple(args), kwargs | norm)
    args, kwargs = make.plain((3,), 8, 40, dtype=torch.float64)
    yield Sample("float64", tuple(args), {"norm_weight": make(8).double()})
    args, kwargs = make.eight((3,), 130, 140, code=E5M2)
    yield Sample("e5m2", tuple(args), kwargs)
    yield from gemv_dtypes(Factors(24))
    yield from gemv_layouts(make)
    yield from gemv_values(make)
    yield from gemv_tiles(Factors(25))


def gemv_tiles(make: Factors) -> Iterator[Sample]:
    """Whole tiles, which some kernels have alone."""
    for dtype in (F16, BF16):
        given = {
            "16 bits": make.plain((2,), 64, 256, dtype=dtype),
            "4 bits": make.four((2,), 64, 256, groups=2, dtype=dtype),
            "8 bits": make.eight((2,), 64, 256),
        }
        for name, (args, kwargs) in given.items():
            yield Sample(f"tiles of {name}, {dtype}", tuple(args), kwargs)
            gated = kwargs | {"activation": "swiglu"}
            yield Sample(f"tiles of {name}, swiglu, {dtype}", tuple(args), gated)


def gemv_dtypes(make: Factors) -> Iterator[Sample]:
    for x_dtype, dtype in [(E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)]:
        (x, _), scales = make.eight((3,), 6, 140, code=x_dtype)
        args = x, make.codes(6, 140, dtype=dtype)
        yield Sample(f"{x_dtype} by {dtype}", args, scales | {"activation": "swiglu"})
    doubled = torch.float64
    args, kwargs = make.four((3,), 10, 64, groups=4, dtype=doubled)
    yield Sample("4 bits, float64", tuple(args), kwargs | {"activation": "swiglu"})
    for dtype in (F16, doubled):
        norm = {"norm_weight": make(10).to(dtype)}
        yield Sample(f"4 bits, float64, norm {dtype}", tuple(args), kwargs | norm)
        plain, _ = make.plain((3,), 10, 40, dtype=BF16)
        yield Sample(f"bfloat16, norm {dtype}", tuple(plain), norm)
    args, kwargs = make.four((3,), 10, 64, groups=4)
    scale = {"weight_scale": kwargs["weight_scale"].half()}
    yield Sample("4 bits, bfloat16 by float16 scales", (args[0].to(BF16), args[1]), scale)


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
    x, weight = make(4, 99)[:, 3:67], make(12, 80)[:, 5:69]
    yield Sample("parts of wider tensors", (x, weight), {"norm_weight": make(24)[::2]})
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
    for dtype in (F16, BF16):
        # Half way from 1 to the next number of the dtype: rounded, each would be 1.
        between = torch.tensor([[1, torch.finfo(dtype).eps / 2]]).expand(3, 2)
        args = between.to(dtype), torch.ones(64, 2, dtype=dtype)
        yield Sample(f"products that {dtype} lacks", args, {"activation": "swiglu"})


def gemv_refusals() -> Iterator[Refusal]:
    make = Factors(0)
    (x, weight), _ = make.plain((4,), 6, 8)
    yield Refusal(r"weight must be \[n, k\]; weight is \[8\] float32", (x, weight[0]))
    yield Refusal(r"x must be \[\.\.\., k\]; x is \[\]", (x[0, 0], weight))
    message = r"x must have as many columns as weight; x is \[4, 7\] .*, weight is \[6, 8\]"
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
    message = "x must have two columns for each of weight; x is .*, weight is "
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


RECORDS = [
    Record("fused_gemv", gemv_samples, gemv_refusals, gemv_oracle, rows=("x", "x_scale")),
]
