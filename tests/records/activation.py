"""Records of the gated activations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from records.record import Record, Refusal, Sample

SIZES = [0, 2, 6, 14, 16, 30, 32, 34, 62, 66, 126, 128, 130, 254, 256, 258, 1408, 2816]


def samples() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    for size in SIZES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            yield Sample(f"3x{size} {dtype}", (randn(3, size, dtype=dtype),))
    yield Sample("float64", (randn(5, 64, dtype=torch.float64),))
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (1, 16384)]:
        yield Sample(f"shape {shape}", (randn(*shape),))
    yield Sample("transposed", (randn(64, 3).t(),))
    yield Sample("rows of a wider tensor", (randn(4, 96)[:, 16:80],))
    yield Sample("every other row", (randn(8, 32)[::2],))
    yield Sample("every other column", (randn(4, 64)[:, ::2],))
    yield Sample("expanded", (randn(1, 32).expand(4, 32),))
    yield Sample("offset by one element", (randn(129)[1:].view(2, 64),))
    for value in (0.0, 1e4, -6e4, 1e-38, math.inf, -math.inf, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value),))
    one_nan = randn(4, 64)
    one_nan[1, 5] = math.nan
    yield Sample("one NaN", (one_nan,))


def refusals() -> Iterator[Refusal]:
    yield Refusal(
        r"x must have an even last dimension; x is \[4, 7\] float32", (torch.zeros(4, 7),)
    )
    yield Refusal(r"x must have an even last dimension; x is \[\] float32", (torch.zeros(()),))
    yield Refusal(
        r"x must be floating point; x is \[4, 8\] int64", (torch.zeros(4, 8, dtype=torch.int64),)
    )


def silu_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    return gate / (1 + torch.exp(-gate)) * up


def gelu_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    return gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))) * up


def gelu_tanh_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
    return gate * 0.5 * (1 + torch.tanh(inner)) * up


RECORDS = [
    Record("silu_and_mul", samples, refusals, silu_oracle),
    Record("gelu_and_mul", samples, refusals, gelu_oracle),
    Record("gelu_tanh_and_mul", samples, refusals, gelu_tanh_oracle),
]
