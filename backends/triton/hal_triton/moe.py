"""Routing to experts, and what surrounds them, by Triton."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from hal_triton.kernels import moe as kernels
from hal_triton.kernels import moe_align
from hal_triton.launch import INTERPRETED, next_power_of_2
from hal_triton.layout import ceil_div, rows_of, tile, unit
from hal_triton.target import served

if TYPE_CHECKING:
    from torch import Tensor

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


def topk_softmax(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    weights, ids, experts = *_results(gating, k), gating.shape[-1]
    gating, rows, stride = rows_of(gating)
    block = next_power_of_2(experts)
    several, grid, num_warps = _plan(rows, block)
    tensors = weights, ids, gating, correction_bias
    numbers = rows, experts, k, stride, _stride(correction_bias), softcap
    constants = softcap > 0, renormalize, several, block
    kernels.topk_softmax(grid, tensors, numbers, constants, num_warps)
    return weights, ids


def topk_sigmoid(
    gating: Tensor, k: int, *, renormalize: bool = False, correction_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _topk(gating, k, k, correction_bias, renormalize)


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
) -> tuple[Tensor, Tensor]:
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


def _results(gating: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*gating.shape[:-1], k)
    return gating.new_empty(shape, dtype=torch.float32), gating.new_empty(shape, dtype=torch.int32)


@functools.lru_cache(maxsize=4096)
def _plan(rows: int, block: int) -> tuple[int, tuple[int, int, int], int]:
    """Rows of a program, the grid, and warps, of which a row has as many whatever the rows."""
    several = max(min(_MANY // block, next_power_of_2(rows) // _PROGRAMS), _ONE // block, 1)
    return several, (ceil_div(rows, several), 1, 1), max(1, block // _WARP)


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
) -> tuple[Tensor, Tensor]:
    weights, ids, experts = *_results(gating, k), gating.shape[-1]
    if groups[0] in (groups[1], experts):
        groups = 1, 1  # The best of all are of the best groups.
    gating, rows, stride = rows_of(gating)
    sides = _sides(experts, groups[0])
    several, grid, num_warps = _plan(rows, sides[0] * sides[1])
    tensors = weights, ids, gating, bias
    numbers = rows, experts, routed, k, *groups, stride, _stride(bias), *scales
    constants = softmax, renormalize, 1 if bias is None else 2, several, *sides
    kernels.topk_scores(grid, tensors, numbers, constants, num_warps)
    return weights, ids


def moe_align_block_size(
    topk_ids: Tensor, num_experts: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    pairs, topk_ids = topk_ids.numel(), topk_ids.contiguous()
    reached = min(pairs, num_experts)
    blocks = reached + (pairs - reached) // block_size
    sizes = blocks * block_size, blocks, 1
    ids, owners, used = (topk_ids.new_empty(size, dtype=torch.int32) for size in sizes)
    out = ids, owners, used
    if pairs <= _FEW and num_experts <= _FEW_EXPERTS:
        _align_few(out, topk_ids, pairs, num_experts, block_size)
    else:
        _align_many(out, topk_ids, pairs, num_experts, block_size)
    return out


def moe_align_block_size_supports(
    topk_ids: Tensor, num_experts: int, block_size: int
) -> str | None:
    del topk_ids, block_size
    if num_experts > _MOST_EXPERTS:
        return f"more than {_MOST_EXPERTS} experts are left to the reference"
    return None


def _align_few(
    out: tuple[Tensor, Tensor, Tensor], topk_ids: Tensor, pairs: int, experts: int, block_size: int
) -> None:
    grid = max(1, ceil_div(pairs, _OWN), min(64, out[0].numel() // 4096)), 1, 1
    numbers = pairs, experts, block_size, out[1].numel()
    constants = _bins(pairs), _bins(experts), _OWN, _FILL
    moe_align.align_few(grid, (*out, topk_ids), numbers, constants)


def _align_many(
    out: tuple[Tensor, Tensor, Tensor], topk_ids: Tensor, pairs: int, experts: int, block_size: int
) -> None:
    ids, owners, used = out
    chunk = ceil_div(ceil_div(pairs, _PAIRS), _CHUNKS) * _PAIRS
    chunks, bins = ceil_div(pairs, chunk), min(_bins(experts), _BINS)
    table = topk_ids.new_empty((chunks, experts), dtype=torch.int32)
    tensors, numbers = (table, ids, owners, topk_ids), (pairs, experts, chunk)
    sizes = ids.numel(), owners.numel()
    grid = chunks, ceil_div(experts, bins), 1
    moe_align.count_pairs(grid, tensors, (*numbers, *sizes), (_PAIRS, bins, _FILL))
    tensors, numbers = (table, used), (chunks, experts, block_size)
    moe_align.place_chunks((1, 1, 1), tensors, numbers, _TABLE, 8)
    tensors, numbers = (ids, owners, table, topk_ids), (pairs, experts, chunk, block_size)
    moe_align.place_pairs((chunks, 1, 1), tensors, numbers, (_PAIRS,))


def _bins(count: int) -> int:
    """No fewer than a program has threads, which histograms are spread over."""
    return max(128, next_power_of_2(count))


def moe_sum(x: Tensor, *, scale: float = 1.0) -> Tensor:
    out, columns = x.new_empty((*x.shape[:-2], x.shape[-1])), x.shape[-1]
    if x.stride(-1) != 1:
        x = x.contiguous()
    x = x.flatten(0, -3) if x.dim() > 2 else x.unsqueeze(0)
    rows, k, _ = x.shape
    grid, shape, num_warps = tile(rows, columns)
    strides = x.stride()[:2]
    constants = *shape, unit(columns, *strides)
    kernels.sum_experts(grid, (out, x), (rows, columns, k, *strides, scale), constants, num_warps)
    return out
