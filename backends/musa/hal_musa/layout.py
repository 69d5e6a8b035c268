"""How tensors lie as MATE takes them, and what a ragged kernel leaves as it was."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hal_musa.libraries import fits

__all__ = ["blocks_in_range", "columns", "finished", "int32", "unseen"]


def unseen(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention of queries that see no key."""
    lse = q.new_full(q.shape[:2], -math.inf, dtype=torch.float32)
    return q.new_zeros((*q.shape[:2], v.shape[-1])), lse


def finished(out: Tensor, lse: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """0 and -inf past the last sequence, into which a kernel for ragged sequences writes nothing.

    Args:
        out: [tokens, heads, value_head_dim].
        lse: [tokens, heads], any strides.
        starts: [sequences + 1].
    """
    past = torch.arange(out.shape[0], device=out.device)[:, None] >= starts[-1]
    out = out.masked_fill(past.unsqueeze(-1), 0.0)
    return out.contiguous(), lse.masked_fill(past, -math.inf).contiguous()


def columns(x: Tensor) -> Tensor:
    """Heads whose columns lie side by side from multiples of 16 bytes on; a copy if need be."""
    lies = fits(x) and x.data_ptr() % 16 == 0
    return x if lies else x.clone(memory_format=torch.contiguous_format)


def int32(x: Tensor) -> Tensor:
    """A vector or table of integers as MATE takes it."""
    return x.to(torch.int32).contiguous()


def blocks_in_range(block_table: Tensor, blocks: int) -> Tensor:
    """The table as MATE takes it, with a block that there is where none is needed."""
    return int32(block_table.clamp(0, blocks - 1))
