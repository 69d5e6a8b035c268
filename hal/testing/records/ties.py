"""Numbers whose quotient by their scale is halfway between two codes."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.testing.compare import all_codes

__all__ = ["odd_ties"]


def odd_ties(dtype: torch.dtype) -> Tensor:
    """[100, 128] float32: row i has the scale 2 * i + 1, exactly, and all ties of that.

    A product with the inverse of the scale misses some, and rounds them to the other code.
    """
    codes = all_codes(dtype)
    codes = codes[codes >= 0]
    ties = (codes[1:] + codes[:-1]) / 2
    row = torch.cat((codes[-1:], ties))
    row = torch.cat((row, -row))[:128]
    return (row * torch.arange(1, 200, 2)[:, None]).float()
