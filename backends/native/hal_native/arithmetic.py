"""The dtype the references compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()
