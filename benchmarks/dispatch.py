"""Measure what a call through hal costs over calling the chosen kernel directly.

The kernels return a ready tensor, so that nothing but the call path is timed: once without a
condition, once with one. Prints nanoseconds, the best of several repeats of each, and the ratio to
the same op through ``torch.ops``.
"""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import hal
from hal import offers
from hal.functions import FORMS
from hal.op import OPS

READY = torch.empty(4, 4)
NAME = "silu_and_mul"


def ready(x: torch.Tensor) -> torch.Tensor:
    return READY


def accepts(x: torch.Tensor) -> str | None:
    return (
        None if x.dtype == torch.float32 and x.stride(-1) == 1 else "takes contiguous float32 only"
    )


def offer(**traits: Any) -> None:
    """Put a kernel that does nothing before the reference, and forget earlier plans."""
    kernel = hal.Kernel(fn=ready, name="ready", **traits)
    FORMS[NAME].forget()
    offered = (
        offers.Offer("bench", band=0, kernel=kernel),
        *offers.offers(OPS[NAME], hal.device("cpu")),
    )
    offers.asked[OPS[NAME], hal.device("cpu")] = offered


def nanoseconds(function: Callable[[torch.Tensor], Any], x: torch.Tensor, calls: int) -> float:
    names = {"function": function, "x": x}
    return min(timeit.repeat("function(x)", globals=names, number=calls, repeat=7)) / calls * 1e9


def measure(calls: int) -> dict[str, float]:
    x = torch.randn(4, 8)
    found = {"kernel called directly": nanoseconds(ready, x, calls)}
    for label, traits in {"": {}, ", with a condition": {"supports": accepts}}.items():
        offer(**traits)
        assert hal.ops.silu_and_mul(x) is READY
        found[f"hal.ops{label}"] = nanoseconds(hal.ops.silu_and_mul, x, calls)
        found[f"torch.ops{label}"] = nanoseconds(torch.ops.hal.silu_and_mul, x, calls)
    return found


def main(calls: int = 200_000, as_json: bool = typer.Option(False, "--json")) -> None:
    """Print the table, or the figures as JSON."""
    found = measure(calls)
    direct = found["kernel called directly"]
    if as_json:
        typer.echo(json.dumps({"nanoseconds": found, "torch": torch.__version__}))
        return
    table = Table("call", "ns", "overhead ns", "of torch.ops", title=f"torch {torch.__version__}")
    for label, time in found.items():
        through = (
            found["torch.ops" + label.removeprefix("hal.ops")] if label.startswith("hal") else 0.0
        )
        ratio = f"{(time - direct) / (through - direct):.2f}" if through else ""
        table.add_row(label, f"{time:.0f}", f"{time - direct:.0f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
