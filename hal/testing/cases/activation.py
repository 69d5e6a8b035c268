"""Random cases of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hal.testing.cases.draw import HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES"]


def gated(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(least=0)
    lead = draw.rows(columns, dtype)
    # The exponential of a gate of -90 and below is not a normal number of float32.
    return draw.sample(draw.floats(*lead, 2 * columns, dtype=dtype, high=5))


def gelu(draw: Draw) -> Sample:
    """``1 + erf(gate)`` cancels for negative gates: they come where others outweigh them."""
    dtype, columns = draw.floating(), draw.size(least=0)
    lead = draw.rows(columns, dtype)
    few = math.prod(lead) * columns < NORMED
    gate = draw.values(*lead, columns, positive=few)
    # An infinite factor shows whether a gate of -7 is a little below 0, which float32 cannot tell.
    halves = (
        draw.spoiled(gate, math.nan, math.inf),
        draw.spoiled(draw.values(*lead, columns), math.nan),
    )
    x = (torch.cat(halves, dim=-1) * draw.power(-8, 3)).to(dtype)
    return draw.sample(draw.laid(x, expand=few))


def swigluoai(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(least=0)
    lead = draw.rows(columns, dtype)
    few = math.prod(lead) * columns < NORMED
    # The rounded exponent of the sigmoid shows where all gates are far below 0.
    x = draw.values(*lead, 2 * columns) * draw.power(-6, 1 if few else 4)
    x = x.to(dtype)
    given = {}
    if draw.once_in(2):
        given["alpha"] = draw.among(1.0, 1.702, -0.5, 0.0, 2)
    if draw.once_in(2):
        given["limit"] = draw.among(3.5, 7.0, 1, 2.0**-10, math.inf)
    return draw.sample(draw.laid(draw.spoiled(x), expand=dtype not in HALVES), **given)


def relu_squared(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(257, least=0)
    return draw.sample(draw.floats(*draw.rows(columns, dtype), columns, dtype=dtype, high=8))


def quick_gelu(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(257, least=0)
    lead = draw.rows(columns, dtype)
    few = math.prod(lead) * columns < NORMED
    # As for the sigmoid above.
    x = (draw.values(*lead, columns) * draw.power(-12, 1 if few else 5)).to(dtype)
    return draw.sample(draw.laid(draw.spoiled(x), expand=few))


def mul_add(draw: Draw) -> Sample:
    dtype, columns = draw.floating(), draw.size(257, least=0)
    shape = (*draw.rows(columns, dtype), columns)
    x = draw.floats(*shape, dtype=dtype, low=-6, high=6)
    y_dtype = draw.floating() if draw.once_in(3) else dtype
    y = draw.floats(*shape, dtype=y_dtype, low=-6, high=6)
    # Factors of few bits: a product that is rounded may cancel against the summand.
    return draw.sample(x, y, draw.among(0.0, 1, -1.0, 2.0, 0.5, -2.5, 3, 0.375))


CASES: dict[str, Callable[[Draw], Sample]] = {
    "silu_and_mul": gated,
    "gelu_and_mul": gelu,
    "gelu_tanh_and_mul": gelu,
    "swigluoai_and_mul": swigluoai,
    "relu_squared": relu_squared,
    "quick_gelu": quick_gelu,
    "mul_add": mul_add,
}
