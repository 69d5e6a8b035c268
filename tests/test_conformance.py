"""The kit as a whole: what it asks, how answers and known gaps are told, the table and the file."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import hal
from hal import cli
from hal.plugins import Plugin, State
from hal.testing import Gap, child, never, notimpl, notyet
from hal.testing.checks import CHECKS, THOROUGH, Effort
from hal.testing.command import conformance
from hal.testing.outcome import Cell, Status
from hal.testing.questions import gaps_of, questions, where
from hal.testing.records import RECORDS
from hal.testing.run import answer
from hal.testing.subject import samples
from offering import NATIVE, backend, installed, kernel


def planted(*gaps: Gap, **kernels: Any) -> Plugin:
    made = backend("planted", devices=("cpu",), **kernels)
    made.hooks["hal_known_gaps"] = lambda: list(gaps)
    return made


def doubled(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """Off by one, in bfloat16 alone."""
    result = kernel("rms_norm").fn(x, weight, eps)
    return result + 1 if x.dtype == torch.bfloat16 else result


WRONG = hal.Kernel(fn=doubled, name="wrong", deterministic=True)
SAMPLES = samples(RECORDS["rms_norm"])
COUNT = len(SAMPLES)
NARROW = sum(s.args[0].dtype == torch.bfloat16 and s.args[0].numel() > 0 for s in SAMPLES)


def one(plugin: Plugin, check: str, op: str = "rms_norm") -> Cell:
    """The cell of a planted backend for one check."""
    with installed(plugin, NATIVE):
        (question,) = questions("planted", where("planted"), [op], [check])
        return answer(question, Effort(), gaps_of("planted"))


def test_there_are_many_named_samples() -> None:
    counts = {op: len(samples(record)) for op, record in RECORDS.items()}
    assert set(counts) == set(hal.op.OPS)
    assert min(counts.values()) >= 30
    assert sum(counts.values()) >= 5000
    assert all(len({s.name for s in samples(r)}) == counts[op] for op, r in RECORDS.items())


def test_every_check_says_what_it_asks_and_has_a_head_of_its_own() -> None:
    assert all(check.summary.endswith(".") for check in CHECKS.values())
    assert len({name[:3] for name in CHECKS}) == len(CHECKS)


def test_a_wrong_kernel_is_refuted_with_the_sample_and_the_error() -> None:
    cell = one(planted(rms_norm=WRONG), "numerics")
    assert cell.status is Status.REFUTED
    assert f"{NARROW} of {COUNT} cases, the first: 3x1 torch.bfloat16: off by up to" in cell.reason


def test_the_right_kernel_passes() -> None:
    cell = one(planted(rms_norm=kernel("rms_norm")), "numerics")
    assert (cell.status, cell.reason) == (Status.PROVEN, "")
    assert cell.cases == len(samples(RECORDS["rms_norm"]))


@pytest.mark.parametrize("op", ["mul_add", "fused_add_rms_norm"])
@pytest.mark.parametrize("check", ["numerics", "random", "out", "in-place", "opcheck"])
def test_a_kernel_that_claims_no_bits_may_round_otherwise_each_time(op: str, check: str) -> None:
    exact, signs = kernel(op).fn, itertools.cycle([1, -1])

    def fn(*args: Any) -> Any:
        def noisy(result: Tensor) -> Tensor:
            near = result.nextafter(result * 2) if result.dtype == torch.float32 else result
            return torch.where(near.isfinite(), near, result) if next(signs) > 0 else result

        returned = exact(*args)
        return tuple(map(noisy, returned)) if isinstance(returned, tuple) else noisy(returned)

    fn.__signature__ = hal.op.OPS[op].signature  # type: ignore[attr-defined]
    cell = one(planted(**{op: hal.Kernel(fn=fn, name="noisy")}), check, op)
    assert (cell.status, cell.reason) == (Status.PROVEN, "")


def test_a_kernel_that_is_there_on_request_is_asked_the_same() -> None:
    slow = kernel("rms_norm", on_request="another is quicker", deterministic=True)
    for check in ("numerics", "deterministic"):
        assert one(planted(rms_norm=slow), check).status is Status.PROVEN
    wrong = attrs.evolve(slow, fn=doubled)
    assert one(planted(rms_norm=wrong), "numerics").status is Status.REFUTED


def test_what_is_not_claimed_is_not_applicable() -> None:
    cell = one(planted(rms_norm=kernel("rms_norm")), "deterministic")
    assert (cell.status, cell.reason) == (Status.NOT_APPLICABLE, "deterministic is not claimed")


def test_a_kernel_that_refuses_everything_proves_nothing() -> None:
    choosy = kernel("rms_norm", supports=lambda *_, **__: "not today")
    cell = one(planted(rms_norm=choosy), "numerics")
    assert cell.status is Status.NOT_TRIED
    assert cell.reason == f"the kernel refuses all {COUNT} samples: not today"


def test_what_torch_has_no_graphs_for_is_not_tried() -> None:
    cell = one(planted(rms_norm=kernel("rms_norm", graph_safe=True)), "capture")
    assert (cell.status, cell.reason) == (Status.NOT_TRIED, "torch has no graphs for cpu")


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process died of SIGKILL in case x"),
        (lambda: os._exit(3), "the process ended with status 3 in case x"),
        (lambda: time.sleep(1000), "the process did not go on for 1 s in case x"),
    ],
)
def test_a_kernel_that_ends_its_process_is_refuted(
    death: Callable[[], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_SECONDS", 1)

    def deadly(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
        if max(x.stride()) > 2**29:
            death()
        return kernel("rms_norm").fn(x, weight, eps)

    cell = one(planted(rms_norm=hal.Kernel(fn=deadly, name="deadly")), "offsets")
    assert (cell.status, cell.reason) == (Status.REFUTED, reason)


def test_a_kernel_that_exits_is_refuted_in_words_of_its_own() -> None:
    def leaving(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
        raise SystemExit(0)

    cell = one(planted(rms_norm=hal.Kernel(fn=leaving, name="leaving")), "numerics")
    assert cell.status is Status.REFUTED
    assert cell.reason.endswith(": SystemExit: 0")


def test_an_offer_that_is_no_kernel_is_refuted() -> None:
    with installed(planted(rms_norm="a name"), NATIVE):
        with pytest.warns(UserWarning, match="answered with 'a name'"):
            (question,) = questions("planted", where("planted"), ["rms_norm"])
        cell = answer(question, Effort())
    assert cell.status is Status.REFUTED
    assert "answered with 'a name', not a hal.Kernel" in cell.reason


# Known gaps


def test_a_known_gap_is_not_red_and_keeps_what_was_found() -> None:
    gap = notyet("rms_norm", "numerics", "needs libfast 3")
    cell = one(planted(gap, rms_norm=WRONG), "numerics")
    assert cell.status is Status.GAP
    assert cell.reason.startswith("notyet: needs libfast 3; found: ")


def test_a_gap_that_has_closed_is_red() -> None:
    gap = notimpl("rms_norm", "numerics", "odd sizes")
    cell = one(planted(gap, rms_norm=kernel("rms_norm")), "numerics")
    assert cell.status is Status.REFUTED
    assert "(notimpl: odd sizes), but it passes; take the marker out" in cell.reason


def test_a_gap_covers_the_cases_it_names_and_no_others() -> None:
    gap = never("rms_norm", "numerics", "no such unit", cases="3x1 .*")
    cell = one(planted(gap, rms_norm=WRONG), "numerics")
    assert cell.status is Status.REFUTED
    assert "not only what is marked (never: no such unit) fails, also 3x2" in cell.reason


def test_a_gap_of_another_kernel_says_nothing() -> None:
    gap = notyet("rms_norm", "numerics", "slow", kernel="other")
    assert one(planted(gap, rms_norm=WRONG), "numerics").reason.startswith(f"{NARROW} of")


def test_a_gap_that_names_nothing_is_an_error() -> None:
    gap = notyet("rms_norm", "numeric", "slow")
    with (
        installed(planted(gap), NATIVE),
        pytest.raises(hal.InvalidInput, match="no op or no check"),
    ):
        gaps_of("planted")


# The command


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["check", "--in-process", *arguments])


def test_the_table_and_the_exit_status() -> None:
    with installed(planted(rms_norm=WRONG, softmax=kernel("softmax")), NATIVE):
        said = run("planted", "--checks", "numerics,out,deterministic", "--ops", "rms_norm,softmax")
    assert said.exit_code == 1
    lines = [line.rstrip() for line in said.stdout.splitlines()]
    assert "op        num  det  out" in lines
    assert "rms_norm  NO   ok   ok" in lines
    assert "softmax   ok   -    ok" in lines
    assert any(line.startswith("refuted: rms_norm planted:wrong numerics: ") for line in lines)
    assert lines[-1].startswith("planted on cpu (")
    assert "): 2 kernels, 4 proven, 1 refuted, 0 known gap, 1 not applicable," in lines[-1]


def test_what_several_checks_find_at_one_case_is_told_once() -> None:
    with installed(planted(rms_norm=WRONG), NATIVE):
        said = run("planted", "--checks", "numerics,written", "--thorough")
    found = [line for line in said.stdout.splitlines() if line.startswith("refuted: ")]
    assert [line.split(":")[:3] for line in found] == [
        ["refuted", " rms_norm planted", "wrong numerics, written"]
    ]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with installed(planted(softmax=kernel("softmax")), NATIVE):
        said = run("planted", "--checks", "out", "--output", f"{tmp_path}/file/a.json")
    assert said.exit_code == 2
    assert "1 proven" in said.stdout  # What was found is not lost.
    assert "the outcome cannot be written to" in said.stderr


def test_a_kernel_that_takes_contiguous_tensors_has_an_honest_condition() -> None:
    def supports(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> str | None:
        return None if x.is_contiguous() else "x must be contiguous"

    cell = one(planted(rms_norm=kernel("rms_norm", supports=supports)), "condition")
    assert (cell.status, cell.reason) == (Status.PROVEN, "")


def test_all_proven_is_a_success() -> None:
    with installed(planted(softmax=kernel("softmax")), NATIVE):
        said = run("planted", "--checks", "numerics", "--json")
    data = json.loads(said.stdout)
    assert said.exit_code == 0
    assert data["ok"]
    ran = [cell for cell in data["cells"] if cell["check"] != "offer"]
    assert [(c["op"], c["kernel"], c["status"]) for c in ran] == [
        ("softmax", "planted:fast", "proven")
    ]


def test_nothing_proven_is_no_success() -> None:
    with installed(planted(), NATIVE):
        assert run("planted", "--ops", "softmax").exit_code == 1


def test_a_backend_without_a_kernel_says_why() -> None:
    empty = planted()
    empty.reason = "no libfast"
    with installed(empty, NATIVE):
        few, all_of_them = run("planted", "--ops", "softmax"), run("planted")
    assert "no kernel: softmax: offers no kernel here: no libfast\n" in few.stdout
    assert f"no kernel: {len(hal.op.OPS)} ops: offers no kernel" in all_of_them.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plant"], "there is no backend 'plant'; did you mean planted?"),
        (["planted", "--ops", "softmix"], "there is no op 'softmix'; did you mean softmax or"),
        (["planted", "--checks", "speed"], "there is no check 'speed'; known: numerics, random"),
        (["planted", "--device", "acme"], "'acme' is not a device"),
        (["planted", "--device", "meta"], "backend planted does not serve meta"),
        (["native", "--device", "cuda:99"], "there is no device 'cuda:99'; this machine has"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], message: str) -> None:
    with installed(planted(), NATIVE):
        said = run(*arguments)
    assert said.exit_code in (1, 2)
    assert message in said.stderr


def test_a_backend_that_could_not_be_loaded() -> None:
    broken = planted()
    broken.refuse(State.FAILED, "ImportError: no libfast")
    with installed(broken, NATIVE):
        said = run("planted")
    assert said.exit_code == 1
    assert "backend planted is failed: ImportError: no libfast" in said.stderr


@pytest.fixture
def wrote(tmp_path: Path) -> dict[str, Any]:
    with installed(planted(rms_norm=WRONG), NATIVE):
        run(
            "planted", "--ops", "rms_norm", "--checks", "numerics", "--output", f"{tmp_path}/a.json"
        )
    return json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))


def test_the_file(wrote: dict[str, Any]) -> None:
    (cell,) = wrote["cells"]
    assert (cell["op"], cell["check"], cell["status"]) == ("rms_norm", "numerics", "refuted")
    assert Cell.from_dict(cell).to_dict() == cell
    assert wrote["backend"] == {"name": "planted", "distribution": "hal-planted", "version": "1.0"}
    assert wrote["setting"]["torch"] == torch.__version__
    assert wrote["ok"] is False


def test_thorough_is_more_of_everything() -> None:
    usual = Effort()
    assert THOROUGH.every < usual.every
    assert THOROUGH.cases > usual.cases
    with installed(planted(rms_norm=kernel("rms_norm")), NATIVE):
        counts = [
            conformance("planted", ops=["rms_norm"], checks=["out"], thorough=each).cells[0].cases
            for each in (False, True)
        ]
    assert math.ceil(COUNT / usual.every) <= counts[0] < counts[1] == COUNT


def test_what_the_kit_is_made_with_may_be_missing() -> None:
    code = "import sys; sys.modules['numpy'] = None; from hal.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "native"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "hal: the conformance kit needs numpy: pip install 'torch-hal[testing]'" in done.stderr
