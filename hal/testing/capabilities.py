"""What is claimed of a device, and how it is proven there."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch._subclasses import FakeTensorMode

from hal.hardware import Capability, Device
from hal.testing.captures import graph_class
from hal.testing.checks import Effort
from hal.testing.outcome import NotApplicable, NotTried
from hal.testing.subject import HOST

__all__ = ["CAPABILITIES"]

Proof = Callable[[Device, Effort], int]


def _bf16(device: str) -> int:
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    for operation in (torch.add, torch.mul, torch.sub):
        got = operation(values.to(device), values.flip(0).to(device)).to(HOST)
        assert torch.equal(got, operation(values, values.flip(0))), f"{operation.__name__} differs"
    return 3 * 1024


def _fp8(device: str) -> int:
    codes = torch.arange(256).to(torch.uint8)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        there = codes.to(device).view(dtype)
        got, want = there.float().to(HOST), codes.view(dtype).float()
        assert torch.equal(got.nan_to_num(), want.nan_to_num()), f"{dtype} reads differently"
        back = there.float().to(dtype).view(torch.uint8).to(HOST)
        assert torch.equal(back[want.isfinite()], codes[want.isfinite()]), f"{dtype} is not kept"
    return 2 * 256


def _graphs(device: str) -> int:
    module, graph_type = graph_class(torch.device(device).type)
    x = torch.ones(64, device=device)
    torch.add(x, x)
    module.synchronize()
    graph = graph_type()
    with module.graph(graph):
        doubled = torch.add(x, x)
    for value in (2.0, 3.0):
        x.fill_(value)
        graph.replay()
        module.synchronize()
        assert bool((doubled == 2 * value).all()), "a replay does not see new data"
    return 2


def _fake(device: str) -> int:
    with FakeTensorMode():
        x = torch.empty(3, 8, device=device, dtype=torch.bfloat16)
        got = torch.nn.functional.silu(x) @ x.t()
    assert (got.shape, str(got.device)) == ((3, 3), str(x.device)), f"{got.shape} on {got.device}"
    return 1


def _compiled(device: str) -> int:
    def gate(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(left) * right

    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(device)
    # Processes that compile would outlive a worker of pytest, which then waits for them.
    with importlib.import_module("torch._inductor.config").patch(compile_threads=1):
        torch.testing.assert_close(torch.compile(gate, fullgraph=True)(x), gate(x))
    return 1


def _unproven(device: str) -> int:
    raise NotTried(f"the kit has no kernel that shows it on {device}")


def _claimed(capability: Capability, proof: Callable[[str], int]) -> Proof:
    def run(device: Device, effort: Effort) -> int:
        del effort
        if capability not in device.capabilities:
            raise NotApplicable(f"{capability.value} is not claimed for {device}")
        return proof(str(device))

    return run


_PROOFS = {
    Capability.BF16: _bf16,
    Capability.FP8: _fp8,
    Capability.FAKE_KERNELS: _fake,
    Capability.GRAPH_CAPTURE: _graphs,
    Capability.COMPILE: _compiled,
}

CAPABILITIES: dict[Capability, Proof] = {
    each: _claimed(each, _PROOFS.get(each, _unproven)) for each in Capability
}
"""How each capability is proven."""
