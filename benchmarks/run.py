"""Time hal's operators on a CUDA device, beside other libraries' kernels for the same calls.

    python benchmarks/run.py                                  # every family
    python benchmarks/run.py --family norm --output norm.json
    python benchmarks/run.py --backend cuda --backend triton --op fused_gemv --quick
    python benchmarks/run.py --library sgl_kernel/common_ops.so --peer sgl --peer torch
    python benchmarks/run.py --backend triton --backend cuda:flashinfer --family norm

Each call has arguments of its own, enough of them that none is in the cache any more, and all are
captured into one graph; providers take turns. An operator whose results are not right is not timed.
The exit status is 1 where something of hal's is not right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

import hal
from cases import FAMILIES, Case
from failures import DeviceLost
from hal.policy import op_name
from hal.testing.checks import Effort
from hal.testing.outcome import Status
from hal.testing.questions import questions, where
from hal.testing.run import answer
from machine import machine
from measure import AUTO, Row, measured, release
from peers import peers
from summary import HEAD, by_op, lines, totals
from timing import require_cuda

CHECKS = ("numerics", "random")
DEVICE = torch.device("cuda")


def red(op: str, backend: str, tries: int) -> tuple[str, bool]:
    """Why an op of a backend or kernel is not timed, and whether that is a fault; else empty."""
    name, kernel, _ = backend.partition(":")
    try:
        asked = questions(name, where(name, DEVICE.type), [op_name(op)], CHECKS)
    except hal.BackendError as error:
        return str(error), True
    asked = [question for question in asked if not kernel or question.kernel == backend]
    cells = [answer(question, Effort(cases=tries)) for question in asked] if tries else []
    for cell in cells:
        if cell.status is not Status.PROVEN:
            absent = cell.status is Status.NOT_APPLICABLE
            return f"{cell.check}: {cell.reason or cell.status.value}", not absent
    return ("", False) if asked else ("is not offered", False)


def wanted(family: str, ops: Sequence[str], quick: bool) -> Iterator[Case]:
    """The cases of a family and some ops; of each op every third if it is to be quick."""
    seen: dict[str, int] = {}
    for case in FAMILIES[family]():
        if not ops or case.op.rstrip("_") in ops:
            seen[case.op] = seen.get(case.op, -1) + 1
            if not quick or seen[case.op] % 3 == 0:
                yield case


def show(console: Console, head: Sequence[str], found: Sequence[Sequence[str]], title: str) -> None:
    table = Table(*(Column(name, no_wrap=True) for name in head), title=title)
    for line in found:
        table.add_row(*line)
    console.print(table)


class Run:
    """The rows that are found, and what is said of them."""

    def __init__(self, backends: list[str], names: list[str] | None, tries: int) -> None:
        self.backends, self.names, self.tries = backends, names, tries
        self.rows: list[Row] = []
        self.refuted: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self.asked: dict[str, list[str]] = {}
        self.machine = machine()
        self.cold = 3 * torch.cuda.get_device_properties(DEVICE).L2_cache_size

    def providers(self, op: str) -> list[str]:
        """The backends that serve an op and are right, and hal's choice if there are several."""
        if op not in self.asked:
            reasons = {backend: red(op, backend, self.tries) for backend in self.backends}
            self.asked[op] = [backend for backend, (reason, _) in reasons.items() if not reason]
            for backend, (reason, fault) in reasons.items():
                if reason:
                    (self.refuted if fault else self.absent)[f"{op} by {backend}"] = reason
        mine = self.asked[op]
        return [*mine, AUTO] if mine and len(self.backends) > 1 else mine

    def add(self, case: Case) -> None:
        """Measure a case and keep what is found."""
        mine = self.providers(case.op)
        if mine:
            self.rows.append(measured(case, mine, peers(case.op, self.names), self.cold, DEVICE))
            release()

    def measure(self, cases: Sequence[Case]) -> str:
        """Measure cases, as long as the device answers; what ended it, or nothing."""
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=f"{case.op} {case.shape}")
                try:
                    self.add(case)
                except DeviceLost as error:
                    return f"{case.op} {case.shape}: {error}"
                progress.advance(task)
        return ""

    @property
    def failed(self) -> bool:
        """Whether something of hal's is not right."""
        return bool(self.refuted) or any(row.red for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        facts = {"machine": self.machine, "after": machine(), "command": " ".join(sys.argv[1:])}
        told = {"backends": self.backends, "cases_of_a_check": self.tries}
        told |= {"refuted": self.refuted, "absent": self.absent}
        return facts | told | {"rows": [row.to_dict() for row in self.rows]}

    def show(self, console: Console, family: str) -> None:
        """Print the family's tables and what is wrong in it."""
        some = [row.to_dict() for row in self.rows if row.case.family == family]
        if some:
            for op, each in by_op(some).items():
                show(console, *lines(each), title=op)
            show(console, HEAD, totals(some), title=family)
        for row in some:
            refused = {name: row["refused"][name] for name in row["ours"] if name in row["refused"]}
            for kind, found in (("wrong", row["wrong"]), ("refused", refused)):
                for name, reason in found.items():
                    said = f"{kind}: {row['op']} {row['shape']} {name}: {reason}"
                    console.print(said, markup=False, highlight=False)


def main(
    family: Annotated[list[str] | None, typer.Option(help="Which families.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Which operators.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Which backends of hal, or kernels: cuda:flashinfer.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Which peers, or all; without it those that are loaded soon."),
    ] = None,
    library: Annotated[
        list[Path] | None, typer.Option(help="Files of torch operators to load first.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write all figures as JSON.")] = None,
    quick: Annotated[bool, typer.Option(help="A third of the cases.")] = False,
    tries: Annotated[
        int, typer.Option(help="Cases of each check that comes first; 0 leaves the checks out.")
    ] = 60,
) -> None:
    """Print tables for each family, and write the figures after each."""
    require_cuda()
    for path in library or ():
        torch.ops.load_library(str(path))
    # A file has room for every column.
    console = Console(width=None if sys.stdout.isatty() else 240)
    run = Run(backend or ["triton"], peer, tries)
    ops = [name.rstrip("_") for name in op or ()]
    lost = ""
    for name in family or FAMILIES:
        lost = lost or run.measure(list(wanted(name, ops, quick)))
        run.show(console, name)
        if output:
            output.write_text(json.dumps(run.to_dict(), indent=1))
    for what, reason in {**run.refuted, **run.absent}.items():
        console.print(f"not timed: {what}: {reason}", markup=False)
    if lost:
        console.print(f"the device is lost: {lost}", markup=False)
    raise typer.Exit(1 if lost or run.failed else 0)


if __name__ == "__main__":
    typer.run(main)
