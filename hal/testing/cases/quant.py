"""Random cases of the quantisers, and of what reads their codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F16, F32, F64, Draw
from hal.testing.record import Sample

__all__ = ["CASES", "GROUPS", "dtype_for", "layout_for", "static"]

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
GROUPS = (16, 32, 64, 128)
# The bits below hold no NaN of an 8-bit float.
FINITE = {E4M3: 0x7E, E5M2: 0x7B}


def codes(draw: Draw, *shape: int) -> Tensor:
    """Every code of an 8-bit dtype, those of NaN and infinities seldom."""
    dtype = draw.among(E4M3, E5M2, INT8)
    drawn = draw.integers(*shape, low=-128, high=128).to(INT8)
    if dtype == INT8 or draw.once_in(8):
        return drawn.view(dtype)
    magnitude = (drawn.int() & 0x7F).clamp(max=FINITE[dtype])
    return (magnitude | drawn.int() & 0x80).to(torch.uint8).view(dtype)


def rows_for(draw: Draw, columns: int) -> Tensor:
    """Few rows: the oracle quantises group by group."""
    return draw.floats(*draw.lead(4), columns, dtype=draw.floating())


def layout_for(draw: Draw, x: Tensor) -> dict[str, Any]:
    """Where the scales of ``x`` lie, and what they are rounded to."""
    given: dict[str, Any] = {}
    if x.dim() > 1 and draw.once_in(2):
        given["scale_layout"] = draw.among("row", "column", "tma")
    if draw.once_in(3):
        given["ue8m0"] = True
    return given


def dtype_for(draw: Draw) -> dict[str, Any]:
    """The dtype of the codes, or none."""
    return {"dtype": draw.among(None, E4M3, E5M2, INT8)}


def static(draw: Draw) -> Tensor:
    """The scale of a whole tensor."""
    scale = draw.values(1, positive=True) * draw.power(-12, 4)
    return scale.reshape(draw.among((), (1,), (1, 1)))


def group(draw: Draw) -> Sample:
    x = rows_for(draw, draw.size(257, least=0))
    size = () if draw.once_in(4) else (draw.among(*GROUPS),)
    return draw.sample(x, *size, **dtype_for(draw), **layout_for(draw, x))


def token(draw: Draw) -> Sample:
    return draw.sample(rows_for(draw, draw.size(257, least=0)), **dtype_for(draw))


def tensor(draw: Draw) -> Sample:
    x = rows_for(draw, draw.size(257, least=0))
    scale = (static(draw),) if draw.once_in(2) else ()
    return draw.sample(x, *scale, **dtype_for(draw))


def dequantize(draw: Draw) -> Sample:
    """Few codes: the oracle multiplies them one by one."""
    lead, columns = draw.among((1,), (2,), (3,), (), (1, 2), (0,)), draw.size(17, least=0)
    q = draw.laid(codes(draw, *lead, columns))
    dtype = draw.among(None, F32, F16, BF16, F64)
    if draw.once_in(4):
        whole = draw.values(1, positive=True).reshape(draw.among((), (1,)))
        return draw.sample(q, whole, dtype=dtype)
    size = draw.among(None, 1, 2, 3, 5, 16, 128)
    groups = 1 if size is None else -(-columns // size)
    if size is not None and lead and draw.once_in(3):
        words = draw.integers(*lead, -(-groups // 4), 4, low=100, high=150).to(torch.uint8)
        packed = words.view(torch.int32).squeeze(-1)
        return draw.sample(q, draw.laid(packed), size, dtype=dtype)
    scale = draw.scaled(draw.values(*lead, groups, positive=True), F32, -6, 6)
    scale = draw.laid(scale.to(draw.among(F32, F32, F16, BF16, F64)))
    return draw.sample(q, scale, size, dtype=dtype)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "per_token_group_quant": group,
    "per_token_quant": token,
    "per_tensor_quant": tensor,
    "dequantize": dequantize,
}
