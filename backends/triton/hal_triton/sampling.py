"""From logits to token ids, by Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton import draws
from hal_triton.kernels import logits as logits_kernels
from hal_triton.kernels import parts as part_kernels
from hal_triton.kernels import renorm as renorm_kernels
from hal_triton.kernels import sampling as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import WIDEST, ceil_div, empty, empty_like, rows_like, same, unit
from hal_triton.limits import PART, Limits, Long, in_parts, limits_of, searching, whole
from hal_triton.parameters import floats, integers
from hal_triton.target import served

Run = Callable[..., Any]

_PIECE = 1024
"""Columns that are masked, or divided, at once."""


def _served_first(*args: Any, **kwargs: Any) -> str | None:
    # Limits and temperatures are brought to float32, whatever they come in.
    return served(next(iter((*args, *kwargs.values()))))


softmax_supports = top_k_renorm_supports = top_p_renorm_supports = _served_first
min_p_renorm_supports = sample_supports = _served_first


@prepared
def softmax(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Run:
    made, given = empty(logits.shape, logits, torch.float32), floats(temperature, logits.device)
    rows_in, rows, stride = rows_like(logits)
    columns = logits.shape[-1]
    numbers = columns, stride, given.stride, given.number
    if columns > WIDEST:
        launch = _long_softmax(logits, rows, numbers)
    else:
        grid, *shape, num_warps = whole(rows, columns, _PIECE)
        constants = *shape, unit(columns, stride)
        launch = logits_kernels.softmax.bind(grid, (rows, *numbers), constants, num_warps)

    def run(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
        out = made()
        launch(out, rows_in(logits), given.words(temperature))
        return out

    return run


def _long_softmax(logits: Tensor, rows: int, numbers: tuple[int, ...]) -> Run:
    aligned = unit(*numbers[:2])
    grid = rows, ceil_div(numbers[0], PART), 1
    parts_of = empty((rows, grid[1], 3), logits, torch.float32)
    sum_up = logits_kernels.softmax_parts.bind(grid, numbers, (PART, aligned), 8)
    constants = next_power_of_2(grid[1]), PART, aligned
    divide = logits_kernels.softmax_whole.bind(grid, numbers, constants, 8)

    def run(out: Tensor, x: Tensor, words: Tensor) -> None:
        parts = parts_of()
        sum_up(parts, x, words)
        divide(out, parts, x, words)

    return run


@prepared
def apply_token_bitmask_(logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None) -> Run:
    columns = logits.shape[-1]
    if logits.numel() == 0:
        return lambda logits, *_, **_named: logits
    x = logits if logits.dim() == 2 else logits.reshape(-1, columns)
    if x.data_ptr() != logits.data_ptr():
        return _masked_copy
    rows, width = bitmask.shape[:-1].numel(), bitmask.shape[-1]
    mask, block = _bits(bitmask), min(next_power_of_2(columns), _PIECE)
    mask_in = same if mask.data_ptr() == bitmask.data_ptr() else _bits
    several = min(_PIECE // block, next_power_of_2(rows))
    grid = ceil_div(rows, several), ceil_div(columns, block), 1
    numbers = rows, columns, width, *x.stride(), mask.stride(0)
    constants = x.stride(1) == 1, several, block
    launch = logits_kernels.forbid.bind(grid, numbers, constants)

    def run(logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None) -> Tensor:
        launch(logits, mask_in(bitmask), None if indices is None else indices.contiguous())
        return logits

    return run


def _masked_copy(logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None) -> Tensor:
    """The same where the rows of logits are not a stride apart."""
    copy = logits.contiguous()
    return logits.copy_(apply_token_bitmask_(copy, bitmask, indices=indices))


def _bits(bitmask: Tensor) -> Tensor:
    mask = bitmask.reshape(bitmask.shape[:-1].numel(), bitmask.shape[-1])
    return mask if mask.stride(1) == 1 else mask.contiguous()


@prepared
def top_k_renorm(probs: Tensor, top_k: Tensor | int) -> Run:
    return _renorm(probs, top_k, None, None)


@prepared
def top_p_renorm(probs: Tensor, top_p: Tensor | float) -> Run:
    return _renorm(probs, None, top_p, None)


@prepared
def min_p_renorm(probs: Tensor, min_p: Tensor | float) -> Run:
    return _renorm(probs, None, None, min_p)


def _renorm(
    probs: Tensor,
    top_k: Tensor | int | None,
    top_p: Tensor | float | None,
    min_p: Tensor | float | None,
) -> Run:
    columns, limits = probs.shape[-1], limits_of(top_k, top_p, min_p, probs)
    (rows_in, rows, stride), made = rows_like(probs), empty_like(probs)
    place = 2 if limits.kinds[1] else 0 if top_p is None else 1
    words_of = limits.given[place].words
    if columns > PART:
        launch = _renorm_long(probs, in_parts(probs, rows, stride, limits.kinds[0]), limits)
    else:
        grid, *shape, num_warps = whole(rows, columns, PART)
        constants = *limits.kinds, *shape, unit(columns, stride)
        numbers = rows, columns, stride, *limits.leading, *limits.floor
        launch = renorm_kernels.renorm_rows.bind(grid, numbers, constants, num_warps)

    def run(probs: Tensor, limit: Any) -> Tensor:
        out, words = made(probs), words_of(limit)
        # Two of the three are not there, and nothing is read of them.
        launch(out, rows_in(probs), words, words, words)
        return out

    return run


def _renorm_long(probs: Tensor, long: Long, limits: Limits) -> Run:
    counted, (rows, parts, _) = limits.kinds[0], long.grid
    floored, shape = (*long.numbers, *limits.floor), (long.parts, PART, long.aligned)
    leading = *long.numbers, *limits.leading
    constants = counted, False, True, *shape
    survey = part_kernels.survey.bind(long.grid, (*leading, *limits.floor, -1), constants)
    every = *leading, *limits.floor, -1, 0, -1, 0, -1
    constants = True, False, False, False, long.parts, PART, PART, long.aligned
    collect = kernels.collect.bind(long.grid, every, constants, 8)
    size, num_warps = searching(probs)
    constants = long.parts, size
    settle = renorm_kernels.settle.bind((rows, 1, 1), (*leading, parts), constants, num_warps)
    weigh = renorm_kernels.weigh.bind(long.grid, floored, shape)
    finish = renorm_kernels.renorm_parts.bind(long.grid, floored, (not counted, *shape))

    def run(out: Tensor, x: Tensor, *words: Tensor) -> None:
        work = long.work()
        survey(work, x, *words, work)
        if counted:
            collect(work, x, *words, work, work, work)
            settle(work, x, *words[:2])
        else:
            weigh(work, x, words[2])
        finish(out, work, x, words[2])

    return run


@prepared
def sample(
    probs: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
    seed: Tensor | int,
    offset: Tensor | int,
    indices: Tensor | None = None,
) -> Run:
    device, limits = probs.device, limits_of(top_k, top_p, min_p, probs)
    draw = integers(seed, device), integers(offset, device), integers(indices, device)
    given = [parameter.words for parameter in (*limits.given, *draw)]
    noise = [number for parameter in draw[:2] for number in (parameter.stride, parameter.number)]
    numbers = *limits.leading, *limits.floor, *noise, draw[2].stride
    rows = (probs if indices is None else indices).shape[0]
    made = empty((rows,), probs, torch.int32)
    rows_in, _, stride = rows_like(probs)
    if probs.shape[-1] <= PART:
        launch = draws.of_short(rows, probs.shape[-1], stride, limits.kinds, numbers)
    elif any(limits.kinds):
        long, first = in_parts(probs, rows, stride, limits.kinds[0]), top_k is None
        launch = draws.of_limited(probs, long, limits.kinds, numbers, first and top_p is not None)
    else:
        launch = draws.of_whole(probs, rows, stride, numbers)

    def run(
        probs: Tensor,
        *,
        top_k: Any = None,
        top_p: Any = None,
        min_p: Any = None,
        seed: Any,
        offset: Any,
        indices: Any = None,
    ) -> Tensor:
        values = top_k, top_p, min_p, seed, offset, indices
        out = made()
        launch(
            out, rows_in(probs), *[words(value) for words, value in zip(given, values, strict=True)]
        )
        return out

    return run
