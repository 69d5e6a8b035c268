"""A program: what FX's code does with torchada imported after hal was used, and what hal mends.

It prints as JSON what came of each trial: "ok", or the error.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import hal
from hal.testing.simulated import simulate

MUSA = simulate("musa")
# From torch 2.11 on Dynamo's guards ask for it, which torchada 0.1.60 hands on to torch_musa.
MUSA.streams = torch.cuda.streams  # type: ignore[attr-defined]
TEXT = "device(type='cpu')"


def wanted(device: str) -> torch.Tensor:
    return torch.zeros(4, device=device) + torch.ones(2, 4, device=device)


def zeros(x: Any) -> Any:
    return torch.zeros(4, device=x.device) + x


def compiled(device: str, backend: str) -> Any:
    torch.compiler.reset()
    function = torch.compile(zeros, backend=backend, fullgraph=True)
    return function(torch.ones(2, 4, device=device))


def made(device: str) -> Any:
    x = torch.ones(2, 4, device=device)
    return make_fx(zeros)(x)(x)


class Zeros(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return zeros(x)


def exported(device: str) -> Any:
    x = torch.ones(2, 4, device=device)
    return torch.export.export(Zeros(), (x,)).module()(x)


def attempt(trial: Callable[..., Any], device: str, *more: str) -> str:
    try:
        result = trial(device, *more)
    except NameError as error:
        return f"NameError: {str(error).splitlines()[0]}"
    assert result.device.type == device
    assert result.equal(wanted(device))
    return "ok"


def trials() -> dict[str, str]:
    return {
        f"{name} on {device}": attempt(trial, device, *more)
        for device in ("cpu", "musa")
        for name, trial, *more in (
            ("eager", compiled, "eager"),
            ("aot_eager", compiled, "aot_eager"),
            ("make_fx", made),
            ("export", exported),
        )
    }


def softmax(x: torch.Tensor) -> torch.Tensor:
    return hal.ops.softmax(zeros(x))


def traced() -> str:
    """An operator of hal is traced, beside a device."""
    torch.compiler.reset()
    x = torch.randn(2, 4, device="musa")
    found = torch.compile(softmax, backend="eager", fullgraph=True)(x)
    assert torch.allclose(found.cpu(), hal.ops.softmax(x.cpu()))
    return "ok"


def copies() -> dict[str, bool]:
    """A graph of a device and of what looks like one, and what copies of it return."""
    graph, value = Graph(), [torch.device("musa", 0), TEXT, {"on": torch.device("cpu")}]
    graph.output(value)
    module = GraphModule(torch.nn.Module(), graph)
    return {
        "itself": module() == value,
        "deepcopy": copy.deepcopy(module)() == value,
        "pickle": pickle.loads(pickle.dumps(module))() == value,
    }


def main() -> None:
    said: dict[str, Any] = {"before": hal.repair()}
    import torchada  # noqa: F401  # It changes the whole process.

    said["replaced"] = torch.device is not type(torch.device("cpu"))
    said["broken"] = trials()
    said["traced"] = traced()
    said["traced repairs"] = hal.report("cpu", ops=[]).repairs
    said["mended"] = trials()
    said["copies"] = copies()
    said["undo"] = hal.repair(undo=True)
    said["undone"] = trials()
    said["repair"] = hal.repair()
    said["again"] = trials()
    sys.stdout.write(json.dumps(said))


main()
