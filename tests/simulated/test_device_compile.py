"""Tracing and compiling for a simulated device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch._subclasses import FakeTensorMode

import hal
from hal.testing.simulated import fallbacks, simulate
from hal.testing.simulated.capture import launched

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


def put(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[torch.tensor([0, 2], device=x.device)] = 1.0
    return y


COMPILED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "indices": put,
    "a mean": lambda x: x.mean(-1),
    "any": lambda x: (x > 0).any(-1),
    "16 bits": lambda x: x.bfloat16().amax(-1),
    "random numbers": lambda x: (torch.rand_like(x) >= 0) & (torch.rand_like(x) < 1),
}


@pytest.mark.parametrize("name", COMPILED)
def test_inductor_makes_kernels_of_dynamic_sizes(name: str) -> None:
    """It would ask of Triton's kernels what those of the host have not."""
    torch._dynamo.reset()
    x = torch.randn(4, 8, device="musa")
    compiled = torch.compile(COMPILED[name], fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), COMPILED[name](x))


def double(x: torch.Tensor, y: torch.Tensor) -> None:
    """A kernel that no operator is called by, as compiled ones are."""
    size = (ctypes.c_float * x.numel()).from_address
    given, made = size(x.data_ptr()), size(y.data_ptr())
    made[:] = [2 * each for each in given]


def test_a_capture_records_a_kernel_of_compiled_code() -> None:
    x, kept = torch.ones(4, device="musa"), torch.zeros(4, device="musa")
    graph = HERE.MUSAGraph()
    with HERE.graph(graph):
        made = torch.empty_like(x)
        launched(double)(x, made)
        launched(double)(made, kept)
    # Nothing took effect.
    assert (kept.tolist(), made.isnan().all().item()) == ([0] * 4, True)
    for value in (1.0, 3.0):
        x.fill_(value)
        graph.replay()
        assert (made.tolist(), kept.tolist()) == ([2 * value] * 4, [4 * value] * 4)


def test_it_does_not_run_on_memory_that_was_freed() -> None:
    x, y = torch.ones(1 << 18, device="musa"), torch.zeros(1 << 18, device="musa")
    graph = HERE.MUSAGraph()
    with HERE.graph(graph):
        launched(double)(x, y)
    del x
    with pytest.raises(RuntimeError, match="illegal memory access: a replay runs"):
        graph.replay()
    assert not y.any()


def test_operators_of_hal_are_compiled() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 8, device="musa")
    with hal.use("native"):
        compiled = torch.compile(lambda x: hal.ops.silu_and_mul(x) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(x), hal.ops.silu_and_mul(x) + 1)
