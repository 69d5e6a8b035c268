"""Devices of other names, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> str:
    """What a program prints that does not fail."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


UNKNOWN = """
{readme}
import hal.testing.simulated
assert simulate("example") is example is torch.example is torch.get_device_module("example")
print(x.device, *x.shape)
print(*hal.devices(), hal.device(x).accelerator, example.get_device_name())
"""


def test_a_device_that_hal_has_never_heard_of_takes_three_lines() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page.partition("## A device without hardware\n")[2]
    readme = section.partition("```python\n")[2].partition("```")[0].strip()
    assert readme.startswith("import torch\n\nimport hal\n")
    assert len([line for line in readme.splitlines()[3:] if line]) == 3
    found = run("-c", UNKNOWN.format(readme=readme), PYTHONWARNINGS="ignore")
    assert found.splitlines() == ["example:0 4 8", "example:0 cpu True simulated example"]


TRITON = """
import torch, hal
from hal.testing.simulated import simulate
example = simulate('example')
x = torch.randn(4, 8, device='example')
graph = example.EXAMPLEGraph()
with example.graph(graph):
    y = hal.ops.silu_and_mul(x)
assert y.isnan().all()
assert [str(node.op) for node in graph._nodes] == ['hal.silu_and_mul.default']
x.normal_()
graph.replay()
assert torch.equal(y, hal.ops.silu_and_mul(x))
print(hal.explain(hal.ops.silu_and_mul, x).chosen.backend)
"""


def test_triton_kernels_run_on_it_also_in_a_graph() -> None:
    assert run("-c", TRITON, TRITON_INTERPRET="1") == "triton"


REFUSED = """
from hal.testing.simulated import simulate

def refusal(*args, **kwargs):
    try:
        simulate(*args, **kwargs)
    except Exception as error:
        print(type(error).__name__, str(error).partition("\\n")[0])

for name in "cpu", "nn", "Example", "an example":
    refusal(name)
refusal("example", "X1")
simulate("example", memory=1 << 20)
refusal("other")
refusal("example", devices=2)
"""


def test_what_cannot_be_simulated() -> None:
    *names, card, other, more = run("-c", REFUSED).splitlines()
    for name, line in zip(("cpu", "nn", "Example", "an example"), names, strict=True):
        assert line.startswith(f"InvalidInput a device cannot be named {name!r}")
    assert card == "InvalidInput no backend says what a X1 is among devices of type example"
    for line in (other, more):
        assert line.startswith("HalError this process has Simulation(name='example'")


EARLY = """
import hal
from hal.testing.simulated import simulate
for _ in range(2):
    try:
        simulate("example")
    except hal.HalError as error:
        print(error)
    hal.devices()
"""


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    environment = {"CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    compiler, asked = run("-c", EARLY, **environment).splitlines()
    assert "by no-such-compiler, which is not here; install a C++ compiler" in compiler
    assert "simulate example before hal is first asked" in asked


def test_the_command_line_simulates() -> None:
    found = run("-m", "hal", "--simulate", "example", "devices", "--json")
    assert [device["type"] for device in json.loads(found)] == ["example", "cpu"]


@pytest.mark.long
def test_the_kit_runs_on_it() -> None:
    """Also where it asks in a process of its own."""
    checks = "numerics,written,deterministic,capture,fake,opcheck"
    options = ["--device", "example", "--ops", "silu_and_mul", "--checks", checks, "--json"]
    found = run("-m", "hal", "--simulate", "example", "check", "native", *options)
    cells = json.loads(found)["cells"]
    assert {cell["check"]: cell["status"] for cell in cells} == dict.fromkeys(
        checks.split(","), "proven"
    )
