"""Random cases of the attention over latents."""

from __future__ import annotations

from collections.abc import Callable

from hal.testing.cases.attention import Cache, scale_for
from hal.testing.cases.draw import HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES"]


def decode(draw: Draw) -> Sample:
    """Positive values, so that neither a score nor an output nor the log of a sum cancels."""
    dtype = draw.floating()
    lens = [draw.size(9, least=0) for _ in range(draw.among(0, 1, 1, 2, 3))]
    heads, widths = draw.among(0, 1, 1, 2, 3), (draw.size(33), draw.size(17, least=0))
    rows = len(lens) * heads
    if dtype in HALVES and rows * widths[0] >= NORMED:
        widths = ((NORMED - 1) // rows, widths[1])
    cache = Cache(draw, lens)
    pages = cache.holding(draw.values(sum(lens), sum(widths), positive=True)).to(dtype)
    queries = [
        draw.laid(draw.values(len(lens), heads, width, positive=True).to(dtype)) for width in widths
    ]
    args = (*queries, draw.laid(pages, expand=False), cache.table, cache.seq_lens)
    return draw.sample(*args, scale=scale_for(draw, sum(widths)))


CASES: dict[str, Callable[[Draw], Sample]] = {"mla_decode": decode}
