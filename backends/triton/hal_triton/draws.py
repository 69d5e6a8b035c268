"""How tokens are drawn from rows: short ones, long ones, and long ones within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hal_triton.configurations import Config, measured
from hal_triton.kernels import parts as part_kernels
from hal_triton.kernels import sampling as kernels
from hal_triton.layout import unit
from hal_triton.limits import PART, Long, in_parts, searching, whole

__all__ = ["of_limited", "of_short", "of_whole"]

Run = Callable[..., Any]

_PIECE = 1024
"""Columns that are drawn from at once."""


def of_short(
    rows: int, columns: int, stride: int, kinds: tuple[bool, bool], numbers: tuple[int, ...]
) -> Run:
    """Rows that a program holds; of at least four columns, as four share their noise."""
    grid, *shape, num_warps = whole(rows, max(columns, 4), PART)
    constants = *kinds, *shape, unit(columns, stride)
    return kernels.sample_rows.bind(grid, (rows, columns, stride, *numbers), constants, num_warps)


def of_whole(probs: Tensor, rows: int, stride: int, numbers: tuple[int, ...]) -> Run:
    """Rows without limits."""
    part, piece, num_warps = _drawing(rows, probs)
    long = in_parts(probs, rows, stride, False, part)
    every, parts = (*long.numbers, *numbers), long.grid[1]
    constants = False, False, True, False, long.parts, part, piece, long.aligned
    draw = kernels.collect.bind(long.grid, every, constants, num_warps)
    constants = False, False, False, long.parts, _PIECE
    choose = kernels.choose.bind((rows, 1, 1), (*every, parts), constants, 1)

    def run(out: Tensor, x: Tensor, *words: Tensor) -> None:
        work = long.work()
        draw(work, x, *words)
        choose(out, work, x, *words)

    return run


def _drawing(rows: int, probs: Tensor) -> Config:
    """The columns of a part, those that are drawn from at once, and the warps of a program.

    What is drawn does not depend on it, so that it may be another for more rows.
    """
    return measured("draw", probs.device, (rows, probs.shape[-1]), (PART, _PIECE, 8))


def of_limited(
    probs: Tensor, long: Long, kinds: tuple[bool, bool], numbers: tuple[int, ...], first: bool
) -> Run:
    """``first`` a token is drawn without limits, and looked for them only if they forbid it."""
    (rows, parts, _), every = long.grid, (*long.numbers, *numbers)
    shape = long.parts, PART, long.aligned
    draw, look = _drawn_first(probs, long, numbers) if first else (None, None)
    leading = *long.numbers, *numbers[:7], numbers[-1]
    survey = part_kernels.survey.bind(long.grid, leading, (kinds[0], first, False, *shape))
    constants = *kinds, True, first, long.parts, PART, _PIECE, long.aligned
    collect = kernels.collect.bind(long.grid, every, constants, 8)
    size, num_warps = searching(probs) if kinds[0] else (_PIECE, 1)
    constants = *kinds, first, long.parts, size
    choose = kernels.choose.bind((rows, 1, 1), (*every, parts), constants, num_warps)

    def run(out: Tensor, x: Tensor, *words: Tensor) -> None:
        work = long.work()
        if draw is not None and look is not None:
            draw(work, x, *words)
            look(work, x, words[-1])
        survey(work, x, *words[:3], words[-1])
        collect(work, x, *words)
        choose(out, work, x, *words)

    return run


def _drawn_first(probs: Tensor, long: Long, numbers: tuple[int, ...]) -> tuple[Run, Run]:
    """What draws from rows as if they had no limits, and what looks at what precedes the token."""
    _, piece, num_warps = _drawing(long.grid[0], probs)
    shape = long.parts, PART, min(piece, PART), long.aligned
    every = *long.numbers, *numbers
    draw = kernels.collect.bind(long.grid, every, (False, False, True, False, *shape), num_warps)
    shape = long.parts, PART, long.aligned
    return draw, part_kernels.look.bind(long.grid, (*long.numbers, numbers[-1]), shape)
