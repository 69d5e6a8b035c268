"""The check of programmatic dependent launch, on kernels that run ahead of their data."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

import hal
from hal.testing.checks import Effort
from hal.testing.outcome import Status
from hal.testing.questions import questions, where
from hal.testing.run import answer
from offering import backend, installed

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and hal.supports(hal.Capability.PDL, "cuda")),
    reason="no device here starts a kernel before the last one has ended",
)


@triton.jit
def square(
    out, x, count, READS_FIRST: tl.constexpr, WRITES_FIRST: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if WRITES_FIRST:
        tl.store(out + at, 1.0, mask=at < count)
    if READS_FIRST:
        value = tl.load(x + at, mask=at < count).to(tl.float32)
    tl.extra.cuda.gdc_wait()
    if not READS_FIRST:
        value = tl.load(x + at, mask=at < count).to(tl.float32)
    value = tl.where(value < 0.0, 0.0, value)
    tl.store(out + at, value * value, mask=at < count)


def relu_squared(reads_first, writes_first):
    def fn(x: torch.Tensor) -> torch.Tensor:
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grid = (triton.cdiv(x.numel(), 1024),)
        if x.numel():
            square[grid](out, x, x.numel(), reads_first, writes_first, BLOCK=1024, launch_pdl=True)
        return out

    return hal.Kernel(fn=fn, name="square", pdl=True, supports=not_double)


def not_double(x: torch.Tensor) -> str | None:
    return "float64 is not computed" if x.dtype == torch.float64 else None


def found(reads_first=False, writes_first=False):
    plugin = backend(
        "early", devices=("cuda",), relu_squared=relu_squared(reads_first, writes_first)
    )
    cuda = next(p for p in hal.plugins.registry().plugins if p.name == "cuda")
    with installed(plugin, cuda):
        (asked,) = questions("early", where("early", "cuda"), ["relu_squared"], ["pdl"])
        return answer(asked, Effort())


def test_a_kernel_that_waits_passes():
    cell = found()
    assert cell.status is Status.PROVEN, cell.reason


def test_one_that_reads_ahead_is_caught():
    cell = found(reads_first=True)
    assert cell.status is Status.REFUTED
    assert "written late" in cell.reason


def test_one_that_writes_ahead_is_caught():
    cell = found(writes_first=True)
    assert cell.status is Status.REFUTED
    assert "read late" in cell.reason
