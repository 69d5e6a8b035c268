"""How matrices have to lie in memory for NVIDIA's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aligned", "as_rows", "together"]

UNIT = 16
"""Bytes that tensor cores load at once."""


def as_rows(x: Tensor) -> Tensor:
    """[..., k] as [rows, k], ``aligned``."""
    return aligned(x.reshape(x.shape[:-1].numel(), x.shape[-1]))


def aligned(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous and begin at multiples of 16 bytes; a copy if need be."""
    stride = x.stride(0)
    lies = x.stride(1) == 1 and stride >= x.shape[1] and stride * x.itemsize % UNIT == 0
    whole = lies and x.data_ptr() % UNIT == 0
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def together(x: Tensor) -> Tensor:
    """A vector whose elements lie side by side from a multiple of 16 bytes on."""
    x = x.contiguous()
    return x if x.data_ptr() % UNIT == 0 else x.clone()
