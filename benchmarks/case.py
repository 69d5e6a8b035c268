"""A call that is timed: how to make it, the bytes and operations it needs, how to judge results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from judges import Judge, by_norm

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

BF16 = torch.bfloat16
F8 = torch.float8_e4m3fn


@attrs.frozen
class Case:
    """A call of an op.

    Attributes:
        family: What it belongs to.
        op: The form in ``hal.ops``.
        shape: What a table says of it.
        rows: How many tokens or sequences there are, by which a summary tells small from large.
        make: Makes the arguments on a device, anew each time.
        moved: The fewest bytes that are read or written.
        flops: Operations of the multiplying units.
        judge: How far results are from the reference's.
        reference: What is right, where hal's reference would take too much memory.
    """

    family: str
    op: str
    shape: str
    rows: int
    make: Callable[[torch.device], Arguments]
    moved: int
    flops: int = 0
    judge: Judge = by_norm
    reference: Callable[..., Any] | None = None


def randn(
    device: torch.device, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0
) -> Tensor:
    """Normal numbers; 8-bit ones are rounded from bfloat16, and no larger than they can be."""
    if dtype == F8:
        # A larger number becomes NaN.
        largest = torch.finfo(F8).max
        return (
            (torch.randn(shape, device=device, dtype=BF16) * scale).clamp(-largest, largest).to(F8)
        )
    return torch.randn(shape, device=device, dtype=dtype) * scale


def factors(device: torch.device, *shape: int) -> Tensor:
    """Scales of codes: from 0.005 to 0.015, float32."""
    return torch.rand(shape, device=device) * 0.01 + 0.005


def routing(device: torch.device, tokens: int, experts: int, k: int) -> tuple[Tensor, Tensor]:
    """Weights [tokens, k] float32 that sum to 1, and ids [tokens, k] int32 that are distinct."""
    weights, ids = torch.rand(tokens, experts, device=device).softmax(-1).topk(k)
    return weights / weights.sum(-1, keepdim=True), ids.int()


def chosen(tokens: int, local: int, experts: int, k: int) -> int:
    """How many of ``local`` experts some token is expected to choose."""
    return max(1, round(local * (1 - (1 - k / experts) ** tokens)))
