"""The command line on a simulated Moore Threads card says that it is one."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hal.cli import app
from simulated.vendors import ARCH, vendors


def said(*arguments: str) -> str:
    with vendors("mate", "sgl_kernel"):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_devices() -> None:
    (line,) = [line for line in said("devices").splitlines() if line.startswith("musa:0")]
    assert "(simulated)" in line
    assert str(ARCH) in line.split()
    found = json.loads(said("devices", "--json"))
    assert [each["simulated"] for each in found] == [True] * (len(found) - 1) + [False]


@pytest.mark.skipif(ARCH < 31, reason="MATE is for mp_31")
def test_report() -> None:
    told = said("report")
    served = {
        line.split()[0]: line.split()[1] for line in told.splitlines() if "musa:" in line[20:]
    }
    wanted = {"silu_and_mul": "musa:torch_musa", "paged_attention": "musa:mate"}
    wanted |= {"mla_decode": "musa:mate", "fused_gemv": "musa:sgl_kernel"}
    assert wanted.items() <= served.items()
    # What a library has and may not serve is no kernel that might.
    assert served.keys().isdisjoint({"fused_experts", "topk_softmax", "per_token_quant"})
    assert "simulated, so that nothing here is of hardware" in told
