"""The experts of a mixture by Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal import prepared
from hal_triton.configurations import measured
from hal_triton.kernels import experts as kernels
from hal_triton.layout import ceil_div, element, empty, rows_like, tile, unit
from hal_triton.moe import blocks_of, moe_align_block_size
from hal_triton.product import BLOCK, Weight, by_rows, native
from hal_triton.quant import coding
from hal_triton.target import shared_memory
from hal_triton.tiles import Tiles, expert_tiles

Run = Callable[..., Any]

_FEW = 16
"""Pairs of which each has a block of its own, as they hardly share experts."""


class _Blocks(NamedTuple):
    """Pairs by their experts, a block for each line of tiles."""

    number: int
    tiles: Tiles
    place: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """What says of ids the expert of each block, and its pairs unless it has that of its number."""


@prepared
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
) -> Run:
    (pairs, inter), (x_in, _, stride) = (topk_ids.numel(), w2.shape[2]), rows_like(x)
    blocks, single = _blocks(topk_ids, w13), element(x.device, torch.float32)
    # In float32 as the sum of two numbers: what multiplies bfloat16 takes them as they are.
    inner = element(x.device, w13.dtype) if w13.dtype == torch.bfloat16 else single
    first = _product(
        x, stride, inner, pairs, Weight(w13, w13_scale, block=BLOCK), blocks, activation
    )
    inner = inner.expand(pairs, inter)
    # The sums of the first are quantised again, where an error of theirs becomes a larger one.
    fast, of = native(w2, x.dtype), Weight(w2, w2_scale, block=BLOCK)
    second = _product(inner, inter, single, pairs, of, blocks, None, fast)
    made, add = empty(x.shape, x), _sum(x, w13.shape[0], topk_ids.shape[-1])

    def run(
        x: Tensor,
        w13: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        *,
        w13_scale: Tensor | None = None,
        w2_scale: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        ids = topk_ids.contiguous()
        placed = blocks.place(ids)
        inner, rest = first(x_in(x), None, None, w13, w13_scale, *placed)
        parts, _ = second(inner, rest, ids, w2, w2_scale, *placed)
        out = made()
        add(out, parts, topk_weights.contiguous(), ids)
        return out

    return run


def _blocks(ids: Tensor, weight: Tensor) -> _Blocks:
    pairs, experts = ids.numel(), weight.shape[0]
    single = pairs <= min(_FEW, experts) or not experts
    plan = _tiles(1 if single else pairs // experts, pairs, weight)
    if single:
        return _Blocks(pairs, plan, lambda ids: (ids, None))
    align = moe_align_block_size.prepare(ids, experts, plan.m)

    def place(ids: Tensor) -> tuple[Tensor, Tensor]:
        pair_of, expert_of, _ = align(ids)
        return expert_of, pair_of

    return _Blocks(blocks_of(pairs, experts, plan.m), plan, place)


def _tiles(rows: int, pairs: int, weight: Tensor) -> Tiles:
    """What is good for both products, with so many rows of an expert."""
    _, outs, columns = weight.shape
    if outs % 128 or unit(columns) == 1:
        # Of larger tiles registers do not hold the addresses and scales.
        return expert_tiles(min(rows, 64), weight.dtype)
    sizes, usual = (pairs, *weight.shape, 8 * weight.itemsize), expert_tiles(rows, weight.dtype)
    return Tiles(*measured("experts", weight.device, sizes, usual))


def _sum(x: Tensor, experts: int, choices: int) -> Run:
    rows, columns = x.shape[:-1].numel(), x.shape[-1]
    grid, shape, num_warps = tile("choices", x.device, rows, columns)
    numbers, constants = (rows, columns, experts, choices), (*shape, unit(columns))
    return kernels.add_choices.bind(grid, numbers, constants, num_warps)


def _product(
    x: Tensor,
    x_stride: int,
    like: Tensor,
    pairs: int,
    weight: Weight,
    blocks: _Blocks,
    activation: str | None,
    fast: bool = False,
) -> Run:
    """What makes [pairs, n], whose pairs are spread evenly over the rows of tensors like ``x``.

    It takes x and, if there is one, its second part, ids if a row is there only for a known one,
    the weight's data and scale, and where the pairs are placed. The result has the dtype of
    ``like``, and a second part unless that is float32. See ``multiply`` for fast.
    """
    columns, rows, experts = x.shape[-1], x.shape[:-1].numel(), weight.data.shape[0]
    outs = weight.data.shape[1] // (1 if activation is None else 2)
    data_in, encode = by_rows(weight.data), _nothing
    plan, parts = blocks.tiles, int(activation is None and x.dtype == torch.bfloat16) + 1
    scale_expert = groups = 0
    if weight.scale is not None:
        encode = _encode(x, x_stride, weight.data)
        plan, x_stride = plan._replace(k=min(plan.k, BLOCK[1])), columns
        groups, scale_expert = ceil_div(columns, BLOCK[1]), weight.scale.stride(0)
    elif x.dtype.itemsize > weight.data.dtype.itemsize:
        plan = plan._replace(k=plan.k // 2)  # In float32 a row of x takes twice the room.
    elif parts == 2:
        plan = plan._replace(num_stages=max(plan.num_stages - 1, 3))  # So it does in two parts.
    bits = 8 * weight.data.dtype.itemsize
    of_x = bits if weight.scale is not None else 8 * x.dtype.itemsize * parts
    plan = plan.fitted(of_x, bits, shared_memory(x.device))
    strides = x_stride, *data_in(weight.data).stride()[:2]
    scale_row, scale_step, _, *block = weight.numbers(columns)
    numbers = (
        blocks.number, pairs, outs, columns, experts, pairs // max(rows, 1), *strides,
        groups, scale_expert, scale_row, scale_step, *block,
    )  # fmt: skip
    shared = 0 if weight.scale is None else weight.shared(outs, plan.n, activation)
    grid = blocks.number * plan.across(outs, activation), 1, 1
    constants = activation, shared, fast, *plan[:3], unit(columns, outs, *strides)
    launch = kernels.multiply_blocks.bind(grid, numbers, constants, *plan[3:])
    made, whole = empty((pairs, outs), like), like.dtype == torch.float32

    def run(x: Tensor, rest: Any, ids: Any, data: Tensor, scale: Any, *placed: Any) -> Any:
        out, out_rest = made(), None if whole else made()
        x, by_x = encode(x, ids)
        launch(out, out_rest, x, rest, data_in(data), by_x, scale, *placed)
        return out, out_rest

    return run


def _nothing(x: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    return x, None


def _encode(x: Tensor, stride: int, weight: Tensor) -> Run:
    """What quantises rows like these as the weight is; with ids, those of its experts."""
    columns, into = x.shape[-1], coding(x, x.shape[-1], None, BLOCK[1], weight.dtype)
    plan, experts = into.pieces(columns), weight.shape[0]
    launch = into.bind("x", plan, columns, (stride, 0), experts=experts)

    def run(x: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        q, scale = into.codes(), into.scales()
        launch(q, scale, x, None, None, None, None, ids)
        return q, scale

    return run
