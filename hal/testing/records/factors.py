"""Factors of the products with quantised matrices, and their values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.records.draws import Draws

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
COLUMNS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 255, 257, 1408]
ROWS = [1, 2, 3, 7, 16, 33]


class Maker(Draws):
    """Draws codes, their scales and whole factors."""

    def codes(self, *shape: int, dtype: torch.dtype = E4M3) -> Tensor:
        """Codes over the whole range of ``dtype``."""
        if dtype == INT8:
            return self.integers(-127, 128, *shape).to(INT8)
        return (self(*shape) * 100).clamp(-448, 448).to(dtype)

    def scale(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * 1e-2 + 1e-4

    def nibbles(self, *shape: int) -> Tensor:
        return self.integers(0, 256, *shape).to(torch.uint8)

    def factors(self, m: int, n: int, k: int, dtype: torch.dtype = E4M3) -> tuple[Tensor, ...]:
        """Codes and a scale for each row."""
        a, b = self.codes(m, k, dtype=dtype), self.codes(n, k, dtype=dtype)
        return a, b, self.scale(m), self.scale(n)

    def blocks(self, m: int, n: int, k: int, rows: int = 128, columns: int = 128) -> Any:
        """Codes and a scale for each block."""
        across = math.ceil(k / columns)
        a, b = self.codes(m, k), self.codes(n, k)
        return a, b, self.scale(m, across), self.scale(math.ceil(n / rows), across)

    def packed(self, m: int, n: int, k: int, size: int, dtype: torch.dtype = F32) -> Any:
        """Activations, bytes of two codes, and a scale for each group."""
        scales = self.scale(n, math.ceil(k / size)).to(dtype)
        return self(m, k, dtype=dtype), self.nibbles(n, k // 2), scales


def numbers(x: Tensor) -> np.ndarray:
    """A tensor of any dtype in float64."""
    return (x.double() if x.dtype == torch.float64 else x.float().double()).numpy()


def flat_rows(x: Tensor) -> np.ndarray:
    """[..., k] in float64 as [rows, k]."""
    return numbers(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
