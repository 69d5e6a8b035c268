"""``hal check`` as it is run: checks in a child, which a kernel may end, hold up or write from."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BACKEND = """
import ctypes, os, time
import torch
import hal

backend = hal.Backend(api=1, devices=("cpu",))

def right(x):
    os.write(1, b"from below\\n")
    print("from above")
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.relu(wide).square().to(x.dtype).contiguous()

def deadly(x: torch.Tensor) -> torch.Tensor:
    if x.shape == (3, 7):
        ctypes.string_at(8)
    return right(x)

def endless(x: torch.Tensor) -> torch.Tensor:
    print("begun", flush=True)
    time.sleep(1000)

@hal.hookimpl
def relu_squared(device):
    return [hal.Kernel(fn=deadly, name="deadly"), hal.Kernel(fn=right, name="right")]

@hal.hookimpl
def quick_gelu(device):
    return hal.Kernel(fn=endless, name="endless")
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Any]:
    """Starts ``hal check`` of a backend that is there for it alone."""
    info = tmp_path / "hal_bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hal-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hal.backends]\nbad = hal_bad\n")
    (tmp_path / "hal_bad.py").write_text(BACKEND)

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "hal", "check", "bad", *arguments],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that run in the background of a shell ignore interrupts, and so would a child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.long  # test_conformance asks it of a fork.
def test_a_kernel_that_ends_the_process_is_refuted_and_the_rest_goes_on(process: Any) -> None:
    child = process("--ops", "relu_squared", "--checks", "numerics,fake", "--json")
    said, noise = child.communicate(timeout=120)
    cells = {(c["kernel"], c["check"]): c for c in json.loads(said)["cells"]}
    for check in ("numerics", "fake"):
        assert cells["bad:right", check]["status"] == "proven"
        died = "the process died of SIGSEGV in case 3x7 torch.float32"
        assert cells["bad:deadly", check]["reason"] == died
    assert "in deadly" in noise  # By faulthandler, with file and line.
    assert {"from above", "from below"} <= set(noise.splitlines())
    assert child.returncode == 1


def test_an_interrupt_says_where_and_leaves_nothing_behind(process: Any) -> None:
    child = process("--ops", "quick_gelu", "--checks", "numerics")
    while child.stderr.readline() != "begun\n":
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)
    said, noise = child.communicate(timeout=60)  # Until all who hold the pipes have ended.
    assert (child.returncode, said) == (130, "")
    assert noise.strip() == (
        "hal: interrupted at quick_gelu bad:endless numerics, after 0 of 1 checks; "
        "nothing is recorded"
    )
