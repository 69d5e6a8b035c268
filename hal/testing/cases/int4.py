"""Random cases of the ops that put two 4-bit codes into a byte and take them out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hal.testing.cases.draw import Draw
from hal.testing.record import Sample

__all__ = ["CASES"]


def pack(draw: Draw) -> Sample:
    shape = (*draw.among((1,), (2,), (3,), (), (1, 2), (0,)), 2 * draw.size(33, least=0))
    dtype = draw.among(torch.int8, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
    span = draw.among(9, 17, 128)
    least = 0 if dtype == torch.uint8 else -span
    x = draw.laid(draw.integers(*shape, low=least, high=span).to(dtype))
    return draw.sample(x, offset=draw.among(None, draw.below(16)))


def unpack(draw: Draw) -> Sample:
    packed = draw.integers(*draw.lead(), draw.size(129, least=0), low=0, high=256)
    return draw.sample(draw.laid(packed.to(torch.uint8)), offset=draw.among(None, draw.below(16)))


CASES: dict[str, Callable[[Draw], Sample]] = {"pack_int4": pack, "unpack_int4": unpack}
