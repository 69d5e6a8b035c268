"""Attention of few queries to many keys, in one launch, or in two: sums of chunks, then of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hal_triton.attention_launch import Run, Tensors, Tile, floats, results
from hal_triton.attention_parts import ONE, Keys, Query, Scale, Scores, Width, numbers
from hal_triton.configurations import measured
from hal_triton.kernels.attention_merge import merge_parts
from hal_triton.kernels.attention_split import attend_parts
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div
from hal_triton.target import processors, shared_memory

__all__ = ["attend_split"]

_CHUNKS, _SHORT, _STEP = 64, 16, 128
"""As in the kernels."""
_MERGED = 512
"""Elements of a program's sums when they are merged: 4 of each thread, of many chunks."""
_BUSY = 1.5
"""Programs of a processor with which a device is as good as full, and need not be more."""
_FILLED = 2
"""Programs of a processor to make of fewer, at most: it holds no more at once."""
_EVEN = 4
"""Programs that share a sequence at least, as others may be shorter; a tenth slower if none is."""
_ROWS, _MOST = 16, 64
"""Rows of a tile at least, and at most."""
_LONG = 8192
"""Keys beyond which a sequence has that many nevertheless: all others may be short."""
_FOLDED = 8192
"""Elements of sums that registers hold beside those of a chunk, and shared memory beside keys."""
_ROOMY = 208 << 10
"""Bytes of shared memory in which the sums of 64 rows of latents turn into what is stored."""


def _tile(rows: int, query: Query, keys: Keys, width: Width, unit: int) -> tuple[Tile, int]:
    """What a program has at once, and the keys of a chunk at least.

    The bits of a sequence go with them, and so they do not go by how many sequences there are.
    """
    usual = _usual(rows, query, keys, width, unit)
    least = _least(keys.heads * ceil_div(rows, usual.rows), usual.rows * width.value_block)
    if unit != 16:
        return usual, least
    # Heads as they are for a program: of more rows there are more programs.
    sizes = min(max(rows, _ROWS), _MOST), width.columns, width.value_block, keys.heads
    bits = 8 * query.q.itemsize, 8 * keys.itemsize
    found = measured("decode", query.q.device, (*sizes, *bits), (*usual[:4], least))
    tile_rows, tile_keys, num_warps, ahead, least = found
    tile = Tile(tile_rows, tile_keys, num_warps, ahead, usual.split)
    tile = _fitted(tile, query, keys, width)
    return tile, max(least, tile.keys)


def _usual(rows: int, query: Query, keys: Keys, width: Width, unit: int) -> Tile:
    size, roomy = query.q.itemsize, shared_memory(query.q.device) >= _ROOMY
    tile = _largest(rows, width, size, unit)
    if rows >= 64 and keys.v is None and width.value_block == 512 and size == 2 and roomy:
        # So many rows of latents are a matter of products.
        tile = Tile(64, 32, 8, 2, split=False)
    return _fitted(tile, query, keys, width)


def _fitted(tile: Tile, query: Query, keys: Keys, width: Width) -> Tile:
    size, room = query.q.itemsize, shared_memory(query.q.device)
    # Products of 64 rows read keys from there, which holds sums on their way to memory besides.
    stored = 4 * width.value_block if tile.rows >= 64 and width.value_block <= 128 else 0
    return tile.fitted(size * width.columns + stored, size * keys.columns(width), room)


def _largest(rows: int, width: Width, itemsize: int, unit: int) -> Tile:
    """Beyond it, registers are spilled."""
    most = 16 if itemsize == 4 else 64 if width.value_block <= 128 else 32
    rows = min(max(next_power_of_2(rows), _ROWS), most)
    num_warps = 4 if rows * width.value_block <= 4096 else 8
    if itemsize == 4:
        return Tile(rows, 32 if width.widest <= 128 else 16, num_warps, 1, split=False)
    keys = 64 if width.widest <= 128 and rows != 32 and unit == 16 else 32
    return Tile(rows, keys, num_warps, 2, split=True)


class _Plan(NamedTuple):
    """How the keys of a sequence are shared out."""

    chunk: int
    """Keys of a chunk at least: a power of two that holds whole tiles."""
    chunks: int
    """Those of a sequence at most."""
    slots: int
    """Programs that share them."""

    @property
    def shared(self) -> bool:
        """Whether sums of chunks are stored."""
        return self.slots > 1

    @property
    def several(self) -> bool:
        """Whether a program may have more than one."""
        return self.slots < self.chunks


def _least(programs: int, sums: int) -> int:
    """Keys of a chunk at least, for so many programs of a sequence and elements of their sums."""
    # Where a sequence has few programs, it has more chunks; but sums are written and read again.
    return 512 if sums > _FOLDED else 128 if programs > 2 or sums > _FOLDED // 2 else 64


def _plan(query: Query, programs: int, span: int, sums: int, least: int) -> _Plan:
    """Chunks, which depend on no other sequence, and the programs that share them.

    Args:
        query: Its sequences and where they are.
        programs: Those of a sequence if its keys were not shared.
        span: No sequence has more keys that count.
        sums: Elements of the sums of a program.
        least: Keys of a chunk at least.
    """
    chunks = max(min(ceil_div(span, least), _SHORT), min(ceil_div(span, 2 * least), _CHUNKS), 1)
    if sums > _FOLDED:
        return _Plan(least, chunks, chunks)
    every, most = programs * query.sequences, processors(query.q.device)
    few = 0 < every < _BUSY * most
    slots = max(_FILLED * most // every, _EVEN) if few else 1
    slots = min(chunks, max(slots, _EVEN if span > _LONG else 1))
    if slots > 1:
        sizes = query.sequences, programs, chunks
        (slots,) = measured("slots", query.q.device, sizes, (slots,))
    return _Plan(least, chunks, min(chunks, slots))


def attend_split(
    query: Query,
    keys: Keys,
    width: Width,
    scores: Scores,
    k_scale: Scale = ONE,
    v_scale: Scale = ONE,
) -> Run:
    """Programs share the keys of a sequence."""
    tokens, heads, _ = query.q.shape
    rows, unit = query.longest * (heads // keys.heads), keys.unit(width, *query.strides)
    tile, least = _tile(rows, query, keys, width, unit)
    tiles, sums = ceil_div(rows, tile.rows), tile.rows * width.value_block
    plan = _plan(query, keys.heads * tiles, _span(query, keys, scores), sums, least)
    # One sequence more, for the padding, where there may be any.
    all_of_them = query.sequences + query.ragged
    shares = query.sequences * plan.slots if plan.shared else all_of_them
    told = rows, *numbers(query, keys, width, scores, k_scale, v_scale)
    # A page of a whole tile is a uniform register, of which so many products leave none.
    pages = min(keys.pages(tile.keys), 3 if sums <= _FOLDED else 2)
    first = attend_parts.bind(
        # Without heads of queries there is nothing to write, nor to tell those of keys apart by.
        (shares * keys.heads if heads else 0, max(tiles, 1), 1),
        (query.sequences, tokens, heads, plan.slots, plan.chunks, *told),
        (
            *(scores.sign != 1, scores.cap > 0, pages, tile.split),
            *(plan.several, not plan.shared),
            *(plan.chunk, tile.rows, tile.keys, *width[3:], unit, width.full),
        ),
        tile.num_warps,
        tile.num_stages(paged=True),
    )
    empty = results(query.q, width.value_dim)
    if not plan.shared:
        return _run((first,), empty, lambda: None)
    pieces, *merged, num_warps = _merged(rows, plan, width)
    second = merge_parts.bind(
        (all_of_them * pieces, keys.heads, 1),
        (query.sequences, pieces, tokens, heads, plan.chunks, *told),
        (scores.cap > 0, keys.pages(1), plan.chunk, *merged, *width[3:], unit),
        num_warps,
    )
    count = query.sequences * keys.heads * plan.chunks * rows
    return _run((first, second), empty, floats((count * (width.value_dim + 2),), query.q))


def _run(
    launches: tuple[Callable[..., None], ...],
    empty: Callable[[], tuple[Tensor, Tensor]],
    room: Callable[[], Tensor | None],
) -> Run:
    def run(given: Tensors) -> tuple[Tensor, Tensor]:
        both = empty()
        tensors = *both, room(), *given
        for launch in launches:
            launch(*tensors)
        return both

    return run


def _merged(rows: int, plan: _Plan, width: Width) -> tuple[int, int, int, int]:
    """Programs for the rows of a sequence, the rows and chunks at once of each, and its warps."""
    several = max(min(next_power_of_2(rows), _MERGED // width.value_block), 1)
    ahead = 4 if plan.chunks <= 4 else 16
    return max(ceil_div(rows, several), 1), several, ahead, 4


def _span(query: Query, keys: Keys, scores: Scores) -> int:
    """No sequence has more keys that count, from the step on at which its chunks begin."""
    return min(keys.most, scores.left + query.longest + _STEP)
