"""Random cases of the ops that quantise what another has computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import F32, F64, NORMED, Draw
from hal.testing.cases.quant import GROUPS, dtype_for, layout_for, static
from hal.testing.record import Sample

__all__ = ["CASES"]


def quantised(draw: Draw, x: Tensor) -> dict[str, Any]:
    """How a fused op quantises: by a scale that is given, or in groups."""
    if draw.once_in(3):
        return {"scale": static(draw)} | dtype_for(draw)
    # A row of nothing has no groups; what it has as one group is left to the samples.
    size = draw.among(*GROUPS, *((None,) if x.shape[-1] else ()))
    return {"group_size": size} | dtype_for(draw) | layout_for(draw, x)


def fused_silu(draw: Draw) -> Sample:
    columns = draw.size(least=0)
    x = draw.floats(*draw.lead(4), 2 * columns, dtype=draw.floating(), high=5)
    return draw.sample(x, **quantised(draw, x))


def weight_for(draw: Draw, columns: int, dtype: torch.dtype) -> Tensor:
    kind = draw.floating() if draw.once_in(4) else dtype
    return draw.laid(draw.values(columns, positive=True).to(kind))


def eps_for(draw: Draw) -> tuple[float, ...]:
    return () if draw.once_in(2) else (draw.among(1e-6, 1e-5, 1e-3, 1.0),)


def fused_norm(draw: Draw) -> Sample:
    dtype = draw.floating()
    x = draw.floats(*draw.lead(4), draw.size(least=0), dtype=dtype)
    weight = None if draw.once_in(5) else weight_for(draw, x.shape[-1], dtype)
    return draw.sample(x, weight, *eps_for(draw), **quantised(draw, x))


def fused_add(draw: Draw) -> Sample:
    dtype = draw.floating()
    # The sum is a result as well: many of 16 bits would be judged by their norm.
    wide = dtype in (F32, F64)
    shape = (*draw.lead(4), draw.size(129 if wide else 15, least=0))
    if not wide and math.prod(shape) >= NORMED:
        shape = (4, shape[-1])
    x = draw.floats(*shape, dtype=dtype, low=-4, high=4)
    residual = draw.floats(*shape, dtype=draw.among(F32, dtype), low=-4, high=4)
    weight = weight_for(draw, shape[-1], dtype)
    return draw.sample(x, residual, weight, *eps_for(draw), **quantised(draw, x))


CASES: dict[str, Callable[[Draw], Sample]] = {
    "silu_and_mul_quant": fused_silu,
    "rms_norm_quant": fused_norm,
    "fused_add_rms_norm_quant": fused_add,
}
