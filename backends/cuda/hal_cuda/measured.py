"""How other libraries' kernels did beside portable ones, and where that makes them the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor

from hal import Device

__all__ = ["MEASURED", "Times", "wish"]


@attrs.frozen
class Times:
    """A library's time over that of what hal chose without it.

    Attributes:
        least: At the size that suits the library best.
        most: At the size that suits it worst.
        since: From how many elements of the first argument it is chosen; None is never.
    """

    least: float
    most: float
    since: int | None = None


MEASURED: Mapping[int, Mapping[tuple[str, str], Times]] = {
    # H100 80GB HBM3, torch 2.11.0+cu130, Triton 3.6.0, sglang-kernel 0.4.5, FlashInfer 0.6.13, by
    # benchmarks/run.py at all its sizes, FlashInfer with --peer flashinfer; docs/performance has
    # each of the others. Gates of 2**24.8 elements, 1024 rows of 28672, were lost by both, those
    # of 2**27.8, 8192 rows, won.
    90: {
        ("sgl_kernel", "silu_and_mul"): Times(0.97, 3.81, since=2**27),
        ("sgl_kernel", "rms_norm"): Times(1.05, 1.28),
        ("sgl_kernel", "fused_add_rms_norm"): Times(0.99, 1.21),
        ("sgl_kernel", "moe_sum"): Times(1.00, 1.23),
        ("flashinfer", "silu_and_mul"): Times(0.97, 3.82, since=2**27),
        ("flashinfer", "rms_norm"): Times(1.05, 1.33),
        ("flashinfer", "fused_add_rms_norm"): Times(1.00, 1.22),
        # The peer of that name, at those sizes of docs/performance/prefill.md that it takes.
        ("flash", "varlen_attention"): Times(0.98, 2.00),
        # vLLM's build, with --backend cuda:fa3 before it was the choice, from 2048 rows of 32 heads
        # of 128 columns on; the page has what hal takes since.
        ("fa3", "varlen_attention"): Times(0.62, 0.87, since=2**23),
    },
}
"""By compute capability, library and op; what is not here was not measured."""

_UNKNOWN = "it was not measured beside what hal chooses here"


def wish(library: str, op: str, device: Device) -> str | Callable[..., str | None]:
    """Why a library's kernel serves who names it alone, as ``hal.Kernel.on_request`` wants it."""
    found = MEASURED.get(device.arch or 0, {}).get((library, op))
    if found is None:
        return _UNKNOWN
    text = f"it takes {found.least:.2f} to {found.most:.2f} times as long as what hal chooses"
    if found.since is None:
        return text
    since = found.since

    def few(first: Tensor, *_: Any, **__: Any) -> str | None:
        return None if first.numel() >= since else f"{text}; it is chosen from {since} elements on"

    return few
