"""The sum of two attentions by Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal_triton.kernels import merge as kernels
from hal_triton.layout import tile, unit

if TYPE_CHECKING:
    from torch import Tensor


def merge_attention_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    tokens, heads, columns = out_a.shape
    out, lse = out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)
    out_a, out_b = (x if x.stride(2) == 1 else x.contiguous() for x in (out_a, out_b))
    strides = *out_a.stride()[:2], *out_b.stride()[:2]
    # One program along the columns even if there are none: their log-sums remain.
    grid, shape, num_warps = tile(tokens * heads, max(columns, 1))
    numbers = tokens * heads, heads, columns, *strides, *lse_a.stride(), *lse_b.stride()
    tensors = out, lse, out_a, lse_a, out_b, lse_b
    kernels.merge(grid, tensors, numbers, (*shape, unit(columns, *strides)), num_warps)
    return out, lse
