"""The dtype the references compute in, and rows filled up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def padded(x: Tensor, columns: int) -> Tensor:
    """``x`` [..., k] with zeros behind its columns, or cut, to [..., columns]."""
    # torch 2.7 does not trace the padding of no columns by none.
    return x if columns == x.shape[-1] else pad(x, (0, columns - x.shape[-1]))


def fitting(value: float, dtype: torch.dtype) -> float:
    """A number as ``dtype`` has it, infinite past its range, where torch raises instead."""
    return math.copysign(math.inf, value) if abs(value) > torch.finfo(dtype).max else value
