"""The benchmark of graphs: what it times is right, and what is not right is not timed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

import graphs
import turns as turns_of
import ways
from compiling import Clock
from failures import DeviceLost
from hal.testing.simulated import simulate
from model import Model
from peers import DoesNotFit
from steps import SHAPES, Phase, build
from subject import Subject
from turns import Cell, Turns

HERE = simulate("musa")
X = torch.device("musa:0")

pytestmark = [
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def as_it_runs() -> Iterator[None]:
    """In inference mode; a round of one step is enough to see that it is timed."""
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "ROUNDS", 1)
        patch.setattr("turns.SETTLE", 0)
        patch.setattr("turns.TURN", 0)
        yield


@pytest.fixture(scope="module")
def peer() -> Any:
    kind, _, sizes = SHAPES[graphs.NAME]
    return build(kind, sizes, 1, str(X), torch.bfloat16)


def silent(said: str) -> None:
    del said


def test_every_step_is_timed_in_every_way_that_is_asked_for(peer: Any, tmp_path: Path) -> None:
    asked, output = ["hal capture", "hal breakable"], tmp_path / "graphs.json"
    run = graphs.Run(peer, Model.of(peer, 32), Clock(60), asked, output, {"hal": "0"})
    for kind, counts in {"prefill": (1, 3, 24), "decode": (3, 18)}.items():
        some = graphs.phases(kind, counts, graphs.TINY_PAST)
        run.measure(some, lambda said: run.write())
    assert not run.red
    for cell in run.cells:
        assert set(cell.us) == set(cell.spread) == {"hal", "transformers", *asked}, cell
        assert {cell.errors[name] for name in asked} == {0.0}
    tokens = [(cell.phase.tokens, cell.computed["hal capture"]) for cell in run.cells]
    assert tokens == [(1, 1), (3, 4), (24, 24), (3, 4), (18, 18)]
    assert run.took["prefill"]["hal capture"].buckets == (1, 4, 24)
    assert run.took["prefill"]["hal breakable"].graphs == 6
    assert json.loads(output.read_text()) == json.loads(json.dumps(run.report()))


@pytest.mark.long
@pytest.mark.parametrize("kind", graphs.TINY)
def test_so_it_is_in_pieces(peer: Any, kind: str) -> None:
    run = graphs.Run(peer, Model.of(peer, 32), Clock(60), ["hal piecewise"], None, {})
    run.measure(graphs.phases(kind, graphs.TINY[kind], graphs.TINY_PAST), silent)
    assert not run.red
    assert [cell.computed["hal piecewise"] for cell in run.cells][:3] == [2, 4, 4]
    assert {cell.errors["hal piecewise"] for cell in run.cells} == {0.0}


def turns(peer: Any, phases: Sequence[Phase]) -> Turns:
    subject = Subject.of(peer, Model.of(peer, 32), phases)
    made = Turns(subject, [Cell(phase) for phase in phases], 1, silent)
    made.add({"hal": lambda: ways.hals(subject)})
    return made


def test_what_is_wrong_is_not_timed(peer: Any) -> None:
    phase = Phase("prefill", 1, 4, 4)
    some = turns(peer, [phase])
    right = ways.hals(some.subject).make(phase)
    logits = right()

    def off() -> Tensor:
        return right() * 1.1

    def unstored() -> Tensor:
        return logits

    def failed() -> Tensor:
        raise ValueError("no kernel image")

    for name, call in {"off": off, "unstored": unstored, "failed": failed}.items():
        some.add({f"hal {name}": lambda call=call: ways.Plain(lambda _: call)})
    some.time(rounds=1)
    (cell,) = some.cells
    assert list(cell.us) == ["hal"]
    assert cell.errors["hal off"] == pytest.approx(0.1, rel=0.1)
    said = {name: reason.partition(" (")[0] for name, reason in cell.wrong.items()}
    assert said == {
        "hal off": f"its logits, or what it stores, are off by {cell.errors['hal off']:.1e}",
        "hal unstored": "its logits, or what it stores, are off by nan",
        "hal failed": "ValueError: no kernel image",
    }


def test_a_step_that_is_not_from_graphs_is_refused(
    peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = turns(peer, [Phase("prefill", 1, 4, 4), Phase("prefill", 1, 8, 8)])
    made = ways.captured_whole(some.subject, [4])
    with pytest.raises(StopIteration):
        made.ready(some.cells[1].phase)
    captured = made.captured[0]
    monkeypatch.setattr(captured, "_unfit", lambda *_: "it is not to be")
    some.add({"hal capture": lambda: made})
    (reason,) = {cell.wrong["hal capture"] for cell in some.cells[:1]}
    assert reason.startswith("HalError: not from graphs: it is not to be")
    some.close()
    assert made.captured == []


def test_what_might_not_be_compiled_in_time_is_not_begun() -> None:
    with pytest.raises(DoesNotFit, match=r"^5 s were left, too few"):
        Clock(5.0).compiles(lambda: pytest.fail("begun"))
    with pytest.raises(DoesNotFit, match=r"^100 s were left, too few"):
        Clock(100.0, rest=60.0).compiles(lambda: pytest.fail("begun"))
    assert Clock(1000.0).compiles(lambda: 3) == 3


def test_without_a_device_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no device"):
        graphs.place("cuda", None)


def lost(turns: Turns, rounds: int, calibrated: bool = True) -> None:
    raise DeviceLost("an illegal address")


def test_a_lost_device_ends_a_run_with_what_there_is(peer: Any, tmp_path: Path) -> None:
    output, shown = tmp_path / "graphs.json", io.StringIO()
    run = graphs.Run(peer, Model.of(peer, 32), Clock(60), [], output, {})
    some = graphs.phases("decode", (1,), graphs.TINY_PAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns_of.Turns, "time", lost)
        assert not graphs.go(run, [some], Console(file=shown))
    assert "the device is lost: an illegal address" in shown.getvalue()
    (cell,) = json.loads(output.read_text())["graphs"]
    assert set(cell["computed"]) == {"hal", "transformers"}


def test_the_command_prints_tables(tmp_path: Path) -> None:
    app, output = typer.Typer(), tmp_path / "graphs.json"
    app.command()(graphs.main)
    given = ["--simulate", "musa", "--tiny", "--layers", "1", "--phase", "decode"]
    said = CliRunner().invoke(app, [*given, "--way", "hal capture", "--output", str(output)])
    assert said.exit_code == 0, said.output
    for part in ("decode: hal capture: 5 of 5 steps ready", "18 (as 20)", "not measured"):
        assert part in said.output
    assert len(json.loads(output.read_text())["graphs"]) == 5
    said = CliRunner().invoke(app, [*given, "--way", "hal"])
    assert said.exit_code == 2
    assert "'hal' is none of" in said.output
