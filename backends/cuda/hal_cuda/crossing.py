"""From how many rows on NVIDIA's libraries are quicker than a portable kernel, as was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import hal

__all__ = ["ROWS", "portable", "wins"]

ROWS: Mapping[int, Mapping[str, int]] = {
    90: {
        "block_scaled_mm": 64,
        "fused_gemv": 64,
        "cudnn": 2048,
    },
}
"""By compute capability and op, or library, the least number of rows; without one it is not chosen.

Queries of one sequence for "cudnn", those of each on average for "flash".
"""


def wins(what: str, rows: int, like: Tensor) -> bool:
    """Whether so many rows are enough on the device of a tensor."""
    first = ROWS.get(hal.device(like).arch or 0, {}).get(what)
    return first is not None and rows >= first


def portable(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What a portable kernel does for calls like this one."""
    prepared = isinstance(function, hal.prepared)
    return function.prepare(*args, **kwargs) if prepared else function
