"""What is built and what importing it brings in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

import hal

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FILES = ("*.py", "*.pyi", "py.typed", "*.json", "*.cpp")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel made from it, which proves that the sdist is whole."""
    where = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(where), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return where


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, str]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def sources(root: Path) -> set[str]:
    return {
        path.relative_to(root.parent).as_posix()
        for pattern in SOURCE_FILES
        for path in root.rglob(pattern)
    }


def test_the_wheel_has_the_packages_and_nothing_else(wheel: dict[str, str]) -> None:
    info = f"torch_hal-{hal.__version__}.dist-info"
    packages = {name for name in wheel if not name.startswith(f"{info}/")}
    backends = [path for path in (ROOT / "backends").glob("*/*") if path.is_dir()]
    assert packages == sources(ROOT / "hal").union(*map(sources, [ROOT / "hal_pytest", *backends]))
    ours = {"hal", "hal_cuda", "hal_musa", "hal_native", "hal_pytest", "hal_triton"}
    assert {name.partition("/")[0] for name in wheel} == {*ours, info}
    assert {"hal/py.typed", "hal/ops/__init__.pyi", "hal_native/py.typed"} <= packages
    assert f"{info}/licenses/LICENSE" in wheel


def test_metadata(wheel: dict[str, str]) -> None:
    info = f"torch_hal-{hal.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel[f"{info}/METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("torch-hal", hal.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"triton", "cuda", "musa", "test", "dev", "benchmarks", "examples", "testing"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = ["attrs", "packaging", "pluggy", "rich", "torch", "typer"]
    assert [line.partition(">")[0] for line in required] == names
    entries = wheel[f"{info}/entry_points.txt"]
    assert "[console_scripts]\nhal = hal.cli:main\n" in entries
    backends = "".join(f"{name} = hal_{name}\n" for name in ("cuda", "musa", "native", "triton"))
    assert f"[hal.backends]\n{backends}" in entries


def test_the_sdist_has_what_it_takes_to_build_and_test(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "scripts/test", "hal/py.typed"} <= names
    assert {"tests/test_packaging.py", "backends/native/hal_native/__init__.py"} <= names


def test_the_stubs_are_current() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "stubs", "--check"], check=True)


# Torch leaves so many objects that a collection takes longer than the import it may fall into.
CHILD = """
import gc, json, sys, time
start = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - start
gc.disable()
before = set(sys.modules)
start = time.perf_counter()
import hal
seconds = time.perf_counter() - start
added = sorted(set(sys.modules) - before)
print(json.dumps({"seconds": seconds, "torch": torch_seconds, "added": added}))
"""


def imported() -> dict[str, Any]:
    """What ``import hal`` adds to ``import torch`` in a fresh process: modules and seconds."""
    # Users have the bytecode of what they installed.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=kept)
    return json.loads(done.stdout)


def test_importing_hal_brings_in_no_backend_and_no_command_line() -> None:
    added = set(imported()["added"])
    roots = {name.partition(".")[0] for name in added}
    assert not roots & {"hal_native", "triton", "typer", "click", "rich", "transformers"}
    assert "hal.cli" not in added


@pytest.mark.long
def test_importing_hal_is_quick() -> None:
    """At most 50 ms, or a twentieth of ``import torch``, slowed alike where a machine is busy.

    The least of several is what the import costs; the rest is what else the machine did.
    """
    runs = [imported() for _ in range(5)]
    assert (
        min(run["seconds"] for run in runs) <= 0.050
        or min(run["seconds"] / run["torch"] for run in runs) <= 0.050
    )
