"""Random cases of the experts of a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hal.testing.cases.draw import BF16, F16, F32, HALVES, NORMED, Draw
from hal.testing.cases.gemv import routing
from hal.testing.cases.matmul import E4M3, E5M2
from hal.testing.record import Sample

__all__ = ["CASES"]

ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh")


def leads(draw: Draw) -> tuple[int, ...]:
    return draw.among((), (1,), (2,), (3,), (1, 2), (0,))


def mixture(draw: Draw) -> Sample:
    if draw.once_in(4):
        return eight_bit(draw)
    dtype, lead = draw.floating(), leads(draw)
    experts, topk = draw.below(5, 1), draw.among(1, 2, 2, 3, 0)
    hidden, inter = draw.size(33, least=0), draw.size(33, least=0)
    if dtype in HALVES and math.prod(lead) * hidden >= NORMED:
        hidden = 15
    # Few results, and those that share few inner values, are sums of positive terms, which cannot
    # cancel.
    few = math.prod(lead) * hidden < NORMED or inter < 17
    tensors = [
        draw.values(*shape, positive=few) * draw.power(-2, 0)
        for shape in ((*lead, hidden), (experts, 2 * inter, hidden), (experts, hidden, inter))
    ]
    x, w13, w2 = (draw.laid(tensor.to(dtype)) for tensor in tensors)
    x = draw.spoiled(x) if x.is_contiguous() else x
    weights, ids = routing(draw, *lead, topk, experts=experts)
    return draw.sample(x, w13, w2, weights, ids, activation=draw.among(*ACTIVATIONS))


def eight_bit(draw: Draw) -> Sample:
    """A case whose codes no rounding error can change.

    A product that is off in its last bit could be given the next code, which is off by 6 %. So
    every scale of the tokens is a power of two, every gate is so large that its activation is the
    gate itself, and all that is quantised is an integer of few bits times a power of two.
    """
    lead, experts, topk = leads(draw), draw.below(4, 1), draw.among(1, 2)
    hidden, inter = draw.size(17), draw.size(17)
    code = draw.among(E4M3, E5M2)
    x = draw.coarse(*lead, hidden, most=3).abs()
    x[..., draw.below(hidden)] = torch.finfo(code).max / draw.among(1, 2, 4)
    gate = draw.integers(experts, inter, hidden, low=1, high=3).float()
    up = draw.coarse(experts, inter, hidden, most=1)
    w13, w2 = torch.cat((gate, up), dim=1), draw.coarse(experts, hidden, inter, most=3)
    scales = [torch.exp2(draw.integers(experts, 1, 1, low=0, high=3).float()) for _ in range(2)]
    weights, ids = routing(draw, *lead, topk, experts=experts)
    x = draw.laid(x.to(draw.among(F32, BF16, F16)))
    given: dict[str, Any] = {"w13_scale": scales[0], "w2_scale": draw.laid(scales[1])}
    w13, w2 = draw.laid(w13.to(code)), draw.laid(w2.to(code))
    return draw.sample(x, w13, w2, weights, ids, **given, activation=draw.among(*ACTIVATIONS))


CASES: dict[str, Callable[[Draw], Sample]] = {"fused_experts": mixture}
