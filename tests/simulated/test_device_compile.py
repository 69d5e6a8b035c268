"""Tracing and compiling for a simulated device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import hal
from hal.testing.simulated import fallbacks, simulate

HERE = simulate("musa")


def block(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product, a norm, an activation and a sum."""
    h = torch.rms_norm(x @ weight, (8,))
    return torch.softmax(torch.nn.functional.silu(h) * h, -1).sum(0)


def test_fake_tensors_lie_there() -> None:
    with FakeTensorMode(), fallbacks() as found:
        x = torch.empty(3, 8, device="musa:1")
        y = block(x, torch.empty(8, 8, device="musa:1"))
    assert (str(y.device), y.shape) == ("musa:1", (8,))
    assert not found


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_code_computes_the_same(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(4, 8, device="musa", requires_grad=True)
    weight = torch.randn(8, 8, device="musa")
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for rows in (4, 5, 6):
        given = x if rows == 4 else torch.randn(rows, 8, device="musa")
        got = compiled(given, weight)
        assert got.device == x.device
        torch.testing.assert_close(got, block(given, weight))
    compiled(x, weight).square().sum().backward()
    found, x.grad = x.grad, None
    block(x, weight).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_inductor_makes_code_of_its_own() -> None:
    torch._dynamo.reset()
    x, weight = torch.randn(4, 8, device="musa"), torch.randn(8, 8, device="musa")
    compiled = torch.compile(block, fullgraph=True)
    compiled(x, weight)
    with fallbacks() as found:
        compiled(x, weight)
    assert set(found) <= {"aten::mm.out", "aten::mm"}


def test_operators_of_hal_are_compiled() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 8, device="musa")
    with hal.use("native"):
        compiled = torch.compile(lambda x: hal.ops.silu_and_mul(x) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(x), hal.ops.silu_and_mul(x) + 1)
