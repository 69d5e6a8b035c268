"""The sum of two attentions by Triton."""

from __future__ import annotations

from torch import Tensor

from hal import prepared
from hal_triton.attention_launch import Run, results
from hal_triton.attention_parts import columns_together
from hal_triton.kernels import merge as kernels
from hal_triton.layout import tile, unit


@prepared
def merge_attention_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Run:
    tokens, heads, columns = out_a.shape
    empty = results(out_a, columns)
    (a_in, a), (b_in, b) = columns_together(out_a), columns_together(out_b)
    strides = *a[:2], *b[:2]
    # One program along the columns even if there are none: their log-sums remain.
    grid, shape, num_warps = tile(tokens * heads, max(columns, 1))
    numbers = tokens * heads, heads, columns, *strides, *lse_a.stride(), *lse_b.stride()
    launch = kernels.merge.bind(grid, numbers, (*shape, unit(columns, *strides)), num_warps)

    def run(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        both = empty()
        launch(*both, a_in(out_a), lse_a, b_in(out_b), lse_b)
        return both

    return run
