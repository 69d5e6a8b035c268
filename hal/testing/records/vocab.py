"""Rows over a vocabulary, and how the oracles read them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.records.draws import Draws

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1408]
HALF = torch.float16, torch.bfloat16
INT32_MIN = -(2**31)


class Maker(Draws):
    """Draws rows over a vocabulary."""

    def logits(self, *shape: int, scale: float = 3.0) -> Tensor:
        return self(*shape) * scale

    def probs(self, *shape: int) -> Tensor:
        """Multiples of 2**-22 that sum to about 1: in float32 any partial sum of them is exact."""
        return (self.logits(*shape).softmax(-1) * 2**22).round() / 2**22

    def bits(self, *shape: int) -> Tensor:
        return self.integers(INT32_MIN, 2**31, *shape).to(torch.int32)


def views(values: Any) -> Iterator[tuple[str, Tensor]]:
    """Six rows or fewer of ``values(*shape)``, laid out in memory in every unusual way."""
    yield "transposed", values(6, 40).t().contiguous().t()
    yield "rows of a wider tensor", values(4, 96)[:, 16:80]
    yield "every other row", values(8, 33)[::2]
    yield "every other column", values(4, 64)[:, ::2]
    yield "expanded", values(1, 32).expand(4, 32)
    yield "offset by one element", values(129)[1:].view(2, 64)


def with_nan(values: Tensor) -> Tensor:
    values[1, 5] = math.nan
    return values


def rows_of(x: Tensor) -> np.ndarray:
    """[..., vocab] as float64 [rows, vocab]."""
    return x.double().reshape(math.prod(x.shape[:-1]), x.shape[-1]).numpy()


def each_row(value: Any, x: Tensor, rows: int) -> list[Any]:
    """The parameter of each row, rounded to the precision that ``x`` is computed in."""
    if isinstance(value, Tensor):
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
        return rounded(np.broadcast_to(value.reshape(-1), rows), x)
    return rounded(np.full(rows, value), x)


def rounded(values: np.ndarray, x: Tensor) -> list[Any]:
    if values.dtype.kind == "f" and x.dtype != torch.float64:
        values = values.astype(np.float32)
    return values.tolist()
