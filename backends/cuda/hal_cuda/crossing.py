"""From how many rows on NVIDIA's libraries are quicker than a portable kernel, as was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import hal

__all__ = ["LIBRARIES", "ROWS", "portable", "wins"]

ROWS: Mapping[int, Mapping[str, int]] = {
    # TODO: guesses until `python benchmarks/crossing.py` has printed them; name GPU and versions.
    90: {
        "block_scaled_mm": 64,
        "linear": 64,
        "linear and more": 64,
        "cudnn": 2048,
    },
}
"""By compute capability, the least number of rows; a library without one is not chosen.

"linear" is ``fused_gemv`` in 16 bits, with what follows it or without; "cudnn" and "flash" are
``varlen_attention``, with the queries of one sequence, or those of each on average.
"""

LIBRARIES = ("block_scaled_mm", "linear", "linear and more", "cudnn", "flash")
"""What may have a number of rows."""


def wins(what: str, rows: int, like: Tensor) -> bool:
    """Whether so many rows are enough on the device of a tensor."""
    first = ROWS.get(hal.device(like).arch or 0, {}).get(what)
    return first is not None and rows >= first


def portable(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What a portable kernel does for calls like this one."""
    prepared = isinstance(function, hal.prepared)
    return function.prepare(*args, **kwargs) if prepared else function
