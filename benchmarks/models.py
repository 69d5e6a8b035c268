"""Time a step of models of Llama 3 8B's and Qwen3-30B-A3B's shape on hal, beside transformers.

    python benchmarks/models.py --output models.json
    python benchmarks/models.py --device cpu --tiny            # whether the logits agree

The weights are random, the same for both, and there are a few layers only. First the logits are
held against those of transformers in float32. Needs the extra ``benchmarks``.
"""

from __future__ import annotations

import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import hal
from failures import Failures, attempt, synchronize
from model import Model
from steps import SHAPES, Call, Phase, build, off, ours, theirs
from timing import require_cuda

ROUNDS = 5
CALLS = 10
# Two of bfloat16's roundings in a row are 8e-3. A token whose routing is all but a tie may have
# another expert, in hal or in transformers, which moves its logits more than that.
LIMIT = 5e-2

PHASES = (
    Phase("prefill", 1, 2048, 2048),
    Phase("decode", 1, 1, 1024),
    Phase("decode", 16, 1, 1024),
)
TINY_PHASES = (Phase("prefill", 1, 24, 24), Phase("decode", 1, 1, 24), Phase("decode", 3, 1, 24))


@attrs.define
class Cell(Failures):
    """What was found for a phase of a model: errors of logits, and microseconds of a step."""

    model: str
    phase: Phase
    errors: dict[str, float] = attrs.field(factory=dict, init=False)
    us: dict[str, float] = attrs.field(factory=dict, init=False)

    @property
    def red(self) -> bool:
        """Whether hal failed, or is further off than transformers in the same dtype."""
        off, theirs = self.errors.get("hal"), self.errors.get("transformers", 0.0)
        failed = any(name.startswith("hal") for name in self.wrong)
        return failed or off is None or not off <= max(LIMIT, 2 * theirs)


def graph(call: Call) -> Call:
    """The replay of a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured.replay


def compiled(call: Call, mode: str) -> Call:
    """What torch.compile makes of a call, run often enough that it is warm."""
    function = torch.compile(call, mode=mode, dynamic=False)

    def run() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return function()

    for _ in range(3):
        run()
    return run


def wall(calls: dict[str, Call]) -> dict[str, float]:
    """Microseconds of a call from the host's sight, the median of rounds that take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            synchronize()
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            synchronize()
            found[name].append((time.perf_counter() - began) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def measured(cell: Cell, model: Any, exact: Any, modes: Sequence[str]) -> None:
    """Hold the logits against those in float32, and time what can be had."""
    torch._dynamo.reset()
    phase = cell.phase
    generator = torch.Generator().manual_seed(1)
    size = (phase.rows, phase.keys)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)
    want = exact(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    makers: dict[str, Callable[[], Call]] = {
        "hal": lambda: ours(Model.of(model, phase.keys), phase, tokens),
        "transformers": lambda: theirs(model, phase, tokens),
    }
    steps = {who: attempt(cell, who, make) for who, make in makers.items()}
    steps = {who: step for who, step in steps.items() if step}
    for who, step in steps.items():
        found = attempt(cell, who, lambda step=step: off(step(), want))
        cell.errors |= {} if found is None else {who: found}
    if torch.cuda.is_available():
        steps |= on_cuda(cell, steps, modes)
    cell.us = wall({who: step for who, step in steps.items() if who not in cell.wrong})


def on_cuda(cell: Cell, steps: dict[str, Call], modes: Sequence[str]) -> dict[str, Call]:
    """The steps in a graph, and what torch.compile makes of that of transformers."""
    makers = {f"{who}, graph": functools.partial(graph, step) for who, step in steps.items()}
    if peer := steps.get("transformers"):
        for mode in modes:
            makers[f"transformers, compile {mode}"] = functools.partial(compiled, peer, mode)
    made = {who: attempt(cell, who, make) for who, make in makers.items()}
    return {who: step for who, step in made.items() if step}


def shown(cells: Sequence[Cell]) -> Table:
    """Microseconds of a step; in brackets the error of the logits."""
    names = list(dict.fromkeys(name for cell in cells for name in (*cell.us, *cell.wrong)))
    table = Table("model", "phase", *names)
    for cell in cells:
        phase = cell.phase
        said = f"{phase.name} {phase.rows} x {phase.new} of {phase.keys}"
        values = [f"{cell.us[n]:.0f}" if n in cell.us else "wrong" for n in names]
        errors = [f" ({cell.errors[n]:.1e})" if n in cell.errors else "" for n in names]
        table.add_row(cell.model, said, *(v + e for v, e in zip(values, errors, strict=True)))
    return table


def report(cells: Sequence[Cell], device: str, layers: int) -> dict[str, Any]:
    """As plain data."""
    name = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"name": name, "hal": hal.__version__} | {k: str(v) for k, v in versions.items()}
    command = " ".join(sys.argv[1:])
    found = [attrs.asdict(cell) for cell in cells]
    return {"machine": machine, "command": command, "layers": layers, "models": found}


def in_float32(model: Any) -> Any:
    """A copy that computes its experts one after the other, not grouped."""
    exact = copy.deepcopy(model).float()
    exact.set_experts_implementation("eager")
    return exact


@torch.inference_mode()
def main(
    device: str = "cuda",
    layers: int = 4,
    shape: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Modes of torch.compile.")] = None,
    tiny: Annotated[bool, typer.Option(help="Small models.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write all figures as JSON.")] = None,
) -> None:
    """Print a table, and write the figures; the exit status is 1 where hal's logits are off."""
    if torch.device(device).type == "cuda":
        require_cuda()
    cells: list[Cell] = []
    for name in shape or SHAPES:
        kind, full, small = SHAPES[name]
        model = build(kind, small if tiny else full, layers, device, torch.bfloat16)
        exact = in_float32(model)
        for phase in TINY_PHASES if tiny else PHASES:
            cells.append(Cell(name, phase))
            measured(cells[-1], model, exact, mode or ("default", "reduce-overhead"))
            if output:
                output.write_text(json.dumps(report(cells, device, layers), indent=1))
        del model, exact
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(shown(cells))
    for cell in cells:
        for who, reason in cell.wrong.items():
            console.print(f"wrong: {cell.model} {cell.phase.name} {who}: {reason}", markup=False)
    raise typer.Exit(int(any(cell.red for cell in cells)))


if __name__ == "__main__":
    typer.run(main)
