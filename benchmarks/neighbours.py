"""Configurations a step from one: of its numbers one is halved or doubled, or two that go together.

Each takes the configuration and the sizes that an entry of a table is for, as ``hal_triton`` asks
for it. What registers cannot hold is left out; shared memory hal_triton looks after itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Config = tuple[int, ...]
Sizes = tuple[int, ...]

_THREADS = 32
_SUMS = 128
"""Of 255 registers of a thread those for sums."""


def steps(config: Config, bounds: Sequence[tuple[int, int]]) -> Iterator[Config]:
    """With one number halved or doubled, if it is within its bounds then."""
    for i, (least, most) in enumerate(bounds):
        for value in (config[i] // 2, config[i] * 2):
            if least <= value <= most:
                yield (*config[:i], value, *config[i + 1 :])


def tiles(tile: Config, rows: int, bits: int) -> Iterator[Config]:
    """Of products: rows, rows of the weight, columns, warps, and stages of a loop.

    Elements of the weight have so many bits; of few, blocks of 128 columns share a scale.
    """
    m, n, k, warps, stages = tile
    # With no more rows than a tile has, other tiles are idle or read the weight twice.
    of_rows, most = (16, 128) if rows > m else (m, m), 256 if bits == 16 else 128
    found = [
        *steps(tile, (of_rows, (16, 256), (32, 128), (4, 8))),
        *((m, n, k, warps, some) for some in (stages - 1, stages + 1) if 2 <= some <= 7),
        (m, 2 * n, k, 2 * warps, stages),
        (m, n, 2 * k, warps, max(stages // 2, 2)),
    ]
    # Codes of 4 bits become numbers in registers: fewer are left for sums, and small tiles pass
    # through memory. All that remains was compiled for sm_90, without a spill.
    few, share, least_k = (8, 4, most) if bits == 4 else (4, 2, 32)
    enough = max(_SUMS // share, m * n // (_THREADS * warps))
    for some in found:
        sums = some[0] * some[1] // (_THREADS * some[3])
        wide = 256 if some[0] >= 128 else 128
        held = few <= sums <= enough and some[1] <= wide
        if held and least_k <= some[2] <= most and some[3] <= 8:
            yield some


def products(config: Config, sizes: Sizes) -> Iterator[Config]:
    """Tiles and parts of the columns; sizes: rows, those of the weight, columns and bits."""
    *tile, parts = config
    for some in tiles(tuple(tile), sizes[0], sizes[3]):
        # As many programs as there were.
        yield *some, max(parts * some[1] // tile[1], 1)
    for count in (parts // 2, parts * 2):
        # More for a few rows alone: there are programs enough otherwise.
        if 1 <= count <= sizes[2] // 512 and (count < parts or sizes[0] <= 64):
            yield *tile, count


def mixtures(config: Config, sizes: Sizes) -> Iterator[Config]:
    """Tiles; sizes: pairs, experts, rows of the weight, columns and bits."""
    return tiles(config, max(sizes[0] // sizes[1], 1), sizes[4])


def pairs(config: Config, _: Sizes) -> Iterator[Config]:
    """Of products of single rows: pairs, rows of the weight of each, columns and warps."""
    several = config[0]
    for some in steps(config, ((several, several), (1, 32), (128, 4096), (2, 8))):
        if 16 <= several * some[1] * some[2] // (_THREADS * some[3]) <= _SUMS:
            yield some


def decodes(config: Config, sizes: Sizes) -> Iterator[Config]:
    """Rows, keys, warps, tiles ahead and keys of a chunk; sizes: rows, and columns of both."""
    rows, keys, warps, ahead, least = config
    yield from _fit(steps(config, ((16, rows), (16, 128), (2, 8), (0, 0), (64, 1024))), sizes)
    for some in (ahead - 1, ahead + 1):
        if 1 <= some <= 4:
            yield rows, keys, warps, some, least


def prefills(config: Config, sizes: Sizes) -> Iterator[Config]:
    """Rows, keys, warps and tiles ahead; sizes: queries, and columns of both."""
    rows, keys, warps, ahead = config
    yield from _fit(steps(config, ((32, 128), (32, 128), (4, 8))), sizes)
    yield from _fit(iter([(rows // 2, keys, warps // 2, ahead)] if warps > 4 else []), sizes)
    for some in (ahead - 1, ahead + 1):
        if 1 <= some <= 3:
            yield rows, keys, warps, some


def _fit(found: Iterator[Config], sizes: Sizes) -> Iterator[Config]:
    for some in found:
        rows, keys, warps, *_ = some
        if (
            rows * (keys + sizes[2]) <= (_SUMS + 32) * _THREADS * warps
        ):  # Products are among the sums.
            yield some


_EVEN = 4
"""Programs of a sequence at least, as those that are timed are all as long, and others are not."""


def slots(config: Config, sizes: Sizes) -> Iterator[Config]:
    """Programs that share a sequence, of so many sequences; at most its chunks."""
    for quarters in (2, 3, 6, 8):
        count = config[0] * quarters // 4
        if min(_EVEN, config[0]) <= count <= sizes[2]:
            yield (count,)
