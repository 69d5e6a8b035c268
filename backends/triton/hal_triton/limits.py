"""How programs go over rows that have limits: over whole ones, or over parts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hal_triton.configurations import Config, measured
from hal_triton.kernels.limits import PIVOTS
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div, empty, unit
from hal_triton.parameters import Parameter, counts, floats

__all__ = ["PART", "Limits", "Long", "in_parts", "limits_of", "searching", "whole"]

PART = 4096
"""Columns of a part, and of the longest row that a program holds to find its limits.

It is the same for all devices and sizes, as masses are summed by parts.
"""
_ROOM = 16384
"""Tokens of a row that its list has room for."""


class Limits(NamedTuple):
    """Limits as kernels take them."""

    given: tuple[Parameter, Parameter, Parameter]
    """top_k, top_p and min_p."""
    leading: tuple[int, ...]
    floor: tuple[int, ...]
    kinds: tuple[bool, bool]
    """Whether top_k or top_p is given, and whether min_p is."""


def limits_of(
    top_k: Tensor | int | None,
    top_p: Tensor | float | None,
    min_p: Tensor | float | None,
    probs: Tensor,
) -> Limits:
    device = probs.device
    k, p = counts(top_k, probs.shape[-1], device), floats(1.0 if top_p is None else top_p, device)
    floor = floats(0.0 if min_p is None else min_p, device)
    return Limits(
        (k, p, floor),
        (k.stride, k.stride if k.wide else -1, k.number, p.stride, p.number),
        (floor.stride, floor.number),
        (top_k is not None or top_p is not None, min_p is not None),
    )


def whole(rows: int, columns: int, tile: int) -> tuple[tuple[int, int, int], int, int, int]:
    """A grid over whole rows, the rows and columns of a program, and its warps."""
    block = next_power_of_2(columns)
    # However many there are: beside more rows a sum would be made in another order.
    several = max(tile // block, 1)
    return (ceil_div(rows, several), 1, 1), several, block, min(several * block // 512, 16)


class Long(NamedTuple):
    """How rows are taken in parts."""

    work: Callable[[], Tensor]
    """What makes work space."""
    grid: tuple[int, int, int]
    numbers: tuple[int, ...]
    """Columns, the stride of rows, the work space of each, and the room for its list."""
    parts: int
    """As a power of two."""
    aligned: int


def in_parts(probs: Tensor, rows: int, stride: int, lists: bool, part: int = PART) -> Long:
    columns, room = probs.shape[-1], _ROOM if lists else 0
    parts = ceil_div(columns, part)
    space = ceil_div(2 * room + (2 * PIVOTS.value + 4) * parts + 3, 16) * 16
    work = empty((rows, space), probs, torch.int32)
    numbers, aligned = (columns, stride, space, room), unit(columns, stride)
    return Long(work, (rows, parts, 1), numbers, next_power_of_2(parts), aligned)


def searching(probs: Tensor) -> Config:
    """How many tokens of a list a program looks at at once, and its warps.

    Masses are summed in the order that it says, so that it is the same for any number of rows.
    """
    return measured("search", probs.device, (probs.shape[-1],), (2048, 8))
