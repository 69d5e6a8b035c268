"""The experts of a mixture by torch's grouped product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peers.registry import DoesNotFit, on_cuda


def grouped(x: Tensor, w13: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
    """Pairs of a token and an expert, sorted by expert; those of experts elsewhere come last."""
    (tokens, k), experts = topk_ids.shape, w13.shape[0]
    ids, order = topk_ids.flatten().sort()
    marks = torch.arange(1, experts + 1, device=ids.device, dtype=ids.dtype)
    ends = torch.searchsorted(ids, marks, out_int32=True)
    gate, up = torch._grouped_mm(x[order // k], w13.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    down = torch._grouped_mm(functional.silu(gate) * up, w2.transpose(1, 2), offs=ends)
    # Rows past the last expert were never written.
    down = down.where((ids < experts).unsqueeze(-1), 0)
    pairs = torch.empty_like(down).index_copy_(0, order, down)
    weights = topk_weights.unsqueeze(-1).to(x.dtype)
    return (pairs.view(tokens, k, -1) * weights).sum(1)


def _without_scales(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Tensor, **scales: Any) -> Tensor:
        if scales:
            raise DoesNotFit("has no scales of blocks")
        return function(*args)

    return call


on_cuda("torch", "fused_experts")(_without_scales(grouped))
