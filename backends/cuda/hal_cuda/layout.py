"""How matrices have to lie in memory for NVIDIA's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aligned", "as_rows", "begin_aligned", "together"]

UNIT = 16
"""Bytes that tensor cores load at once."""


def as_rows(x: Tensor) -> Tensor:
    """[..., k] as [rows, k], ``aligned``."""
    return aligned(x.reshape(x.shape[:-1].numel(), x.shape[-1]))


def aligned(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous and begin at multiples of 16 bytes; a copy if need be."""
    stride = x.stride(0)
    lies = x.stride(1) == 1 and stride >= x.shape[1] and stride * x.itemsize % UNIT == 0
    return begin_aligned(x) if lies else x.clone(memory_format=torch.contiguous_format)


def begin_aligned(x: Tensor) -> Tensor:
    """A tensor that begins at a multiple of 16 bytes; a contiguous copy if need be."""
    aligned = x.data_ptr() % UNIT == 0
    return x if aligned else x.clone(memory_format=torch.contiguous_format)


def together(x: Tensor) -> Tensor:
    """A vector whose elements lie side by side from a multiple of 16 bytes on."""
    return begin_aligned(x.contiguous())
