"""Records of the operators around a mixture of experts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Powers of two, their neighbours, and the experts of models: 60, 72, 160, 257, 384.
EXPERTS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 60, 64, 72, 128, 160, 256, 257, 384, 512]
INF, NAN = math.inf, math.nan


class Draws:
    """Random tensors, the same ones in each run."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = FLOAT, scale: float = 2.0) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


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
    yield "far apart", draw(5, experts, scale=300.0)
    yield "all of float16", torch.full((2, experts), 6e4).half()


def bias_for(experts: int, dtype: torch.dtype = FLOAT, scale: float = 0.5) -> Tensor:
    return Draws(experts)(experts, dtype=dtype, scale=scale)


def routed_samples(seed: int) -> Iterator[Sample]:
    """Samples of ``(gating, k, renormalize, correction_bias)``."""
    draw = Draws(seed)
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
    yield from biases(draw)


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
    draw = Draws(1)
    for experts in (7, 16, 60, 257):
        for cap in (1.0, 30):
            gating, kwargs = draw(3, experts), {"softcap": cap}
            yield Sample(f"{experts} capped at {cap}", (gating, 4), kwargs)
            kwargs = kwargs | {"correction_bias": bias_for(experts), "renormalize": True}
            yield Sample(f"{experts} capped at {cap}, biased", (gating, 4), kwargs)
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
    large = bias_for(12) * 1e3
    yield Sample("a bias that swallows the score", (Draws(3)(4, 12), 4), {"correction_bias": large})


GROUPS = [(1, 1, 1, 1), (8, 1, 1, 2), (8, 2, 1, 4), (12, 3, 2, 5), (15, 5, 2, 6), (16, 16, 5, 5)]
GROUPS += [(64, 1, 1, 6), (128, 4, 2, 6), (160, 8, 3, 6), (256, 8, 4, 8), (384, 1, 1, 8)]
GROUPS += [(512, 16, 8, 10), (60, 6, 6, 60)]


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
    draw = Draws(4)
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
        for value in (-3.0, -1e4, -2e4, -INF, NAN):
            one = bias_for(24)
            one[7] = value
            biased = kwargs | {"correction_bias": one}
            yield Sample(f"bias with a {value}, {scoring}", (draw(5, 24), 5), biased)
            biased = kwargs | {"correction_bias": torch.full((24,), value, dtype=DOUBLE)}
            yield Sample(f"bias of {value}, {scoring}", (draw(5, 24), 5), biased)


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


def align_samples() -> Iterator[Sample]:
    draw = Draws(5)
    for experts in EXPERTS:
        block = (1, 16, 64)[experts % 3]
        ids = draw.integers(0, experts, 33, 6)
        yield Sample(f"33x6 of {experts} by {block}", (ids.int(), experts, block))
    for shape in [(), (0,), (1,), (7,), (0, 8), (1, 8), (3, 1), (2, 3, 4), (257, 2)]:
        for dtype in (torch.int32, torch.int64):
            ids = draw.integers(0, 8, *shape).to(dtype)
            yield Sample(f"{shape} {dtype}", (ids, 8, 4))
    yield from align_values(draw)


def align_values(draw: Draws) -> Iterator[Sample]:
    for dtype in (torch.int32, torch.int64):
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        some = draw.integers(-2, 10, 20, 3).to(dtype)
        some[3] = torch.tensor([low, high, -1], dtype=dtype)
        yield Sample(f"ids that are no expert {dtype}", (some, 8, 4))
    yield Sample("no id is an expert", (torch.full((5, 2), -1), 8, 4))
    yield Sample("one expert has all", (torch.full((9, 2), 5), 8, 4))
    yield Sample("whole blocks", (torch.arange(8).repeat(16), 8, 16))
    yield Sample("one more than whole blocks", (torch.arange(8).repeat(17), 8, 16))
    yield Sample("the worst case", (torch.tensor([0, 1, 2, 3, 3, 3, 3]), 4, 3))
    yield Sample("a block larger than all", (draw.integers(0, 4, 3, 2), 4, 128))
    ids = draw.integers(0, 8, 6, 10)
    yield Sample("transposed", (ids.t(), 8, 4))
    yield Sample("every other column", (ids[:, ::2], 8, 4))
    yield Sample("expanded", (ids[:1].expand(6, 10), 8, 4))
    yield Sample("offset by one element", (ids.flatten()[1:], 8, 4))


def align_refusals() -> Iterator[Refusal]:
    ids = torch.zeros(4, 2).int()
    for dtype in ("float32", "int16"):
        message = rf"topk_ids must be int32 or int64; topk_ids is \[4, 2\] {dtype}"
        yield Refusal(message, (ids.to(getattr(torch, dtype)), 8, 4))
    yield Refusal("num_experts must be at least 1; num_experts is 0", (ids, 0, 4))
    yield Refusal("block_size must be at least 1; block_size is 0", (ids, 8, 0))
    huge = ids[:1, :1].expand(2**16, 2**15)
    message = r"topk_ids must have fewer than 2\*\*31 elements; topk_ids is \[65536, 32768\] int32"
    yield Refusal(message, (huge, 8, 4))


def sum_samples() -> Iterator[Sample]:
    draw = Draws(6)
    for hidden in [0, 1, 2, 3, 7, 8, 17, 63, 65, 128, 511, 1024]:
        for dtype in (FLOAT, HALF, BF16):
            yield Sample(f"3x6x{hidden} {dtype}", (draw(3, 6, hidden, dtype=dtype),))
    for k in (0, 1, 2, 9, 64):
        yield Sample(f"{k} experts", (draw(4, k, 65),), {"scale": 2.5})
    for shape in [(3, 8), (0, 3, 8), (2, 0, 3, 8), (2, 5, 3, 9), (1, 1, 1), (2, 1, 2, 3, 8)]:
        yield Sample(f"shape {shape}", (draw(*shape),))
    yield Sample("float64", (draw(5, 4, 33, dtype=DOUBLE),), {"scale": 0.3})
    for scale in (0.0, 1, -2.5, 16.0, 1e-3):
        yield Sample(f"scale {scale}", (draw(5, 8, 65, dtype=BF16),), {"scale": scale})
    yield Sample("hidden first", (draw(65, 3, 4).permute(2, 1, 0),))
    yield Sample("experts first", (draw(3, 4, 65).transpose(0, 1),))
    yield Sample("columns of a wider tensor", (draw(4, 3, 96)[..., 17:80],))
    yield Sample("every other column", (draw(4, 3, 65)[..., ::2],))
    yield Sample("every other expert", (draw(4, 6, 65)[:, ::2],))
    yield Sample("expanded", (draw(4, 1, 65).expand(4, 6, 65),))
    yield Sample("offset by one element", (draw(4 * 3 * 17 + 1)[1:].view(4, 3, 17),))
    for value in (0.0, -6e4, 1e-38, INF, NAN):
        yield Sample(f"all {value}", (torch.full((2, 3, 65), value),))
        one = draw(4, 3, 65)
        one[1, 2, 5] = value
        yield Sample(f"one {value}", (one,))
    one[2, 0, 7], one[2, 1, 7] = INF, -INF
    yield Sample("two infinities", (one,))
    many = torch.full((2, 9, 65), 6e4)
    yield Sample("beyond float16", (many.half(),), {"scale": 0.1})
    yield Sample("4096 ones", (torch.ones(1, 4096, 65, dtype=BF16),))


def sum_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 2, 8)
    yield Refusal(r"x must be \[..., k, hidden\]; x is \[8\] float32", (x[0, 0],))
    yield Refusal(r"x must be floating point; x is \[4, 2, 8\] int64", (x.long(),))
    for scale in (INF, NAN):
        yield Refusal(f"scale must be finite; scale is {scale}", (x,), {"scale": scale})


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


def align_oracle(topk_ids: Tensor, num_experts: int, block_size: int) -> Any:
    flat = topk_ids.flatten().tolist()
    blocks: list[tuple[int, list[int]]] = []
    for expert in range(num_experts):
        own = [pair for pair, e in enumerate(flat) if e == expert]
        for start in range(0, len(own), block_size):
            block = own[start : start + block_size]
            blocks.append((expert, block + [len(flat)] * (block_size - len(block))))
    used = len(blocks) * block_size
    # The worst case: a pair for each expert, and the others such that they need whole blocks.
    worst = len(flat)
    if len(flat) > num_experts:
        worst = num_experts + (len(flat) - num_experts) // block_size
    blocks += [(-1, [len(flat)] * block_size)] * (worst - len(blocks))
    pairs = torch.tensor([pair for _, block in blocks for pair in block], dtype=torch.int64)
    return pairs, torch.tensor([e for e, _ in blocks], dtype=torch.int64), torch.tensor([used])


def sum_oracle(x: Tensor, *, scale: float = 1.0) -> Tensor:
    total = torch.zeros(*x.shape[:-2], x.shape[-1], dtype=DOUBLE)
    for one in x.double().unbind(-2):
        total = total + one
    return total * scale


RECORDS = [
    Record("topk_softmax", softmax_samples, softmax_refusals, topk_softmax_oracle),
    Record("topk_sigmoid", sigmoid_samples, sigmoid_refusals, topk_sigmoid_oracle),
    Record("grouped_topk", grouped_samples, grouped_refusals, grouped_topk_oracle),
    Record("moe_align_block_size", align_samples, align_refusals, align_oracle),
    Record("moe_sum", sum_samples, sum_refusals, sum_oracle),
]
