"""The experts of a mixture by Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from hal_triton.kernels import experts as kernels
from hal_triton.layout import ceil_div, rows_of, tile, unit
from hal_triton.moe import moe_align_block_size
from hal_triton.product import BLOCK, Tiles, Weight, by_rows, tiles
from hal_triton.quant import per_token_group_quant

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 16
"""Pairs of which each has a block of its own, as they hardly share experts."""


class _Blocks(NamedTuple):
    """Pairs by their experts, a block for each line of tiles."""

    number: int
    expert_of: Tensor
    pair_of: Tensor | None
    tiles: Tiles


def fused_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    out, ids, pairs = x.new_empty(x.shape), topk_ids.contiguous(), topk_ids.numel()
    blocks = _blocks(ids, w13)
    inner, parts = (x.new_empty((pairs, w.shape[2]), dtype=torch.float32) for w in (w2, w13))
    _multiply(inner, x, Weight(w13, w13_scale, block=BLOCK), blocks, activation)
    _multiply(parts, inner, Weight(w2, w2_scale, block=BLOCK), blocks, None)
    rows, columns = x.shape[:-1].numel(), x.shape[-1]
    grid, shape, num_warps = tile(rows, columns)
    numbers = rows, columns, w13.shape[0], ids.shape[-1]
    tensors = out, parts, topk_weights.contiguous(), ids
    kernels.add_choices(grid, tensors, numbers, (*shape, unit(columns)), num_warps)
    return out


def _blocks(ids: Tensor, weight: Tensor) -> _Blocks:
    pairs, experts = ids.numel(), weight.shape[0]
    if pairs <= min(_FEW, experts) or not experts:
        return _Blocks(pairs, ids, None, tiles(1, weight.dtype.itemsize))
    plan = tiles(pairs // experts, weight.dtype.itemsize)
    pair_of, expert_of, _ = moe_align_block_size(ids, experts, plan.m)
    return _Blocks(expert_of.numel(), expert_of, pair_of, plan)


def _multiply(
    out: Tensor, x: Tensor, weight: Weight, blocks: _Blocks, activation: str | None
) -> None:
    """Write ``out`` [pairs, n], whose pairs are spread evenly over the rows of ``x``."""
    (pairs, outs), columns, by_x = out.shape, x.shape[-1], None
    if not out.numel():
        return
    choices = pairs // x.shape[:-1].numel()
    if weight.scale is not None:
        x, by_x = per_token_group_quant(x, BLOCK[1], dtype=weight.data.dtype)
    x, _, x_stride = rows_of(x)
    data = by_rows(weight.data)
    m, n, k, num_warps, num_stages = blocks.tiles
    if by_x is not None:
        k = BLOCK[1]
    elif x.dtype.itemsize > data.dtype.itemsize:
        k //= 2  # In float32 a row of x takes twice the room.
    strides = x_stride, data.stride(0), data.stride(1)
    scale_row, scale_step, _, *block = weight.numbers(columns)
    numbers = (
        blocks.number, pairs, outs, columns, data.shape[0], choices, *strides,
        0 if by_x is None else by_x.shape[-1],
        0 if weight.scale is None else weight.scale.stride(0), scale_row, scale_step, *block,
    )  # fmt: skip
    tensors = out, x, data, by_x, weight.scale, blocks.expert_of, blocks.pair_of
    across = ceil_div(outs, n if activation is None else n // 2)
    constants = activation, m, n, k, unit(columns, *strides)
    grid = blocks.number * across, 1, 1
    kernels.multiply_blocks(grid, tensors, numbers, constants, num_warps, num_stages)
