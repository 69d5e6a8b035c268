"""Random cases of the routing to experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import F32, F64, HALVES, Draw
from hal.testing.record import Sample

__all__ = ["CASES"]

EXPERTS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 60, 64, 65, 72)


def logits(draw: Draw, lead: tuple[int, ...], experts: int, span: int = 64) -> Tensor:
    """Multiples of 1/16 up to ``span`` of them: two scores are equal, or no rounding can tell."""
    few = 2 if draw.once_in(6) else span
    x = draw.integers(*lead, experts, low=-few, high=few + 1) / 16
    return x.to(draw.floating())


def spoiled(draw: Draw, x: Tensor) -> Tensor:
    """Now and then NaN or an infinity, in one place or in a whole row."""
    if not x.numel() or not draw.once_in(6):
        return x
    x, value = x.clone(), draw.among(math.nan, math.inf, -math.inf, -math.inf)
    rows = x.view(-1, x.shape[-1])
    columns = slice(None) if draw.once_in(2) else draw.below(x.shape[-1])
    rows[draw.below(len(rows)), columns] = value
    return x


def bias_for(draw: Draw, experts: int) -> Tensor:
    bias = draw.integers(experts, low=-8, high=9) / 8
    return draw.laid(bias.to(draw.floating()))


def plain(draw: Draw) -> Sample:
    return _routed(draw)


def softmax(draw: Draw) -> Sample:
    """A cap makes scores of all sizes, of which two may all but coincide: few experts then."""
    return _routed(draw, softcap=draw.among(2.0, 8.0, 30) if draw.once_in(4) else None)


def _routed(draw: Draw, **given: Any) -> Sample:
    experts = draw.among(*EXPERTS)
    k = draw.below(min(experts, 9) + 1, 1)
    gating = draw.laid(spoiled(draw, logits(draw, draw.lead(4), experts)))
    # The cap is applied before the bias, which then is added to what has been rounded.
    biased = given.get("softcap") is None and draw.once_in(2)
    bias = bias_for(draw, experts) if biased else None
    renormalize = draw.among(None, True, False)
    return draw.sample(gating, k, renormalize=renormalize, correction_bias=bias, **given)


def grouped(draw: Draw) -> Sample:
    num_groups, size = draw.among(1, 1, 2, 3, 4, 8), draw.among(1, 2, 3, 4, 5, 8, 16)
    topk_groups = draw.below(num_groups + 1, 1)
    routed = draw.below(min(topk_groups * size, 8) + 1, 1)
    shared = draw.among(0, 0, 1, 2)
    scoring, biased = draw.among(None, "softmax", "sigmoid"), draw.once_in(2)
    experts, lead = num_groups * size, draw.lead(4)
    gating = _apart(draw, lead, num_groups, size) if biased else logits(draw, lead, experts)
    options = {
        "scoring": scoring,
        "correction_bias": bias_for(draw, experts) if biased else None,
        "renormalize": draw.among(None, True, False),
        "num_fused_shared_experts": shared or draw.among(None, 0),
        "routed_scaling_factor": draw.among(None, 1.0, 2.5, 16),
        "scale_on_output": draw.among(None, True, False),
    }
    groups = {"num_groups": num_groups, "topk_groups": topk_groups}
    gating = draw.laid(spoiled(draw, gating))
    return draw.sample(gating, routed + shared, **groups, **options)


def _apart(draw: Draw, lead: tuple[int, ...], num_groups: int, size: int) -> Tensor:
    """Logits above 0 that no two groups share.

    Sums of scores and biases that are equal on paper, such as those of -1 and 1 with those of -2
    and 2, differ by how they are rounded.
    """
    steps = draw.integers(*lead, num_groups, size, low=0, high=128 // num_groups)
    x = (steps * num_groups + torch.arange(1, num_groups + 1)[:, None]) / 64
    # Of float16 and wider every one is a number of its own.
    return x.flatten(-2).to(draw.among(F32, torch.float16, F64))


def align(draw: Draw) -> Sample:
    experts = draw.among(1, 2, 3, 7, 8, 16, 33)
    shape = () if draw.once_in(16) else (*draw.lead(5), draw.size(9, least=0))
    ids = draw.integers(*shape, low=draw.among(-1, 0, 0), high=experts + draw.among(0, 0, 1))
    ids = draw.laid(ids.to(draw.among(torch.int32, torch.int64)))
    return draw.sample(ids, experts, draw.among(1, 2, 3, 8, 16, 64))


def total(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(129, least=0)
    lead = draw.rows(columns, dtype)
    x = draw.values(*lead, draw.below(10), columns)
    x = (x * draw.power(-6, 6)).to(dtype)
    x = draw.laid(draw.spoiled(x), expand=dtype not in HALVES)
    return draw.sample(x, scale=draw.among(None, 1.0, 2.5, -0.5, 0.0, 3))


CASES: dict[str, Callable[[Draw], Sample]] = {
    "topk_softmax": softmax,
    "topk_sigmoid": plain,
    "grouped_topk": grouped,
    "moe_align_block_size": align,
    "moe_sum": total,
}
