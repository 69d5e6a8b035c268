"""Graphs of a device that no backend knows, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = """
import warnings
warnings.simplefilter("ignore")
import torch, hal
{block}
if {again}:
    prefill = hal.graphs.piecewise(
        layer,
        *prompt(256),
        at=hal.ops.paged_attention,
        eager=("block_table", "seq_lens", "starts", "most", "longest"),
        pad={{"x": 0, "slots": -1}},
    )
for count in (1, 100, 256, 300):
    given = prompt(count)
    assert torch.equal(prefill(*given), layer(*given))
print(prefill.stats().fallbacks, hal.require("graph_capture", "rms_norm", "example").standing)
"""


@pytest.mark.parametrize(
    "again",
    [False, pytest.param(True, marks=pytest.mark.long)],
    ids=["breakable", "piecewise"],
)
def test_the_page_runs_on_a_device_that_no_backend_knows(again: bool) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Graphs\n")[2]
    block = page.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", PAGE.format(block=block, again=again)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    shape, *_, said = done.stdout.strip().splitlines()
    assert shape.startswith("torch.Size([100, 128]) Stats(buckets=(1, 2, 4, 8, ")
    assert said == "{'more than 256 tokens': 1} {'rms_norm': 'claimed'}"
