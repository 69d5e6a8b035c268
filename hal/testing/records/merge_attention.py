"""Record of the sum of two attentions over different keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.attention import HALVES, spoiled
from hal.testing.records.draws import Draws


def merge_samples() -> Iterator[Sample]:
    draw = Draws(2)

    def sides(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        lse = torch.float64 if dtype == torch.float64 else torch.float32
        side = [draw(*shape, dtype=dtype), draw(*shape[:2], dtype=lse)]
        return [*side, draw(*shape, dtype=dtype), draw(*shape[:2], dtype=lse)]

    for size in [0, 1, 2, 3, 7, 8, 16, 33, 64, 65, 127, 128, 129, 256]:
        for dtype in (torch.float32, *HALVES):
            yield Sample(f"head_dim {size} {dtype}", tuple(sides(5, 3, size, dtype=dtype)))
    for shape in [(0, 3, 8), (3, 0, 8), (1, 1, 1), (1408, 1, 2), (257, 3, 16)]:
        yield Sample(f"shape {shape}", tuple(sides(*shape)))
    yield Sample("float64", tuple(sides(5, 3, 16, dtype=torch.float64)))
    out_a, lse_a, out_b, lse_b = sides(6, 4, 16)
    for value in (1e4, -1e4, 1e30, 1e-38, 88.0, -104.0):
        yield Sample(f"lse {value} and 0", (out_a, lse_a * 0 + value, out_b, lse_b * 0))
        yield Sample(f"lse {value} twice", (out_a, lse_a * 0 + value, out_b, lse_b * 0 + value))
    yield Sample("out of 3e38", (out_a.sign() * 3e38, lse_a, out_a.sign() * 3e38, lse_b))
    yield Sample("NaN in out", (spoiled(out_a, (2, 1, 3), math.nan), lse_a, out_b, lse_b))
    yield Sample("NaN in lse", (out_a, spoiled(lse_a, (2, 1), math.nan), out_b, lse_b))
    for value in (math.inf, -math.inf):
        holes_a, holes_b = lse_a.clone(), lse_b.clone()
        holes_a[:3] = value
        yield Sample(f"lse_a {value}", (out_a, holes_a, out_b, lse_b))
        yield Sample(f"lse_b {value}", (out_b, lse_b, out_a, holes_a))
        yield Sample(
            f"lse_a {value}, out_a NaN", (out_a * math.nan, lse_a * 0 + value, out_b, lse_b)
        )
        holes_b[1:4] = -math.inf
        yield Sample(f"some lse {value}, -inf or both", (out_a, holes_a, out_b, holes_b))
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (out_a, lse_a)]
    yield Sample("heads first", (*strided, out_b, lse_b))
    yield Sample("lse expanded", (out_a, lse_a[:1].expand(6, 4), out_b, lse_b[:, :1].expand(6, 4)))
    doubled = torch.stack((out_a, out_a), dim=-1)[..., 1]
    yield Sample("every other column", (doubled, lse_a, out_b, lse_b))


def merge_refusals() -> Iterator[Refusal]:
    out, lse = torch.zeros(3, 2, 8), torch.zeros(3, 2)
    message = r"out_a must be floating point; out_a is \[3, 2, 8\] int64"
    yield Refusal(message, (out.long(), lse, out, lse))
    message = r"out_a must be \[tokens, heads, head_dim\]; out_a is \[3, 2\] float32"
    yield Refusal(message, (lse, lse, out, lse))
    message = r"out_b must be float32; out_b is \[3, 2, 8\] float16"
    yield Refusal(message, (out, lse, out.half(), lse))
    message = r"out_b must have shape \[3, 2, 8\]; out_b is \[3, 2, 7\] float32"
    yield Refusal(message, (out, lse, out[..., 1:], lse))
    message = r"lse_a must be float32; lse_a is \[3, 2\] float64"
    yield Refusal(message, (out, lse.double(), out, lse))
    message = r"lse_b must be float64; lse_b is \[3, 2\] float32"
    yield Refusal(message, (out.double(), lse.double(), out.double(), lse))
    message = r"lse_a must have shape \[3, 2\]; lse_a is \[2, 3\] float32"
    yield Refusal(message, (out, lse.t(), out, lse))


def merge_oracle(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    out = np.zeros(out_a.shape)
    lse = np.full(lse_a.shape, -np.inf)
    outs = [x.double().numpy() for x in (out_a, out_b)]
    lses = [x.double().numpy() for x in (lse_a, lse_b)]
    for place in np.ndindex(*lse.shape):
        sides = [(y[place], x[place]) for x, y in zip(outs, lses, strict=True)]
        sides = [side for side in sides if not np.isinf(side[0])]
        if sides:
            weights = [
                1 / sum(np.exp(np.clip(b - a, -800, 700)) for b, _ in sides) for a, _ in sides
            ]
            out[place] = sum(w * x for w, (_, x) in zip(weights, sides, strict=True))
            with np.errstate(invalid="ignore"):
                lse[place] = np.logaddexp.reduce([a for a, _ in sides])
    return torch.from_numpy(out), torch.from_numpy(lse)


RECORDS = [
    Record(
        "merge_attention_states",
        merge_samples,
        merge_refusals,
        merge_oracle,
        rows=("out_a", "lse_a", "out_b", "lse_b"),
    ),
]
