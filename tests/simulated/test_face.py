"""A simulated device of Moore Threads' looks like torch_musa's."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch

from hal import InvalidInput
from hal_musa.simulated import CARDS, Properties, card_named, face

CARD = card_named(next(k for k, v in CARDS.items() if v.name == torch.musa.get_device_name()))


def test_the_module_is_torch_musa() -> None:
    found = importlib.import_module("torch_musa")
    assert found is torch.musa is torch.get_device_module("musa")
    assert found.__name__ == "torch_musa"
    assert "torch.musa" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch.musa")


def test_torch_says_it_is_built_for_musa_in_digits() -> None:
    assert isinstance(torch.version.musa, str)
    assert torch.version.musa.isdigit()
    assert torch.version.musa == torch.musa._MUSAC._musa_version


def test_cuda_is_left_alone() -> None:
    assert torch.cuda.__name__ == "torch.cuda"
    assert torch.cuda.is_available() is False
    assert torch.empty(0, device="musa").is_cuda is False
    assert torch.empty(0, device="musa").is_musa is True


def test_there_are_seven_properties_and_no_other() -> None:
    found = torch.musa.get_device_properties(0)
    assert {name for name in dir(found) if not name.startswith("_")} == {
        *("name", "major", "minor", "is_multi_gpu_board", "is_integrated"),
        *("multi_processor_count", "total_memory"),
    }
    assert (found.name, (found.major, found.minor)) == (CARD.name, CARD.capability)
    assert found.total_memory == CARD.memory


def test_properties_are_those_of_a_device_that_is_said() -> None:
    (device,) = inspect.signature(torch.musa.get_device_properties).parameters.values()
    assert device.default is inspect.Parameter.empty
    with pytest.raises(TypeError):
        torch.musa.get_device_properties()
    assert torch.musa.get_device_capability() == torch.musa.get_device_capability(1)


def test_bfloat16_is_from_22_on() -> None:
    later = CARD.capability >= (2, 2)
    assert torch.musa.is_bf16_supported() is later
    assert (torch.bfloat16 in torch.musa.get_amp_supported_dtype()) is later


@pytest.mark.parametrize(
    ("card", "name", "capability"),
    [
        (None, "MTT S5000", (3, 1)),
        ("S5000", "MTT S5000", (3, 1)),
        ("S4000", "MTT S4000", (2, 2)),
        ("S80", "MTT S80", (2, 1)),
        ("S80+mate", "MTT S80", (2, 1)),
        ("+sgl_kernel", "MTT S5000", (3, 1)),
    ],
)
def test_cards(card: str | None, name: str, capability: tuple[int, int]) -> None:
    found: Any = face(card).properties(123)
    assert isinstance(found, Properties)
    assert (found.name, (found.major, found.minor), found.total_memory) == (name, capability, 123)


def test_a_card_that_is_not_there_is_told_of_those_that_are() -> None:
    with pytest.raises(InvalidInput, match=r"called 'H100'; there are S80, S4000, S5000"):
        face("H100")
    with pytest.raises(InvalidInput, match=r"called 'deep_gemm'; there are mate, sgl_kernel"):
        face("S5000+mate+deep_gemm")


def test_libraries_come_with_a_card_that_names_them() -> None:
    said = """
from hal.testing.simulated import simulate
simulate("musa", "S5000+mate")
from importlib.util import find_spec
from mate import moe_fused_gate
print(moe_fused_gate.__name__, find_spec("sgl_kernel"))
"""
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["moe_fused_gate", "None"]


def test_streams_have_a_handle_of_their_own_name() -> None:
    for stream in (torch.musa.Stream(), torch.musa.current_stream()):
        assert isinstance(stream, torch.Stream)
        assert isinstance(stream.musa_stream, int)
        assert not hasattr(stream, "cuda_stream")
    assert torch.musa.Stream().musa_stream != torch.musa.default_stream().musa_stream
    raw = torch.musa._MUSAC._musa_getCurrentRawStream(0)
    assert raw == torch.musa.current_stream().musa_stream


def test_a_graph_is_given_by_position_or_as_musa_graph() -> None:
    first = next(iter(inspect.signature(torch.musa.graph).parameters))
    assert first == "musa_graph"
    x = torch.ones(3, device="musa")
    captured = torch.musa.MUSAGraph()
    with torch.musa.graph(musa_graph=captured, pool=torch.musa.graph_pool_handle()):
        y = x + 1
    x.fill_(5)
    captured.replay()
    assert y.tolist() == [6, 6, 6]
    with pytest.raises(TypeError):
        torch.musa.graph(cuda_graph=captured)


def test_a_driver_holds_some_two_thousand_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1900 < torch.musa.MUSAGraph.limit <= 2048
    monkeypatch.setattr(torch.musa.MUSAGraph, "limit", len(torch.musa.MUSAGraph._alive) + 1)
    x = torch.ones(3, device="musa")
    kept, one_more = torch.musa.MUSAGraph(), torch.musa.MUSAGraph()
    with torch.musa.graph(kept):
        x.add_(1)
    with pytest.raises(RuntimeError, match="captured graphs"), torch.musa.graph(one_more):
        x.add_(1)
    kept.reset()
    with torch.musa.graph(torch.musa.MUSAGraph()):
        x.add_(1)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("torch_musa.core.stream", ["Stream", "Event", "StreamContext", "current_stream"]),
        ("torch_musa.core._lazy_init", ["_lazy_call", "_lazy_init"]),
        ("torch_musa.core._utils", ["_get_musa_device_index", "_get_musa_arch"]),
        ("torch_musa.core.memory", ["memory_allocated", "mem_get_info"]),
        ("torch_musa.amp", ["autocast", "GradScaler"]),
        ("torch_musa.musa_graph", ["MUSAGraph", "graph"]),
    ],
)
def test_modules_that_others_look_into(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


def test_the_number_of_a_device() -> None:
    index = sys.modules["torch_musa.core._utils"]._get_musa_device_index
    assert [index("musa:1"), index(1), index(None, optional=True)] == [1, 1, 0]
    assert index("cpu", allow_cpu=True) == -1
    with pytest.raises(ValueError, match="Expected a musa device"):
        index("cpu")


def test_autocast() -> None:
    x = torch.ones(2, 2, device="musa")
    with torch.musa.amp.autocast():
        assert (x @ x).dtype == torch.float16


def test_dynamo_is_told_the_capability_as_a_number() -> None:
    from torch._dynamo.device_interface import get_interface_for_device

    major, minor = CARD.capability
    for device in ("musa", "musa:0", "musa:1"):
        found = get_interface_for_device(device).get_compute_capability()
        assert type(found) is int
        assert found == 10 * major + minor
    assert get_interface_for_device("musa").Worker.current_device() == 0
