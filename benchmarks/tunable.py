"""Configurations of hal_triton that ``tune.py`` finds out: who asks for them, and what to try."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import attrs

import neighbours
from neighbours import Config, Sizes


def _no_others(_usual: Config, _sizes: Sizes) -> Iterable[Config]:
    return ()


@attrs.frozen
class Tunable:
    """A configuration, the families of cases that come to it, and what to try.

    Attributes:
        families: Those of cases.
        candidates: What is tried for all sizes.
        near: What besides, for what the rule of thumb says and the sizes.
    """

    families: tuple[str, ...]
    candidates: tuple[Config, ...] = ()
    near: Callable[[Config, Sizes], Iterable[Config]] = _no_others


def _tiles(least: int, most: int) -> Iterator[Config]:
    """Rows, columns and warps, with so many elements for each thread."""
    for several, power, warps in itertools.product((1, 2, 4), (8, 9, 10, 11, 12), (1, 2, 4, 8)):
        if least <= several * 2**power // (32 * warps) <= most:
            yield several, 2**power, warps


def _short(least: int, most: int) -> Iterator[Config]:
    """The same for rows of 128 columns."""
    for several, warps in itertools.product((2, 4, 8, 16, 32, 64), (1, 2, 4, 8)):
        if least <= several * 128 // (32 * warps) <= most:
            yield several, 128, warps


def _heads(most: int) -> Iterator[Config]:
    """Tokens, heads of 128 columns and warps, of which there are so many at most."""
    some = [warps for warps in (1, 2, 4, 8) if warps <= most]
    for tokens, heads, warps in itertools.product((1, 2, 4), (1, 2, 4, 8, 16), some):
        if 8 <= tokens * heads * 4 // warps <= 32:
            yield tokens, heads, warps


def _pieces() -> Iterator[Config]:
    """Columns of a part and of its pieces, and warps, with four or eight columns to a thread."""
    for part, warps, each in itertools.product((1024, 4096, 8192), (4, 8), (4, 8)):
        if warps * 32 * each <= part:
            yield part, warps * 32 * each, warps


TUNABLE = {
    "gate": Tunable(("activation",), tuple(_tiles(8, 16))),
    "sum": Tunable(("router",), tuple(_tiles(2, 8))),
    "merge": Tunable(("decode",), tuple(_short(4, 32))),
    "rotary": Tunable(("rotary",), tuple(_heads(8))),
    # More warps would race for what they share.
    "norm rotary": Tunable(("rotary",), tuple(_heads(1))),
    "rows": Tunable(("norm", "quant"), tuple((warps,) for warps in (1, 2, 4, 8, 16))),
    "groups": Tunable(("quant", "fused quant"), tuple(_tiles(8, 32))),
    "route": Tunable(
        ("router",), tuple((rows, warps) for rows in (1, 2, 4, 8, 16) for warps in (1, 2, 4, 8))
    ),
    "draw": Tunable(("sampling",), tuple(_pieces())),
    "search": Tunable(
        ("sampling",), tuple(itertools.product((1024, 2048, 4096, 8192), (4, 8, 16)))
    ),
    **{
        f"product {kind}": Tunable(("gemv", "matmul"), near=neighbours.products)
        for kind in ("none", "rows", "blocks")
    },
    "pairs": Tunable(("gemv", "matmul"), near=neighbours.pairs),
    "routed pairs": Tunable(("gemv",), near=neighbours.pairs),
    "experts": Tunable(("experts",), near=neighbours.mixtures),
    # How many programs share a sequence goes by its chunks, and so comes second.
    "decode": Tunable(("decode",), near=neighbours.decodes),
    "slots": Tunable(("decode",), near=neighbours.slots),
    "prefill": Tunable(("prefill",), near=neighbours.prefills),
}
