"""hal on a card that the real torchada passes off as NVIDIA's; ``scripts/venv`` installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("musa_shimmed.py")


SHIMS = [
    "torchada==0.1.60",
    pytest.param("torchada==0.1.103", marks=pytest.mark.long),
    pytest.param("torchada", marks=pytest.mark.long),
]


@pytest.mark.parametrize("shim", SHIMS)
def test_the_card_is_moore_threads(shim: str) -> None:
    folder = Path(sys.prefix) / shim
    if not folder.is_dir():
        pytest.skip(f"scripts/venv has not installed {shim} in {folder}")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    # What the shim says, and what hal does not take from it.
    assert (said["patched"], said["is_cuda"], said["counted"]) == (True, True, 1)
    assert said["devices"][0] == ["musa:0", "Moore Threads", 31]
    assert [kind for kind, *_ in said["devices"]] == ["musa:0", "cpu"]
    assert said["reason"] == "this torch is built without CUDA"
    assert (said["swiglu"], said["attention"]) == ("musa:torch_musa", "musa:mate")
    assert said["close"] == [True, True]
    assert said["of a name"] == "musa"
