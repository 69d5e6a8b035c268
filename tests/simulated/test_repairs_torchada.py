"""FX's code with the real torchada, which replaces ``torch.device`` for the whole process.

``scripts/venv`` installs the versions of torchada; each runs on a simulated device, in a child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hal.repairs import DEVICE_CONSTANTS

PROGRAM = Path(__file__).with_name("shimmed.py")
NOT_NEEDED = {DEVICE_CONSTANTS.name: "not needed: the fault is not there"}
APPLIED = {DEVICE_CONSTANTS.name: "applied"}
UNDONE = {DEVICE_CONSTANTS.name: "undone"}
FAULT = {"NameError: name 'device' is not defined"}


def run(shim: str) -> dict[str, Any]:
    """What the program says with a version of torchada, as pip names it."""
    folder = Path(sys.prefix) / shim
    if not folder.is_dir():
        pytest.skip(f"scripts/venv has not installed {shim} in {folder}")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def generated(said: dict[str, str]) -> set[str]:
    """What came of running generated code; torch 2.7's ``aot_eager`` interprets the graph."""
    return {result for name, result in said.items() if not name.startswith("aot_eager")}


def test_one_that_breaks_it() -> None:
    said = run("torchada==0.1.60")
    assert said["replaced"]
    assert said["before"] == NOT_NEEDED
    assert generated(said["broken"]) == generated(said["undone"]) == FAULT
    # It is mended by the time the graph with hal's operator has its code.
    assert (said["traced"], said["traced repairs"]) == ("ok", APPLIED)
    assert set(said["mended"].values()) == set(said["again"].values()) == {"ok"}
    assert set(said["copies"].values()) == {True}
    assert (said["undo"], said["repair"]) == (UNDONE, APPLIED)


@pytest.mark.parametrize(
    "shim",
    [pytest.param("torchada==0.1.103", marks=pytest.mark.long), "torchada"],
    ids=["first", "newest"],
)
def test_one_that_mends_it_itself(shim: str) -> None:
    said = run(shim)
    assert said["replaced"]
    outcomes = [said[when] for when in ("before", "traced repairs", "undo", "repair")]
    assert outcomes == [NOT_NEEDED] * 4
    results = [*said["broken"].values(), *said["mended"].values(), *said["again"].values()]
    assert set(results) == {"ok"} == {said["traced"]}
    assert set(said["copies"].values()) == {True}
