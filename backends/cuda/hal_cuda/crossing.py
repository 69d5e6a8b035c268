"""From how many rows on NVIDIA's libraries are quicker than a portable kernel, as was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import hal

__all__ = ["LIBRARIES", "ROWS", "portable", "product_wins", "wins"]

ROWS: Mapping[int, Mapping[str, int]] = {
    # H100 80GB HBM3, torch 2.11.0+cu130, Triton 3.6.0, cuDNN 9.19. Those of linear and cudnn are of
    # benchmarks/crossing.py, where n and k are 2304 to 28672 and heads have 64 or 128 columns; that
    # of cudnn when lengths were rounded up to 1024. Those of 8 bits are of benchmarks/run.py
    # --family matmul, at 1, 16, 64, 256 and 4096 rows: 96 lies between two of them.
    90: {
        "block_scaled_mm": 96,
        "large block_scaled_mm": 16,
        "scaled_mm": 96,
        "large scaled_mm": 32,
        "linear": 32,
        "linear and more": 32,
        "cudnn": 1024,
        "narrow cudnn": 3072,
    },
}
"""By compute capability, the least number of rows; a library without one is not chosen.

A weight is large from 2**26 elements on, and attention narrow with heads of up to 64 columns.

"linear" is ``fused_gemv`` in 16 bits, with what follows it or without; "cudnn" and "flash" are
``varlen_attention``, with the queries of one sequence, or those of each on average.
"""

LIBRARIES = (
    *("scaled_mm", "large scaled_mm", "block_scaled_mm", "large block_scaled_mm"),
    *("linear", "linear and more"),
    *("cudnn", "narrow cudnn", "flash"),
)
"""What may have a number of rows."""


_LARGE = 2**26


def wins(what: str, rows: int, like: Tensor) -> bool:
    """Whether so many rows are enough on the device of a tensor."""
    first = ROWS.get(hal.device(like).arch or 0, {}).get(what)
    return first is not None and rows >= first


def product_wins(what: str, rows: int, weight: Tensor) -> bool:
    """The same for a product with a weight."""
    return wins(f"large {what}" if weight.numel() >= _LARGE else what, rows, weight)


def portable(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What a portable kernel does for calls like this one."""
    prepared = isinstance(function, hal.prepared)
    return function.prepare(*args, **kwargs) if prepared else function
