"""From logits to token ids, by Triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.kernels import logits as logits_kernels
from hal_triton.kernels import sampling as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import WIDEST, ceil_div, rows_of, unit
from hal_triton.parameters import any_words, counts, floats, integers, words
from hal_triton.target import served

_TILE = 4096
"""Columns of a part, and of the longest row that a program holds to find its limits."""
_PIECE = 1024
"""Columns that are drawn from at once."""
_LOOK = 2048
"""Tokens of a list that are looked at at once."""
_ROOM = 16384
"""Tokens of a row that its list has room for."""
_PIVOTS = 16


def _served_first(*args: Any, **kwargs: Any) -> str | None:
    # Limits and temperatures are brought to float32, whatever they come in.
    return served(next(iter((*args, *kwargs.values()))))


softmax_supports = top_k_renorm_supports = top_p_renorm_supports = _served_first
min_p_renorm_supports = sample_supports = _served_first


def softmax(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    out = logits.new_empty(logits.shape, dtype=torch.float32)
    x, rows, stride = rows_of(logits)
    columns, given = x.shape[-1], floats(temperature)
    each = words(given, any_words(out))
    aligned = unit(columns, stride)
    numbers = columns, stride, given.stride, given.number
    if columns <= WIDEST:
        grid, *shape, num_warps = _small(rows, columns, _PIECE)
        constants = *shape, aligned
        logits_kernels.softmax(grid, (out, x, each), (rows, *numbers), constants, num_warps)
        return out
    grid = rows, ceil_div(columns, _TILE), 1
    parts = x.new_empty((rows, grid[1], 3), dtype=torch.float32)
    logits_kernels.softmax_parts(grid, (parts, x, each), numbers, (_TILE, aligned), 8)
    constants = next_power_of_2(grid[1]), _TILE, aligned
    logits_kernels.softmax_whole(grid, (out, parts, x, each), numbers, constants, 8)
    return out


def apply_token_bitmask_(
    logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None
) -> Tensor:
    columns, width = logits.shape[-1], bitmask.shape[-1]
    if logits.numel() == 0:
        return logits
    x = logits if logits.dim() == 2 else logits.reshape(-1, columns)
    if x.data_ptr() != logits.data_ptr():
        return logits.copy_(apply_token_bitmask_(x, bitmask.reshape(-1, width)).view(logits.shape))
    mask = bitmask.reshape(x.shape[0] if indices is None else indices.shape[0], width)
    mask = mask if mask.stride(1) == 1 else mask.contiguous()
    rows, block = mask.shape[0], min(next_power_of_2(columns), _PIECE)
    several = min(_PIECE // block, next_power_of_2(rows))
    grid = ceil_div(rows, several), ceil_div(columns, block), 1
    tensors = x, mask, None if indices is None else indices.contiguous()
    numbers = rows, columns, width, *x.stride(), mask.stride(0)
    logits_kernels.forbid(grid, tensors, numbers, (x.stride(1) == 1, several, block))
    return logits


def top_k_renorm(probs: Tensor, top_k: Tensor | int) -> Tensor:
    return _renorm(probs, top_k, None, None)


def top_p_renorm(probs: Tensor, top_p: Tensor | float) -> Tensor:
    return _renorm(probs, None, top_p, None)


def min_p_renorm(probs: Tensor, min_p: Tensor | float) -> Tensor:
    return _renorm(probs, None, None, min_p)


class _Limits(NamedTuple):
    """Limits as kernels take them."""

    tensors: tuple[Tensor, Tensor, Tensor]
    """top_k, top_p and min_p, or anything."""
    leading: tuple[int, ...]
    floor: tuple[int, ...]
    kinds: tuple[bool, bool]
    """Whether top_k or top_p is given, and whether min_p is."""


def _limits(
    top_k: Tensor | int | None,
    top_p: Tensor | float | None,
    min_p: Tensor | float | None,
    columns: int,
    anything: Tensor,
) -> _Limits:
    k = counts(top_k, columns)
    p, floor = floats(1.0 if top_p is None else top_p), floats(0.0 if min_p is None else min_p)
    return _Limits(
        (words(k, anything), words(p, anything), words(floor, anything)),
        (k.stride, k.stride if k.wide else -1, k.number, p.stride, p.number),
        (floor.stride, floor.number),
        (top_k is not None or top_p is not None, min_p is not None),
    )


def _small(rows: int, columns: int, tile: int) -> tuple[tuple[int, int, int], int, int, int]:
    """A grid over whole rows, the rows and columns of a program, and its warps."""
    block = next_power_of_2(columns)
    # However many there are: beside more rows a sum would be made in another order.
    several = max(tile // block, 1)
    return (ceil_div(rows, several), 1, 1), several, block, min(several * block // 512, 16)


class _Long(NamedTuple):
    """Work space of rows that are taken in parts."""

    work: Tensor
    grid: tuple[int, int, int]
    numbers: tuple[int, ...]
    """Columns, the stride of rows, the work space of each, and the room for its list."""
    parts: int
    """As a power of two."""
    aligned: int


def _long(probs: Tensor, rows: int, stride: int, lists: bool) -> _Long:
    columns, room = probs.shape[-1], _ROOM if lists else 0
    parts = ceil_div(columns, _TILE)
    space = ceil_div(2 * room + (2 * _PIVOTS + 3) * parts + 3, 16) * 16
    work = probs.new_empty((rows, space), dtype=torch.int32)
    numbers = columns, stride, space, room
    aligned = unit(columns, stride)
    return _Long(work, (rows, parts, 1), numbers, next_power_of_2(parts), aligned)


def _renorm(
    probs: Tensor,
    top_k: Tensor | int | None,
    top_p: Tensor | float | None,
    min_p: Tensor | float | None,
) -> Tensor:
    out = probs.new_empty(probs.shape)
    x, rows, stride = rows_of(probs)
    columns = x.shape[-1]
    if columns > _TILE:
        _renorm_long(out, x, rows, stride, (top_k, top_p, min_p))
        return out
    limits = _limits(top_k, top_p, min_p, columns, any_words(out))
    grid, *shape, num_warps = _small(rows, columns, _TILE)
    tensors, numbers = (out, x, *limits.tensors), (rows, columns, stride)
    constants = *limits.kinds, *shape, unit(columns, stride)
    numbers += limits.leading + limits.floor
    kernels.renorm_rows(grid, tensors, numbers, constants, num_warps)
    return out


def _renorm_long(
    out: Tensor, x: Tensor, rows: int, stride: int, given: tuple[Any, Any, Any]
) -> None:
    long = _long(x, rows, stride, given[2] is None)
    limits = _limits(*given, x.shape[-1], long.work)
    work, numbers = long.work, long.numbers
    k, p, floor = limits.tensors
    shape = long.parts, _TILE, long.aligned
    counted = limits.kinds[0]
    survey = counted, True, _TILE, long.aligned
    kernels.survey(long.grid, (work, x, k, p, work), (*numbers, *limits.leading, -1), survey)
    if counted:
        draws = work, work, work
        rest = *limits.leading, *limits.floor, -1, 0, -1, 0, -1
        listed = (True, False, False, long.parts, _TILE, _PIECE, long.aligned)
        kernels.collect(long.grid, (work, x, k, p, floor, *draws), (*numbers, *rest), listed)
        grid, rest = (rows, 1, 1), (*limits.leading, long.grid[1])
        kernels.settle(grid, (work, x, k, p), (*numbers, *rest), (long.parts, _LOOK), 8)
    else:
        kernels.weigh(long.grid, (work, x, floor), (*numbers, *limits.floor), shape)
    tensors = out, work, x, floor
    kernels.renorm_parts(long.grid, tensors, (*numbers, *limits.floor), (not counted, *shape))


def sample(
    probs: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
    seed: Tensor | int,
    offset: Tensor | int,
    indices: Tensor | None = None,
) -> Tensor:
    out = probs.new_empty((probs if indices is None else indices).shape[:1], dtype=torch.int32)
    x, _, stride = rows_of(probs)
    rows, columns = out.shape[0], x.shape[-1]
    limits = _limits(top_k, top_p, min_p, columns, out)
    draw = integers(seed), integers(offset), integers(indices)
    noise = [number for parameter in draw[:2] for number in (parameter.stride, parameter.number)]
    tensors = *limits.tensors, *(words(parameter, out) for parameter in draw)
    numbers = *limits.leading, *limits.floor, *noise, draw[2].stride
    if columns > _TILE:
        _sample_long(out, x, stride, limits.kinds, tensors, numbers)
        return out
    grid, *shape, num_warps = _small(rows, columns, _TILE)
    constants = *limits.kinds, *shape, unit(columns, stride)
    numbers = rows, columns, stride, *numbers
    kernels.sample_rows(grid, (out, x, *tensors), numbers, constants, num_warps)
    return out


def _sample_long(
    out: Tensor,
    x: Tensor,
    stride: int,
    kinds: tuple[bool, bool],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
) -> None:
    rows, limited = out.shape[0], kinds[0]
    long = _long(x, rows, stride, limited)
    work, every = long.work, (*long.numbers, *numbers)
    if any(kinds):
        survey = limited, False, _TILE, long.aligned
        given = work, x, *tensors[:2], tensors[-1]
        kernels.survey(long.grid, given, (*long.numbers, *numbers[:5], numbers[-1]), survey)
    # With a floor few pieces of a part have anything to draw; with a list drawing is rare.
    piece = _PIECE if any(kinds) else _TILE
    collected = *kinds, True, long.parts, _TILE, piece, long.aligned
    kernels.collect(long.grid, (work, x, *tensors), every, collected, 8)
    chosen = *kinds, long.parts, _LOOK
    tensors = out, work, x, *tensors
    kernels.choose((rows, 1, 1), tensors, (*every, long.grid[1]), chosen, 8 if limited else 1)
