"""The kit under pytest, as the author of a backend runs it, and that it leaves others alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


WORKERS = pytest.param(("-n", "2"), id="workers", marks=pytest.mark.long)


@pytest.mark.parametrize("workers", [pytest.param((), id="alone"), WORKERS])
def test_a_test_for_each_claim_and_the_table(tmp_path: Path, workers: tuple[str, ...]) -> None:
    asked = ("--hal-backend=native", "--hal-ops=mul_add", "--hal-checks=out,in-place,statistics")
    done = run(tmp_path, "--pyargs", "hal.testing", *asked, "--hal-output=a.json", *workers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 skipped" in done.stdout
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert any("conformance of native on cpu" in line for line in lines)
    assert "op      sta out in-" in lines
    assert "mul_add -   ok  ok" in lines
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    statuses = {cell["check"]: cell["status"] for cell in data["cells"]}
    assert statuses == {"statistics": "not applicable", "out": "proven", "in-place": "proven"}


FAULTY = """
import pytest
from offering import NATIVE, backend, installed, kernel
import hal
from hal.testing import notyet

def wrong(x, y, scale):
    return x + y

gap = notyet("mul_add", "numerics", "waits") if GAP else None
plugin = backend("planted", devices=("cpu",), mul_add=hal.Kernel(fn=wrong, name="wrong"))
plugin.hooks["hal_known_gaps"] = lambda: [gap] if gap else []

@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.planted = installed(plugin, NATIVE)
    config.planted.__enter__()

def pytest_unconfigure(config):
    config.planted.__exit__(None, None, None)
"""


@pytest.mark.parametrize(
    ("gap", "status", "outcome"),
    [(False, 1, "1 failed"), pytest.param(True, 1, "1 xfailed", marks=pytest.mark.long)],
)
def test_what_fails(tmp_path: Path, gap: bool, status: int, outcome: str) -> None:
    tests = Path(__file__).parent
    source = f"import sys\nsys.path.insert(0, {str(tests)!r})\nGAP = {gap}\n{FAULTY}"
    (tmp_path / "planting.py").write_text(source, encoding="utf-8")
    asked = ("--hal-backend=planted", "--hal-ops=mul_add", "--hal-checks=numerics")
    done = run(tmp_path, "-p", "planting", "--pyargs", "hal.testing", *asked)
    # With a gap and nothing else nothing is proven, which is no success either.
    assert done.returncode == status, done.stdout + done.stderr
    assert outcome in done.stdout


def test_without_a_backend_nothing_is_asked(tmp_path: Path) -> None:
    done = run(tmp_path, "--pyargs", "hal.testing", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no backend is named by --hal-backend" in done.stdout


def test_an_unknown_name_is_an_error_of_usage(tmp_path: Path) -> None:
    done = run(tmp_path, "--pyargs", "hal.testing", "--hal-backend=natve")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "there is no backend 'natve'; did you mean native?" in done.stderr


def test_a_run_of_something_else_imports_neither_hal_nor_torch(tmp_path: Path) -> None:
    test = "import sys\n\ndef test():\n    assert not {'hal', 'torch'} & set(sys.modules)\n"
    (tmp_path / "test_other.py").write_text(test + "    assert 'hal_pytest' in sys.modules\n")
    done = run(tmp_path, "-p", "no:hypothesispytest")
    assert done.returncode == 0, done.stdout
