"""Random tensors, the same ones for the same seed."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Draws normal numbers of a ``deviation``, and integers."""

    def __init__(self, seed: int = 0, deviation: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.deviation = deviation

    def __call__(
        self, *shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0
    ) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * self.deviation + mean).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)
