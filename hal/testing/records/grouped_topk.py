"""Record of the choice of the best experts of the best groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.topk import (
    BF16,
    DOUBLE,
    HALF,
    INF,
    NAN,
    Row,
    Score,
    bias_for,
    biased,
    close_calls,
    each_row,
    extremes,
    layouts,
    order,
    precision,
    routed_refusals,
    sigmoid_row,
    softmax_row,
    weighed,
)

# Experts, groups, kept groups, chosen experts.
GROUPS = [
    *[(1, 1, 1, 1), (8, 1, 1, 2), (8, 2, 1, 4), (12, 3, 2, 5), (15, 5, 2, 6), (16, 16, 5, 5)],
    *[(64, 1, 1, 6), (128, 4, 2, 6), (160, 8, 3, 6), (256, 8, 4, 8), (384, 1, 1, 8)],
    *[(512, 16, 8, 10), (60, 6, 6, 60)],
]


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", {}
    yield ", as it is", {"renormalize": False}
    yield ", two shared", {"num_fused_shared_experts": 2, "routed_scaling_factor": 2.5}
    scaled = {"routed_scaling_factor": 2.5, "scale_on_output": True}
    yield ", scaled", scaled
    yield ", one shared and scaled", scaled | {"num_fused_shared_experts": 1}
    only = {"num_fused_shared_experts": 3, "renormalize": False, "routed_scaling_factor": 16}
    yield ", three shared, as it is", only


def grouped_samples() -> Iterator[Sample]:
    draw = Draws(4, 2.0)
    turns = itertools.cycle(options())
    for experts, num_groups, topk_groups, k in GROUPS:
        groups = {"num_groups": num_groups, "topk_groups": topk_groups}
        for scoring in ("softmax", "sigmoid"):
            for bias in (None, bias_for(experts, scale=0.1)):
                kind = f"{experts}/{num_groups} {scoring}{', biased' if bias is not None else ''}"
                kwargs = groups | {"scoring": scoring, "correction_bias": bias}
                name, more = next(turns)
                args = draw(3, experts), k + more.get("num_fused_shared_experts", 0)
                yield Sample(kind + name, args, kwargs | more)
    yield from grouped_views(draw)
    yield from grouped_combinations(draw)


def grouped_views(draw: Draws) -> Iterator[Sample]:
    for scoring in ("softmax", "sigmoid"):
        kwargs = {"num_groups": 4, "topk_groups": 2, "scoring": scoring}
        kwargs["num_fused_shared_experts"] = 1
        for i, (name, gating) in enumerate(layouts(draw, 24)):
            if i % 2 == ("softmax", "sigmoid").index(scoring):
                yield Sample(f"{name}, {scoring}", (gating, 5), kwargs)
        for name, gating in extremes(draw, 12):
            bias = None if name.startswith("all") else torch.arange(12) % 3 / 4
            yield Sample(f"{name}, {scoring}", (gating, 6), kwargs | {"correction_bias": bias})
        # The two largest of the first group are equal, and both count.
        twice = torch.tensor([[1.0, 1, -3, -3, 1.2, -3, -3, -3], [1.2, -3, -3, -3, 1, 1, -3, -3]])
        two = {"num_groups": 2, "topk_groups": 1, "correction_bias": torch.zeros(8)}
        yield Sample(f"equal maxima, {scoring}", (twice, 2), two | {"scoring": scoring})
        for value in (-3.0, -1e4, -2e4, -INF, NAN):
            one = bias_for(24)
            one[7] = value
            biased = kwargs | {"correction_bias": one}
            yield Sample(f"bias with a {value}, {scoring}", (draw(5, 24), 5), biased)
            biased = kwargs | {"correction_bias": torch.full((24,), value, dtype=DOUBLE)}
            yield Sample(f"bias of {value}, {scoring}", (draw(5, 24), 5), biased)


def grouped_combinations(draw: Draws) -> Iterator[Sample]:
    """Every option with every other."""
    groups = {"num_groups": 4, "topk_groups": 2, "routed_scaling_factor": 2.5}
    values = ("softmax", "sigmoid"), (False, True), (False, True), (0, 2), (False, True)
    for scoring, with_bias, renormalize, shared, on_output in itertools.product(*values):
        name = f"{scoring}, bias {with_bias}, renormalize {renormalize}, {shared} shared"
        kwargs: dict[str, Any] = groups | {"scoring": scoring, "renormalize": renormalize}
        kwargs |= {"num_fused_shared_experts": shared, "scale_on_output": on_output}
        kwargs["correction_bias"] = bias_for(24) if with_bias else None
        yield Sample(f"{name}, scaled {on_output}", (draw(3, 24), 5 + shared), kwargs)
    for name, gating, bias in close_calls():
        for scoring in ("softmax", "sigmoid"):
            kwargs = groups | {"scoring": scoring, "correction_bias": bias}
            yield Sample(f"{name}, {scoring}", (gating, 3), kwargs)
    for dtype in (HALF, BF16):
        kwargs = groups | {"correction_bias": bias_for(24, dtype)}
        yield Sample(f"bias {dtype}", (draw(3, 24), 5), kwargs)


def grouped_refusals() -> Iterator[Refusal]:
    groups: dict[str, Any] = {"num_groups": 4, "topk_groups": 2}
    yield from routed_refusals(**groups)
    wrong: list[tuple[str, int, dict[str, Any]]] = [
        ("num_groups must be at least 1; num_groups is 0", 2, {"num_groups": 0}),
        ("num_groups must divide the 8 experts; num_groups is 3", 2, {"num_groups": 3}),
        ("topk_groups must be from 1 to num_groups = 4; topk_groups is 5", 2, {"topk_groups": 5}),
        ("topk_groups must be from 1 to num_groups = 4; topk_groups is 0", 2, {"topk_groups": 0}),
        ("k without the shared experts must be from 1 to the 4 of the kept groups; k is 5", 5, {}),
        ("k without .*; k is 2, num_fused_shared", 2, {"num_fused_shared_experts": 2}),
        ("num_fused_.* must not be negative; .* is -1", 2, {"num_fused_shared_experts": -1}),
        ("scoring must be 'softmax' or 'sigmoid'; scoring is 'tanh'", 2, {"scoring": "tanh"}),
    ]
    for factor in (0.0, -1.0, INF, NAN):
        message = "routed_scaling_factor must be finite and above 0; routed_scaling_factor is"
        wrong += [(f"{message} {factor}", 2, {"routed_scaling_factor": factor})]
    for message, k, changes in wrong:
        yield Refusal(message, (torch.zeros(4, 8), k), groups | changes)


def grouped_topk_oracle(
    gating: Tensor,
    k: int,
    *,
    num_groups: int,
    topk_groups: int,
    scoring: str = "softmax",
    correction_bias: Tensor | None = None,
    renormalize: bool = True,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0,
    scale_on_output: bool = False,
) -> Any:
    kind, experts = precision(gating, correction_bias), gating.shape[-1]
    score: Score = softmax_row if scoring == "softmax" else sigmoid_row
    routed, factor = k - num_fused_shared_experts, routed_scaling_factor
    shared_ids = list(range(experts, experts + num_fused_shared_experts))

    def route(row: Row) -> tuple[list[float], list[int]]:
        scores = score(row)
        choice = biased(scores, correction_bias, kind)
        if np.isnan(choice).any():
            return [NAN] * k, [*range(routed), *shared_ids]
        members = np.arange(experts).reshape(num_groups, experts // num_groups)
        best = 1 if correction_bias is None else 2
        sums = np.array([sum(sorted(choice[group])[-best:]) for group in members])
        allowed = [e for group in order(sums)[:topk_groups] for e in members[group].tolist()]
        ids = sorted(allowed, key=lambda e: (-choice[e], e))[:routed]
        weights = weighed(scores, ids, renormalize) + [1 / factor] * num_fused_shared_experts
        scaled = [w * factor for w in weights] if scale_on_output else weights
        return scaled, ids + shared_ids

    return each_row(gating, k, route)


RECORDS = [
    Record(
        "grouped_topk", grouped_samples, grouped_refusals, grouped_topk_oracle, rows=("gating",)
    ),
]
