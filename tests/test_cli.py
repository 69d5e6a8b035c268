"""The command line: readable tables, JSON alone on stdout, one line for an error and a status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from typer.testing import CliRunner, Result

import hal
from hal import cli
from hal.doctor import findings
from hal.op import OPS
from hal.plugins import BackendInfo

COMMANDS = [["devices"], ["ops"], ["backends"], ["explain", "softmax"], ["report"], ["doctor"]]
# Of everything that a table shows, what is useless in part.
WHOLE = {"ops": list(OPS), "report": [*OPS, "native:torch", "graph_safe"], "devices": ["cpu"]}


def run(*arguments: str, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(cli.app, arguments)


def data(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_tables_are_plain_and_whole(command: list[str], columns: int) -> None:
    result = run(*command, columns=columns)
    assert result.exit_code == 0
    assert all(character.isprintable() or character == "\n" for character in result.stdout)
    assert "…" not in result.stdout
    for name in WHOLE.get(command[0], []):
        assert name in result.stdout
    if columns >= 80:
        assert max(map(len, result.stdout.splitlines())) <= columns


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_json_says_what_the_functions_say(command: list[str]) -> None:
    expected = {
        "devices": [device.to_dict() for device in hal.devices()],
        "backends": [backend.to_dict() for backend in hal.backends()],
        "explain": hal.explain("softmax").to_dict() | {"arguments": {}},
        "report": hal.report().to_dict(),
        "doctor": {"ok": True, "findings": []},
    }
    found = data(*command)
    if command[0] == "ops":
        assert [op["name"] for op in found] == list(OPS)
    else:
        assert found == json.loads(json.dumps(expected[command[0]]))


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.split()[:2]) == (0, ["hal", f"{hal.__version__},"])


def test_help_names_every_command() -> None:
    help_text = run("--help").stdout
    assert all(command[0] in help_text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rms_norm", "--shape", "4,8"], {"x": "[4, 8] bfloat16", "weight": "None"}),
        (
            ["rms_norm", "--shape", "4,8", "--shape", "8:float32", "--set", "eps=1e-5"],
            {"x": "[4, 8] bfloat16", "weight": "[8] float32", "eps": "1e-05"},
        ),
        (
            ["rms_norm", "--shape", "weight=8", "--shape", "4,8", "--dtype", "float16"],
            {"x": "[4, 8] float16", "weight": "[8] float16"},
        ),
        (["fused_add_rms_norm_", *["--shape", "2,8"] * 2, "--shape", "8"], None),
        (["softmax", "--shape", "2,8", "--set", "temperature=0.5", "--device", "cpu"], None),
        (["softmax", "--shape", "2,8", "--shape", "temperature=:float32"], None),
    ],
)
def test_explain_makes_the_arguments(arguments: list[str], expected: dict[str, str] | None) -> None:
    found = data("explain", *arguments)
    assert found["chosen"] == "native:torch"
    assert found["arguments"]
    if expected is not None:
        assert found["arguments"] == expected


def test_explain_finds_the_integer_tensors() -> None:
    shapes = ["--shape", "4", "--shape", "4,8,64", "--shape", "4,2,64", "--shape", "128,64"]
    arguments = data("explain", "rotary_embedding", *shapes)["arguments"]
    assert arguments["positions"] == "[4] int32"
    assert arguments["cos_sin_cache"] == "[128, 64] bfloat16"


def test_explain_allocates_nothing() -> None:
    huge = data("explain", "silu_and_mul", "--shape", "1000000000,8192", "--device", "cpu")
    assert huge["chosen"] == "native:torch"


@pytest.mark.parametrize("command", [["explain", "softmax"], ["report"]])
def test_a_device_that_is_not_here_is_said_to_be_none(command: list[str]) -> None:
    said = run(*command, "--device", "cuda:99", "--json")
    assert said.exit_code == 0
    assert "hal: warning: there is no device 'cuda:99'; this machine has" in said.stderr
    assert "cuda:99" in json.dumps(json.loads(said.stdout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "rms_nrom"], "did you mean rms_norm"),
        (["explain", "softmax", "--shape", "4,x"], "'4,x' is not a shape"),
        (["explain", "softmax", "--shape", "4,-1"], "'4,-1' is not a shape"),
        (["explain", "softmax", "--shape", "4", "--dtype", "bfloat61"], "did you mean bfloat16"),
        (["explain", "softmax", "--shape", "4", "--device", "toaster"], "no device 'toaster'"),
        (["report", "--device", "toaster"], "this machine has"),
        (["explain", "silu_and_mul", "--shape", "4,7"], "x is [4, 7] bfloat16"),
        (["explain", "silu_and_mul", *["--shape", "4,8"] * 2], "has 1 tensors (x); there are 2"),
        (["explain", "softmax", "--shape", "logit=4"], "it has logits"),
        (["explain", "softmax", "--shape", "4", "--set", "temprature=1"], "it has temperature"),
        (["explain", "softmax", "--shape", "4", "--set", "temperature"], "write name=value"),
        (["explain", "sample", "--shape", "4,8"], "needs --shape seed=SIZES --shape offset=SIZES"),
        (["explain", "varlen_attention", "--shape", "4,2,64"], "--set max_seqlen_k=VALUE"),
        (["explain", "softmax", "--shape", "4", "--set", "temperature=hot"], "temperature must be"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_flaw_in_a_shape_is_reported_not_a_guessed_dtype() -> None:
    shapes = ["--shape", "4", "--shape", "4,8,63", "--shape", "4,2,64", "--shape", "128,64"]
    message = run("explain", "rotary_embedding", *shapes).stderr
    assert "query is [4, 8, 63] bfloat16" in message


def test_what_a_backend_prints_does_not_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    cli.asked(print, "loading")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading\n")


def ill(**changes: Any) -> hal.query.Report:
    return attrs.evolve(hal.report("cpu"), **changes)


def test_doctor_names_backends_that_did_not_load() -> None:
    broken = BackendInfo("broken", "hal-broken", "1.0", "failed", "ImportError: no libfast")
    old = BackendInfo("old", "hal-old", "0.1", "incompatible", "written for plugin API 0")
    denied = BackendInfo("denied", "hal-denied", "0.1", "disabled", "denied by HAL_DISABLE")
    healthy = hal.report("cpu").backends
    found = findings(ill(backends=(*healthy, broken, old, denied), problems=("old: hook raised",)))
    assert [finding.what for finding in found] == [
        "backend broken (hal-broken 1.0) is failed: ImportError: no libfast",
        "backend old (hal-old 0.1) is incompatible: written for plugin API 0",
        "old: hook raised",
    ]
    assert all(
        f"HAL_DISABLE={name}" in f.remedy
        for name, f in zip(("broken", "old", "old"), found, strict=True)
    )


def test_doctor_names_accelerators_that_the_reference_serves() -> None:
    report = hal.report("cpu")
    device = attrs.evolve(report.devices[0], accelerator=True)
    choices = tuple(attrs.evolve(choice, device=device) for choice in report.choices)
    (finding,) = findings(ill(devices=(device,), choices=choices))
    assert finding.what == f"the reference, which is slow, serves {len(choices)} ops on cpu"
    assert f"hal explain {choices[0].op} --device cpu" in finding.remedy
    (few,) = findings(ill(devices=(device,), choices=choices[:2]))
    assert f"{choices[0].op}, {choices[1].op}" in few.what


def test_doctor_names_ops_that_nothing_serves() -> None:
    report = hal.report("cpu", ops=["softmax"])
    choices = tuple(attrs.evolve(choice, candidates=()) for choice in report.choices)
    (finding,) = findings(attrs.evolve(report, choices=choices))
    assert finding.what == "nothing serves softmax on cpu"


def test_doctor_misses_the_reference() -> None:
    (finding,) = findings(ill(backends=()))
    assert "native" in finding.what
    assert "pip install torch-hal" in finding.remedy
    denied = BackendInfo("native", "torch-hal", "1.0", "disabled", "denied by HAL_DISABLE")
    assert "denied by HAL_DISABLE" in findings(ill(backends=(denied,)))[0].what


def test_doctor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sick = ill(problems=("broken: softmax raised \x1b[31mOSError",))
    monkeypatch.setattr(hal, "report", lambda: sick)
    result = run("doctor")
    assert result.exit_code == 1
    assert "wrong: broken: softmax raised" in result.stdout
    assert "\x1b" not in result.stdout
    assert data("doctor")["ok"] is False


def test_report_puts_devices_of_a_kind_together(monkeypatch: pytest.MonkeyPatch) -> None:
    report = hal.report("cpu")
    twins = tuple(attrs.evolve(report.devices[0], index=i) for i in range(2))
    choices = tuple(attrs.evolve(c, device=twin) for twin in twins for c in report.choices)
    both = attrs.evolve(report, devices=twins, choices=choices)
    monkeypatch.setattr(hal, "report", lambda _: both)
    assert "cpu:0, cpu:1" in run("report").stdout
    assert run("report").stdout.count("native:torch") == len(report.choices)


# A device that the host has not got, a promise that is broken, and chatter where JSON is expected.
BACKEND = """
print("loading")
import hal
backend = hal.Backend(api=1, devices=("cpu", "cuda"))

@hal.hookimpl
def hal_devices():
    return [hal.Device("cuda", 99, name="Example 9000", arch=90, memory=80 * 2**30)]

@hal.hookimpl
def softmax(device):
    raise OSError("no \\x1b[31mlibfast")
"""


def as_module(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path or ""), "COLUMNS": "80"}
    command = [sys.executable, "-m", "hal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_with_a_backend_that_makes_trouble(tmp_path: Path) -> None:
    info = tmp_path / "hal_bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hal-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hal.backends]\nbad = hal_bad\n")
    (tmp_path / "hal_bad.py").write_text(BACKEND)
    child = as_module("doctor", "--json", path=tmp_path)
    assert child.returncode == 1
    assert "loading" in child.stderr
    found = [finding["what"] for finding in json.loads(child.stdout)["findings"]]
    claim, trouble = (what for what in found if what.startswith("bad: "))
    assert claim == "bad: hal_devices claims cuda:99, on which this torch can place nothing"
    assert trouble.startswith("bad: softmax raised OSError")


def test_as_a_module() -> None:
    child = as_module("ops", "--json")
    assert (child.returncode, child.stderr) == (0, "")
    assert {op["name"] for op in json.loads(child.stdout)} == set(OPS)
