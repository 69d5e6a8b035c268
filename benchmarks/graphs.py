"""Time steps of a model of Llama 3 8B's shape: from graphs in hal's ways, eager, and compiled.

    python benchmarks/graphs.py --phase prefill --output prefill.json         # in 580 s
    python benchmarks/graphs.py --phase decode --output decode.json           # in 400 s
    python benchmarks/graphs.py --simulate musa --tiny                        # without a device

The weights are random. Prefill is of one sequence without past, decode of sequences with past. A
step is timed from its call until its logits are there. One whose logits are off is not timed. What
was found is written after each way and each step, so that little is lost if it is cut off.
"""

from __future__ import annotations

import functools
import gc
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from compiling import Clock, Compiled
from failures import DeviceLost, Failures, attempt
from graphs_page import ORDER, show
from hal.graphs import ladder
from machine import machine
from model import Model, read
from steps import SHAPES, Phase, build
from subject import Subject
from timing import copy_time
from turns import ROUNDS, Cell, Turns
from ways import (
    Took,
    Way,
    broken,
    captured_whole,
    hals,
    in_pieces,
    written,
)

Ways = dict[str, Callable[[], Way]]

NAME = "Llama 3 8B"
# Prompts of as many tokens as buckets have, and between them; batches likewise.
FULL = {
    "prefill": (1, 4, 16, 64, 100, 128, 256, 300, 512, 1024, 3000, 4096),
    "decode": (1, 5, 8, 18, 64),
}
TINY = {"prefill": (1, 3, 4, 20, 24), "decode": (1, 3, 4, 18, 20)}
PAST, TINY_PAST = 1023, 31
# What is compiled for one number of tokens takes as long for each.
FIXED = {"prefill": (128,), "decode": (1, 8, 64)}
# The seconds that it takes to time all steps of a phase.
REST = {"prefill": 130.0, "decode": 60.0}
COPIED = 4_000_000_000
"""Bytes read and written by the copy that tells what the memory can do."""
WAYS = tuple(name for name in ORDER if name not in ("hal", "transformers"))
# Graphs of a simulated device see nothing of the code that Inductor makes.
SIMULATED = ("hal capture", "hal breakable", "hal piecewise")


def phases(kind: str, counts: Sequence[int], past: int) -> list[Phase]:
    """The steps of a phase, by their numbers of tokens."""
    if kind == "prefill":
        return [Phase(kind, 1, count, count) for count in counts]
    return [Phase(kind, count, 1, past + 1) for count in counts]


def groups(turns: Turns, clock: Clock) -> Iterator[Ways]:
    """The ways besides those as they are written; what may be cut off comes last.

    The first group is timed for the case that the second, which may take long, is never ready.
    """
    subject, dynamic = turns.subject, turns.subject.kind == "prefill"
    counts = [cell.phase.tokens for cell in turns.cells]
    steps, most = turns.steps_of("transformers"), ladder(max(counts))
    buckets = sorted({next(b for b in most if b >= count) for count in counts})
    pieces = functools.partial(in_pieces, subject, buckets)
    for step in phases(subject.kind, buckets, subject.tokens.shape[1] - 1):
        # What kernels take to compile is no part of what captures take.
        attempt(Failures(), "hal", hals(subject).make(step))
    yield {
        "hal capture": lambda: captured_whole(subject, buckets),
        "hal breakable": lambda: broken(subject, buckets),
        "hal piecewise": pieces,
        "hal piecewise unguarded": lambda: pieces(guards=False),
    }
    fixed = [count for count in FIXED[subject.kind] if count in counts] or counts[-1:]
    # torch.compile takes a size of 1 for a constant.
    several = [count for count in counts if count > 1]

    def compiled(mode: str, dynamic: bool) -> Callable[[], Way]:
        return lambda: Compiled(subject, mode, dynamic, several if dynamic else fixed, steps, clock)

    last: Ways = {
        "transformers compile": compiled("default", dynamic),
        "transformers reduce-overhead": compiled("reduce-overhead", dynamic),
        "hal piecewise inductor": lambda: clock.compiles(lambda: pieces("inductor", guards=False)),
    }
    if dynamic:
        last["transformers reduce-overhead, one size"] = compiled("reduce-overhead", False)
    yield last


@attrs.define(eq=False)
class Run:
    """What is timed, and all that has been found until now.

    Attributes:
        only: The ways besides those as they are written.
        output: Where it goes as JSON.
        machine: What the figures belong to.
        copied: Bytes that a copy reads and writes in a second, where that could be timed.
        took: What each way took to make, by phase and way.
    """

    peer: Any
    model: Model
    clock: Clock
    only: Sequence[str]
    output: Path | None
    machine: dict[str, str]
    copied: float | None = None
    cells: list[Cell] = attrs.field(factory=list)
    took: dict[str, dict[str, Took]] = attrs.field(factory=dict)

    def measure(self, steps: Sequence[Phase], say: Callable[[str], None]) -> None:
        """Make all ways of a phase ready, and time their steps in turn."""
        subject = Subject.of(self.peer, self.model, steps)
        took = self.took.setdefault(subject.kind, {})
        cells = [Cell(phase) for phase in steps]
        turns = Turns(subject, cells, len(self.model.layers), say, took)
        self.cells += cells
        turns.add({"hal": lambda: hals(subject), "transformers": lambda: written(subject)})
        wanted = self.wanted(groups(turns, self.clock))
        self.clock.rest = REST[subject.kind]
        for group in wanted[:-1]:
            turns.add(group)
            turns.time(rounds=1, calibrated=False)
        turns.add(wanted[-1])
        turns.time(ROUNDS)
        turns.close()

    def wanted(self, found: Iterator[Ways]) -> list[Ways]:
        """Those of the groups of ways that were asked for; one at least, to be timed."""
        some = [{name: each[name] for name in each if name in self.only} for each in found]
        return [each for each in some if each] or [{}]

    @property
    def red(self) -> bool:
        """Whether hal is wrong anywhere."""
        return any(name.startswith("hal") for cell in self.cells for name in cell.wrong)

    def report(self) -> dict[str, Any]:
        """As plain data, of seconds, bytes and microseconds."""
        took = {
            kind: {name: attrs.asdict(one) for name, one in each.items()}
            for kind, each in self.took.items()
        }
        return {
            "machine": self.machine,
            "command": shlex.join(sys.argv[1:]),
            "layers": len(self.model.layers),
            "read": read(self.model),
            "copy": self.copied,
            "took": took,
            "graphs": [attrs.asdict(cell) for cell in self.cells],
        }

    def write(self) -> None:
        """Keep it."""
        if self.output:
            self.output.write_text(json.dumps(self.report(), indent=1), encoding="utf-8")


def place(device: str, simulated: str | None) -> torch.device:
    """Where it runs; without graphs there, the end."""
    if simulated:
        from hal.testing.simulated import simulate

        simulate(simulated)
        return torch.device(simulated, 0)
    if torch.device(device).type == "cpu" or not torch.accelerator.is_available():
        raise SystemExit("what is timed runs from graphs, and torch finds no device for them here")
    return torch.device(device)


def copied(device: torch.device) -> float | None:
    """Bytes that a copy reads and writes in a second, where that can be timed."""
    if device.type != "cuda":
        return None
    return COPIED / copy_time(COPIED, 0, device).us * 1e6


def prepared(device: torch.device, layers: int, sizes: Mapping[str, Any], most: int) -> Any:
    """The model of transformers, and that on hal with the same weights."""
    peer = build(SHAPES[NAME][0], dict(sizes), layers, str(device), torch.bfloat16)
    model = Model.of(peer, most)
    # Before each capture there is a look for garbage, and what is here is none.
    gc.collect()
    gc.freeze()
    return peer, model


def bar(console: Console) -> Progress:
    """What shows how far a run has come."""
    text, done = TextColumn("{task.description}"), MofNCompleteColumn()
    return Progress(text, BarColumn(), done, TimeElapsedColumn(), console=console, transient=True)


def check(names: Sequence[str], known: Sequence[str]) -> None:
    """End with a word on a name that there is not."""
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")


def go(run: Run, steps: Sequence[Sequence[Phase]], console: Console) -> bool:
    """Measure each phase, and say what is going on; False if the device was lost."""
    # Steps are timed again when more ways are there, at most twice.
    total = sum(2 + len(run.only) + 2 * len(each) for each in steps)
    with bar(console) as progress:
        task = progress.add_task("", total=total)

        def say(what: str) -> None:
            console.print(f"{run.clock.now:5.0f} s  {what}", markup=False, soft_wrap=True)
            progress.update(task, advance=1, description=what.partition(",")[0])
            run.write()

        try:
            for each in steps:
                run.measure(each, say)
        except DeviceLost as error:
            run.write()
            console.print(f"the device is lost: {error}", markup=False)
            return False
    return True


@torch.inference_mode()
def main(
    device: Annotated[str, typer.Option(help="Where, if not simulated.")] = "cuda",
    layers: Annotated[int, typer.Option(help="How many; the model has 32.")] = 32,
    phase: Annotated[list[str] | None, typer.Option(help="prefill or decode; or both.")] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(help=f"Besides hal and transformers as they are written: {'; '.join(WAYS)}."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Compile nothing that might take longer.")] = 580,
    tiny: Annotated[bool, typer.Option(help="A small model, and few tokens.")] = False,
    simulate: Annotated[
        str | None, typer.Option(help="A device on host memory, by its type, such as musa.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write all figures as JSON.")] = None,
) -> None:
    """Time steps in all ways; print tables and write figures. The status is 1 if hal is wrong."""
    kinds, clock = phase or list(FULL), Clock(seconds)
    check(kinds, list(FULL))
    check(way or [], WAYS)
    only = way or (SIMULATED if simulate else WAYS)
    where, console = place(device, simulate), Console(stderr=True, highlight=False)
    known, past = (TINY, TINY_PAST) if tiny else (FULL, PAST)
    steps = [phases(kind, known[kind], past) for kind in kinds]
    _, full, small = SHAPES[NAME]
    longest = max(*known["prefill"], past + 1)
    peer, model = prepared(where, layers, small if tiny else full, longest)
    about = machine() | {"transformers": transformers.__version__}
    about |= {"name": f"{where.type}, simulated"} if simulate else {}
    run = Run(peer, model, clock, only, output, about, copied(where))
    going = go(run, steps, console)
    show(run.report())
    raise typer.Exit(int(run.red or not going))


if __name__ == "__main__":
    typer.run(main)
