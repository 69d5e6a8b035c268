"""Records of the choice of the best experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Powers of two, their neighbours, and the experts of models: 60, 72, 160, 257, 384.
EXPERTS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 60, 64, 72, 128, 160, 256, 257, 384, 512]
INF, NAN = math.inf, math.nan


def layouts(draw: Draws, experts: int) -> Iterator[tuple[str, Tensor]]:
    """Logits of ``experts`` experts, of every rank and laid out in every unusual way."""
    for shape in [(), (0,), (1,), (65,), (2, 3), (2, 0), (2, 1, 3)]:
        yield f"rows {shape}", draw(*shape, experts)
    for dtype in (HALF, BF16, DOUBLE):
        yield f"{dtype}", draw(9, experts, dtype=dtype)
    yield "transposed", draw(experts, 3).t()
    yield "rows of a wider tensor", draw(4, 3 * experts)[:, experts : 2 * experts]
    yield "every other row", draw(8, experts)[::2]
    yield "every other column", draw(4, 2 * experts)[:, ::2]
    yield "expanded", draw(1, experts).expand(4, experts)
    yield "offset by one element", draw(2 * experts + 1)[1:].view(2, experts)


def extremes(draw: Draws, experts: int) -> Iterator[tuple[str, Tensor]]:
    """Logits of five rows: ties, infinities, NaN, and what leaves float32."""
    for value in (0.0, 1e4, -1e4, -2e4, -1e38, INF, -INF, NAN):
        yield f"all {value}", torch.full((2, experts), value)
        one = draw(5, experts)
        one[1, experts // 2] = one[3, 0] = value
        yield f"one {value}", one
        most = torch.full((5, experts), value)
        most[:, experts - 1] = draw(5)
        yield f"all but the last {value}", most
    few = draw.integers(-2, 3, 5, experts).to(FLOAT)
    yield "ties", few
    yield "ties of bfloat16", few.to(BF16) * 0.3
    yield "far apart", draw(5, experts) * 150
    yield "all of float16", torch.full((2, experts), 6e4).half()


def bias_for(experts: int, dtype: torch.dtype = FLOAT, scale: float = 0.5) -> Tensor:
    return Draws(experts, scale)(experts, dtype=dtype)


def close_calls() -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Logits or biases of 24 experts that only float64 tells apart."""
    steps = Draws(24).integers(0, 1000, 5, 24).to(DOUBLE) * 1e-12
    yield "close calls of float64", steps, None
    yield "close calls of a float64 bias", torch.zeros(5, 24), 1 + steps[0]


def routed_samples(seed: int) -> Iterator[Sample]:
    """Samples of ``(gating, k, renormalize, correction_bias)``."""
    draw = Draws(seed, 2.0)
    for experts in EXPERTS:
        yield Sample(f"3x{experts}", (draw(3, experts), min(8, experts)))
        biased = {"correction_bias": bias_for(experts), "renormalize": True}
        yield Sample(f"3x{experts} biased", (draw(3, experts), min(6, experts)), biased)
    for k in (1, 24):
        yield Sample(f"{k} of 24", (draw(3, 24), k))
    for name, gating in layouts(draw, 24):
        yield Sample(f"{name}, biased", (gating, 5), {"correction_bias": bias_for(24)})
    for i, (name, gating) in enumerate(extremes(draw, 12)):
        yield Sample(name, (gating, 5), {"renormalize": i % 3 > 0})
    for value in (-1e4, -INF, NAN):  # Sums of 0 among them.
        same = torch.full((2, 12), value), 5
        yield Sample(f"all {value} renormalized", same, {"renormalize": True})
    yield from biases(draw)
    for name, gating, bias in close_calls():
        yield Sample(name, (gating, 5), {"correction_bias": bias})


def biases(draw: Draws) -> Iterator[Sample]:
    gating = draw(5, 12)
    for dtype in (HALF, BF16, DOUBLE):
        yield Sample(f"bias {dtype}", (gating, 4), {"correction_bias": bias_for(12, dtype)})
    strided = bias_for(24)[::2]
    yield Sample("strided bias", (gating, 4), {"correction_bias": strided})
    yield Sample("expanded bias", (gating, 4), {"correction_bias": strided[:1].expand(12)})
    for value in (-3.0, -1e4, -2e4, -INF, NAN):
        all_of_it = {"correction_bias": torch.full((12,), value)}
        yield Sample(f"bias of {value}", (gating, 4), all_of_it)
        one = bias_for(12)
        one[7] = value
        kwargs = {"correction_bias": one, "renormalize": True}
        yield Sample(f"bias with a {value}", (gating, 12), kwargs)


def softmax_samples() -> Iterator[Sample]:
    yield from routed_samples(0)
    draw = Draws(1, 2.0)
    for experts in (7, 16, 60, 257):
        for cap in (1.0, 30):
            gating, kwargs = draw(3, experts), {"softcap": cap}
            yield Sample(f"{experts} capped at {cap}", (gating, 4), kwargs)
            kwargs = kwargs | {"correction_bias": bias_for(experts), "renormalize": True}
            yield Sample(f"{experts} capped at {cap}, biased", (gating, 4), kwargs)
    for dtype in (HALF, BF16, DOUBLE):
        for renormalize in (False, True):
            kwargs: dict[str, Any] = {"softcap": 3.0, "renormalize": renormalize}
            name = f"{dtype} capped, renormalize {renormalize}"
            yield Sample(name, (draw(9, 24, dtype=dtype), 5), kwargs)
            kwargs["correction_bias"] = bias_for(24)
            yield Sample(f"{name}, biased", (draw(9, 24, dtype=dtype), 5), kwargs)
    infinite = draw(5, 12)
    infinite[1, 5] = INF
    infinite[2] = -INF
    infinite[3, 4] = NAN
    yield Sample("capped infinities", (infinite, 4), {"softcap": 2.0})


def sigmoid_samples() -> Iterator[Sample]:
    yield from routed_samples(2)
    for value in (20.0, 40.0, -80.0):
        kwargs = {"correction_bias": bias_for(12)}
        yield Sample(f"saturated at {value}", (torch.full((2, 12), value), 4), kwargs)
    gating, large = Draws(3, 2.0)(4, 12), bias_for(12) * 1e3
    yield Sample("a bias that swallows the score", (gating, 4), {"correction_bias": large})


def routed_refusals(**kwargs: Any) -> Iterator[Refusal]:
    x = torch.zeros(4, 8)
    for k in (0, -1):
        yield Refusal(f"k must be at least 1; k is {k}", (x, k), kwargs)
    message = r"gating must be floating point; gating is \[4, 8\] int64"
    yield Refusal(message, (x.long(), 2), kwargs)
    message = r"gating must be \[..., experts\]; gating is \[\] float32"
    yield Refusal(message, (torch.tensor(1.0), 1), kwargs)
    message = r"correction_bias must have shape \[8\]; correction_bias is \[1\] float32"
    yield Refusal(message, (x, 2), kwargs | {"correction_bias": torch.zeros(1)})
    message = r"correction_bias must be floating point; correction_bias is \[8\] int32"
    yield Refusal(message, (x, 2), kwargs | {"correction_bias": torch.zeros(8).int()})
    yield Refusal("k must be int, not 2.0", (x, 2.0), kwargs)


def too_many() -> Iterator[Refusal]:
    message = r"k must be at most the number of experts; k is 9, gating is \[4, 8\] float32"
    yield Refusal(message, (torch.zeros(4, 8), 9))
    yield Refusal(r"k must be at most .*; k is 1, gating is \[4, 0\]", (torch.zeros(4, 0), 1))


def softmax_refusals() -> Iterator[Refusal]:
    yield from routed_refusals()
    yield from too_many()
    for cap in (-1.0, INF, NAN):
        message = f"softcap must be finite and not negative; softcap is {cap}"
        yield Refusal(message, (torch.zeros(4, 8), 2), {"softcap": cap})


def sigmoid_refusals() -> Iterator[Refusal]:
    yield from routed_refusals()
    yield from too_many()


# The oracles go row by row: scores in float64, choices in the precision that the operator promises.

Row = np.ndarray
Score = Callable[[Row], Row]


def softmax_row(row: Row) -> Row:
    if (row == -INF).all():
        return np.zeros_like(row)
    if np.isnan(row).any() or row.max() == INF:
        return np.full_like(row, NAN)
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def sigmoid_row(row: Row) -> Row:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-row))


def order(choice: Row) -> list[int]:
    """Experts in descending order, equal ones by index."""
    return sorted(range(len(choice)), key=lambda e: (-choice[e], e))


def precision(*given: Tensor | None) -> Any:
    return np.float64 if any(t is not None and t.dtype == DOUBLE for t in given) else np.float32


def each_row(gating: Tensor, k: int, route: Callable[[Row], tuple[list[float], list[int]]]) -> Any:
    """Route row by row; ``route`` takes a row in float64 and returns its weights and ids."""
    rows = gating.double().reshape(math.prod(gating.shape[:-1]), gating.shape[-1]).numpy()
    routed = [route(row) for row in rows]
    weights = torch.tensor([w for w, _ in routed], dtype=DOUBLE).reshape(*gating.shape[:-1], k)
    ids = torch.tensor([i for _, i in routed], dtype=torch.int64).reshape(*gating.shape[:-1], k)
    return weights, ids


def weighed(scores: Row, ids: list[int], renormalize: bool) -> list[float]:
    chosen = [float(scores[e]) for e in ids]
    total = math.fsum(chosen) if not any(map(math.isnan, chosen)) else NAN
    return [w / total if total else 0.0 for w in chosen] if renormalize else chosen


def topk_softmax_oracle(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
) -> Any:
    kind = precision(gating, correction_bias)

    def route(row: Row) -> tuple[list[float], list[int]]:
        capped = softcap * np.tanh(row / softcap) if softcap else row
        # A bias far from 0 leaves little of the logit, in float32 as promised.
        scores = softmax_row(biased(capped, correction_bias, kind).astype(np.float64))
        if np.isnan(scores).any():
            return [NAN] * k, list(range(k))
        ids = order(scores.astype(kind))[:k]
        return weighed(scores, ids, renormalize), ids

    return each_row(gating, k, route)


def biased(scores: Row, bias: Tensor | None, kind: Any) -> Row:
    return scores.astype(kind) + (kind(0) if bias is None else bias.double().numpy().astype(kind))


def topk_sigmoid_oracle(
    gating: Tensor, k: int, *, renormalize: bool = False, correction_bias: Tensor | None = None
) -> Any:
    kind = precision(gating, correction_bias)

    def route(row: Row) -> tuple[list[float], list[int]]:
        scores = sigmoid_row(row)
        choice = biased(scores, correction_bias, kind)
        if np.isnan(choice).any():
            return [NAN] * k, list(range(k))
        ids = order(choice)[:k]
        return weighed(scores, ids, renormalize), ids

    return each_row(gating, k, route)


RECORDS = [
    Record(
        "topk_softmax", softmax_samples, softmax_refusals, topk_softmax_oracle, rows=("gating",)
    ),
    Record(
        "topk_sigmoid", sigmoid_samples, sigmoid_refusals, topk_sigmoid_oracle, rows=("gating",)
    ),
]
