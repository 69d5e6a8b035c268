"""Routing to experts, and what surrounds them, by Triton."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.configurations import measured
from hal_triton.kernels import moe as kernels
from hal_triton.kernels import moe_align
from hal_triton.launch import INTERPRETED, next_power_of_2
from hal_triton.layout import ceil_div, empty, rows_like, same, tile, unit
from hal_triton.target import served

Run = Callable[..., Any]

_EXPERTS = 8192
"""Those of a token that registers hold, and whose numbers fit into 13 bits."""
_WARP = 1024
"""Those for which it has one warp, within which much is quicker."""
# A program costs the interpreter more than what is in it.
_ONE = 4096 if INTERPRETED else 128
_MANY = 512
"""Logits that a program has at least, and at most of several rows."""
_PROGRAMS = 1024
"""With no more rows than that a program has one, unless it is short."""

_FEW, _FEW_EXPERTS = 1024, 512
"""Up to so many pairs and experts, every program may as well count them all."""
_OWN = 64 if INTERPRETED else 16
"""Pairs that such a program places."""
_CHUNKS, _PAIRS, _BINS = 128, 128, 1024
"""Of more pairs, the chunks, the pairs at once, and the experts that are counted at once."""
_TABLE = 32, 256
"""Chunks and experts of a tile of the table of counts."""
_FILL = 1024
"""Places that are filled at once."""
_MOST_EXPERTS = 65536
"""For each of which a chunk has a count."""


@prepared
def topk_softmax(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
) -> Run:
    rows_in, rows, stride = rows_like(gating)
    experts = gating.shape[-1]
    block = next_power_of_2(experts)
    several, grid, num_warps = _plan(gating, rows, block)
    numbers = rows, experts, k, stride, _stride(correction_bias), softcap
    constants = softcap > 0, renormalize, several, block
    launch = kernels.topk_softmax.bind(grid, numbers, constants, num_warps)
    return _chosen(gating, k, rows_in, launch)


@prepared
def topk_sigmoid(
    gating: Tensor, k: int, *, renormalize: bool = False, correction_bias: Tensor | None = None
) -> Run:
    return _topk(gating, k, k, correction_bias, renormalize)


@prepared
def grouped_topk(
    gating: Tensor,
    k: int,
    *,
    num_groups: int,
    topk_groups: int,
    scoring: str = "softmax",
    correction_bias: Tensor | None = None,
    renormalize: bool = True,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0,
    scale_on_output: bool = False,
) -> Run:
    shared = 1 / routed_scaling_factor
    return _topk(
        gating,
        k - num_fused_shared_experts,
        k,
        correction_bias,
        renormalize,
        scoring == "softmax",
        (num_groups, topk_groups),
        (routed_scaling_factor, 1.0) if scale_on_output else (1.0, shared),
    )


def _limited(gating: Tensor, *args: Any, **kwargs: Any) -> str | None:
    if gating.dim() and gating.shape[-1] > _EXPERTS:
        return f"more than {_EXPERTS} experts are left to the reference"
    return served(gating, *args, **kwargs)


topk_softmax_supports = topk_sigmoid_supports = _limited


def grouped_topk_supports(
    gating: Tensor, k: int, *, num_groups: int, correction_bias: Tensor | None = None, **kwargs: Any
) -> str | None:
    places = math.prod(_sides(gating.shape[-1], num_groups))
    if places > _EXPERTS:
        return f"more than {_EXPERTS} experts are left to the reference"
    return served(gating, correction_bias)


def _plan(like: Tensor, rows: int, block: int) -> tuple[int, tuple[int, int, int], int]:
    """Rows of a program, the grid, and warps, of which a row has as many whatever the rows."""
    several = max(min(_MANY // block, next_power_of_2(rows) // _PROGRAMS), _ONE // block, 1)
    usual = several, max(1, block // _WARP)
    several, num_warps = measured("route", like.device, (rows, block), usual)
    return several, (ceil_div(rows, several), 1, 1), num_warps


def _stride(bias: Tensor | None) -> int:
    return 0 if bias is None else bias.stride(0)


def _sides(experts: int, num_groups: int) -> tuple[int, int]:
    return next_power_of_2(num_groups), next_power_of_2(experts // num_groups)


def _topk(
    gating: Tensor,
    routed: int,
    k: int,
    bias: Tensor | None,
    renormalize: bool,
    softmax: bool = False,
    groups: tuple[int, int] = (1, 1),
    scales: tuple[float, float] = (1.0, 1.0),
) -> Run:
    (rows_in, rows, stride), experts = rows_like(gating), gating.shape[-1]
    if groups[0] in (groups[1], experts):
        groups = 1, 1  # The best of all are of the best groups.
    sides = _sides(experts, groups[0])
    several, grid, num_warps = _plan(gating, rows, sides[0] * sides[1])
    numbers = rows, experts, routed, k, *groups, stride, _stride(bias), *scales
    constants = softmax, renormalize, 1 if bias is None else 2, several, *sides
    launch = kernels.topk_scores.bind(grid, numbers, constants, num_warps)
    return _chosen(gating, k, rows_in, launch)


def _chosen(gating: Tensor, k: int, rows_in: Run, launch: Run) -> Run:
    """What makes weights and ids [..., k] of logits like these."""
    shape = *gating.shape[:-1], k
    weights_of, ids_of = empty(shape, gating, torch.float32), empty(shape, gating, torch.int32)

    def run(
        gating: Tensor, *_: Any, correction_bias: Tensor | None = None, **_named: Any
    ) -> tuple[Tensor, Tensor]:
        weights, ids = weights_of(), ids_of()
        launch(weights, ids, rows_in(gating), correction_bias)
        return weights, ids

    return run


@prepared
def moe_align_block_size(topk_ids: Tensor, num_experts: int, block_size: int) -> Run:
    pairs = topk_ids.numel()
    blocks = blocks_of(pairs, num_experts, block_size)
    made = [empty((size,), topk_ids, torch.int32) for size in (blocks * block_size, blocks, 1)]
    few = pairs <= _FEW and num_experts <= _FEW_EXPERTS
    align = (_align_few if few else _align_many)(topk_ids, num_experts, block_size, blocks)

    def run(topk_ids: Tensor, *_: Any, **_named: Any) -> tuple[Tensor, Tensor, Tensor]:
        ids, owners, used = made[0](), made[1](), made[2]()
        align(ids, owners, used, topk_ids.contiguous())
        return ids, owners, used

    return run


def blocks_of(pairs: int, experts: int, size: int) -> int:
    """The most blocks of one expert that pairs may take."""
    reached = min(pairs, experts)
    return reached + (pairs - reached) // size


def moe_align_block_size_supports(
    topk_ids: Tensor, num_experts: int, block_size: int
) -> str | None:
    del topk_ids, block_size
    if num_experts > _MOST_EXPERTS:
        return f"more than {_MOST_EXPERTS} experts are left to the reference"
    return None


def _align_few(topk_ids: Tensor, experts: int, block_size: int, blocks: int) -> Run:
    pairs = topk_ids.numel()
    grid = max(1, ceil_div(pairs, _OWN), min(64, blocks * block_size // 4096)), 1, 1
    constants = _bins(pairs), _bins(experts), _OWN, _FILL
    return moe_align.align_few.bind(grid, (pairs, experts, block_size, blocks), constants)


def _align_many(topk_ids: Tensor, experts: int, block_size: int, blocks: int) -> Run:
    pairs = topk_ids.numel()
    chunk = max(ceil_div(ceil_div(pairs, _PAIRS), _CHUNKS), 1) * _PAIRS
    chunks, bins = ceil_div(pairs, chunk), min(_bins(experts), _BINS)
    table_of = empty((chunks, experts), topk_ids, torch.int32)
    numbers, grid = (pairs, experts, chunk), (chunks, ceil_div(experts, bins), 1)
    sizes = blocks * block_size, blocks
    count = moe_align.count_pairs.bind(grid, (*numbers, *sizes), (_PAIRS, bins, _FILL))
    sizes = chunks, experts, block_size
    place_chunks = moe_align.place_chunks.bind((1, 1, 1), sizes, _TABLE, 8)
    place_pairs = moe_align.place_pairs.bind((chunks, 1, 1), (*numbers, block_size), (_PAIRS,))

    def run(ids: Tensor, owners: Tensor, used: Tensor, topk_ids: Tensor) -> None:
        table = table_of()
        count(table, ids, owners, topk_ids)
        place_chunks(table, used)
        place_pairs(ids, owners, table, topk_ids)

    return run


def _bins(count: int) -> int:
    """No fewer than a program has threads, which histograms are spread over."""
    return max(128, next_power_of_2(count))


@prepared
def moe_sum(x: Tensor, *, scale: float = 1.0) -> Run:
    given, columns = _by_rows(x), x.shape[-1]
    x_in = same if given.data_ptr() == x.data_ptr() else _by_rows
    rows, k, _ = given.shape
    grid, shape, num_warps = tile("sum", x.device, rows, columns)
    strides = given.stride()[:2]
    numbers, constants = (rows, columns, k, *strides, scale), (*shape, unit(columns, *strides))
    launch = kernels.sum_experts.bind(grid, numbers, constants, num_warps)
    made = empty((*x.shape[:-2], columns), x)

    def run(x: Tensor, **_: Any) -> Tensor:
        out = made()
        launch(out, x_in(x))
        return out

    return run


def _by_rows(x: Tensor) -> Tensor:
    """[rows, experts, columns], whose columns lie side by side."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x.flatten(0, -3) if x.dim() > 2 else x.unsqueeze(0)
