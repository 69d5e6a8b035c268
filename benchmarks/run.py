"""Time hal's operators on a CUDA device, beside other libraries' kernels for the same calls.

    python benchmarks/run.py                                  # every family
    python benchmarks/run.py --family norm --output norm.json
    python benchmarks/run.py --library sgl_kernel/common_ops.so

Each call has arguments of its own, enough of them that none is in the cache any more, and all are
captured into one graph; providers take turns. An operator whose results are not right is not timed.
"""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from cases import FAMILIES, Case
from peers import peers
from rich.console import Console
from rich.table import Table
from timing import CALLS, Time, copies, copy_time, eager, in_graphs
from torch import Tensor

import hal
from hal.testing.checks import Effort
from hal.testing.outcome import Status
from hal.testing.questions import questions, where
from hal.testing.run import answer

CONSOLE = Console()
CHECKS = ("numerics", "random")
BACKENDS = [info.name for info in hal.backends()]


@attrs.define
class Row:
    """What was found for a case."""

    case: Case
    copy: Time
    times: dict[str, Time]
    host: dict[str, float]
    wrong: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        case = self.case
        return {
            "family": case.family,
            "op": case.op,
            "shape": case.shape,
            "bytes": case.moved,
            "flops": case.flops,
            "copy_us": self.copy.us,
            "us": {name: time.us for name, time in self.times.items()},
            "spread_us": {name: time.spread for name, time in self.times.items()},
            "host_us": self.host,
            "wrong": self.wrong,
        }


def red(op: str, backend: str) -> str | None:
    """Why an op of a backend may not be timed: what the kit refutes."""
    asked = questions(backend, where(backend, "cuda"), [op.rstrip("_")], CHECKS)
    for question in asked:
        cell = answer(question, Effort(cases=60))
        if cell.status is not Status.PROVEN:
            return f"{cell.check}: {cell.reason}"
    return None if asked else "is not offered"


def by_hal(op: str, backend: str) -> Callable[..., Any]:
    """The op as the backend serves it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with hal.use(backend):
            return getattr(hal.ops, op)(*args, **kwargs)

    return call


def host(case: Case, name: str, function: Callable[..., Any]) -> float:
    """Microseconds of the host; of hal without what it takes to enter a block of ``hal.use``."""
    args, kwargs = case.make()
    if name not in BACKENDS:
        return eager(lambda: function(*args, **kwargs))
    with hal.use(name):
        form = getattr(hal.ops, case.op)
        return eager(lambda: form(*args, **kwargs))


def size(values: Sequence[Any]) -> int:
    return sum(v.numel() * v.itemsize for v in values if isinstance(v, Tensor))


def numbers(results: Any) -> list[Tensor]:
    given = results if isinstance(results, tuple) else (results,)
    return [result.double() for result in given if result is not None]


def difference(got: Any, want: Any) -> float:
    """The largest relative norm of what two calls return."""
    pairs = zip(numbers(got), numbers(want), strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def measured(case: Case, providers: dict[str, Callable[..., Any]], cold: int) -> Row:
    """Hold every provider's results against the reference's, then time those that are right."""
    wrong: dict[str, str] = {}
    torch._dynamo.reset()  # A peer is compiled for each shape; past eight, torch gives up.
    torch.manual_seed(0)
    args, kwargs = case.make()
    want = by_hal(case.op, "native")(*args, **kwargs)
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, function in providers.items():
        torch.manual_seed(0)
        args, kwargs = case.make()
        try:
            off = difference(function(*args, **kwargs), want)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        if not off < 2e-2:
            wrong[name] = f"off by {off:.1e}"
            continue
        sets = [case.make() for _ in range(copies(size((*args, *kwargs.values())), cold))]
        bound = [lambda s=s, f=function: f(*s[0], **s[1]) for s in sets]
        calls[name] = [bound[i % len(bound)] for i in range(max(len(bound), CALLS))]
    few = [name for name in calls if case.shape.startswith("(1,")]
    on_host = {name: host(case, name, providers[name]) for name in few}
    return Row(case, copy_time(case.moved, cold), in_graphs(calls), on_host, wrong)


def machine() -> dict[str, str]:
    """What the figures belong to."""
    query = "name,driver_version,clocks.sm,clocks.mem,power.draw"
    said = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    facts = dict(zip(query.split(","), said.stdout.split("\n")[0].split(", "), strict=False))
    return facts | {"torch": torch.__version__, "hal": hal.__version__}


def shown(rows: Sequence[Row], backends: Sequence[str]) -> Table:
    """Microseconds by provider, and how hal's best stands to the copy and to the best peer."""
    names = list(dict.fromkeys(name for row in rows for name in (*row.times, *row.wrong)))
    table = Table("op", "shape", *names, "copy", "of copy", "x best peer", "host us")
    for row in rows:
        mine = min((row.times[b].us for b in backends if b in row.times), default=None)
        theirs = min((t.us for n, t in row.times.items() if n not in backends), default=None)
        cells = [f"{row.times[n].us:.2f}" if n in row.times else _mark(row, n) for n in names]
        share = f"{row.copy.us / mine:.2f}" if mine else ""
        ratio = f"{theirs / mine:.2f}" if mine and theirs else ""
        host = f"{row.host[backends[0]]:.1f}" if backends[0] in row.host else ""
        table.add_row(row.case.op, row.case.shape, *cells, f"{row.copy.us:.2f}", share, ratio, host)
    return table


def _mark(row: Row, name: str) -> str:
    return "wrong" if name in row.wrong else ""


def timed(cases: Sequence[Case], backends: Sequence[str], cold: int) -> list[Row]:
    """Measure the cases of a family, those ops left out that a check refutes."""
    rows: list[Row] = []
    mine: dict[str, list[str]] = {}
    for op in dict.fromkeys(case.op for case in cases):
        refuted = {backend: red(op, backend) for backend in backends}
        mine[op] = [backend for backend, reason in refuted.items() if reason is None]
        for backend, reason in refuted.items():
            if reason:
                CONSOLE.print(f"not timed: {op} by {backend}: {reason}")
    for case in cases:
        if mine[case.op]:
            ours = {backend: by_hal(case.op, backend) for backend in mine[case.op]}
            rows.append(measured(case, ours | peers(case.op), cold))
            gc.collect()
            torch.cuda.empty_cache()
    return rows


def main(
    family: Annotated[list[str] | None, typer.Option(help="Which families.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Which backends of hal.")] = None,
    library: Annotated[
        list[Path] | None, typer.Option(help="Files of torch operators to load first.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write all figures as JSON.")] = None,
) -> None:
    """Print a table for each family, and write the figures."""
    for path in library or ():
        torch.ops.load_library(str(path))
    backends = backend or ["triton"]
    cold = 3 * torch.cuda.get_device_properties(0).L2_cache_size
    rows: list[Row] = []
    before = machine()
    for name in family or FAMILIES:
        some = timed(list(FAMILIES[name]()), backends, cold)
        if some:
            CONSOLE.print(shown(some, backends))
        rows += some
        if output:
            data = {"machine": before, "after": machine(), "backends": backends}
            output.write_text(json.dumps(data | {"rows": [r.to_dict() for r in rows]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
