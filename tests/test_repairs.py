"""Repairs to torch: the one for devices in FX's code, and when repairs are made and undone."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.specifiers import SpecifierSet
from torch.fx import Graph, GraphModule
from torch.fx import graph as fx
from torch.fx.experimental.proxy_tensor import make_fx

import hal
from hal.errors import BackendError
from hal.plugins import Plugin, registry
from hal.repairs import DEVICE_CONSTANTS, Repair, mend, take_back
from hostile import Forks, Stranger, running
from offering import NATIVE, backend, installed

FAULT = "name 'device' is not defined"
NOT_NEEDED = "not needed: the fault is not there"
Device = torch.device


class Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Device)


class Stand(metaclass=Meta):
    """What a shim puts in the place of ``torch.device``: it makes those, and is none."""

    def __new__(cls, type: Any, index: int | None = None) -> Any:
        return Device(type) if index is None else Device(type, index)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another class where ``torch.device`` was, as a shim leaves it, and FX as it is then."""
    import_module("torch._dynamo")  # It notes the class of devices, as it is when it is imported.
    before = fx._custom_builtins["device"]
    monkeypatch.setattr(torch, "device", Stand)
    yield
    fx._register_custom_builtin("device", *before)


def constant(value: Any) -> GraphModule:
    """A module that returns a constant, which stands in the code of its graph."""
    graph = Graph()
    graph.output(value)
    return GraphModule(torch.nn.Module(), graph)


def zeros_added() -> GraphModule:
    # FX takes annotations that are text for types, which it cannot pickle; this function has none.
    return make_fx(lambda x: torch.zeros(3, device=x.device) + x)(torch.ones(3))


@pytest.mark.usefixtures("replaced")
def test_the_fault_is_seen_and_mended() -> None:
    assert DEVICE_CONSTANTS.needed()
    with pytest.raises(NameError, match=FAULT):
        zeros_added()(torch.ones(3))
    assert mend(DEVICE_CONSTANTS) == "applied"
    assert not DEVICE_CONSTANTS.needed()
    assert zeros_added()(torch.ones(3)).equal(torch.ones(3))


@pytest.mark.usefixtures("replaced")
def test_it_is_done_once() -> None:
    first = mend(DEVICE_CONSTANTS)
    registered = fx._custom_builtins["device"]
    assert mend(DEVICE_CONSTANTS, first) == "applied"
    assert mend(DEVICE_CONSTANTS) == NOT_NEEDED
    assert fx._custom_builtins["device"] is registered


@pytest.mark.usefixtures("replaced")
def test_undone_it_is_as_it_was() -> None:
    before = fx._custom_builtins["device"]
    assert take_back(DEVICE_CONSTANTS, mend(DEVICE_CONSTANTS)) == "undone"
    assert fx._custom_builtins["device"] == before
    with pytest.raises(NameError, match=FAULT):
        constant(Device("cpu"))()
    assert mend(DEVICE_CONSTANTS, "undone") == "applied"


def test_where_nothing_is_wrong_nothing_is_done() -> None:
    before = fx._custom_builtins["device"]
    assert mend(DEVICE_CONSTANTS) == NOT_NEEDED
    assert take_back(DEVICE_CONSTANTS, NOT_NEEDED) == NOT_NEEDED
    assert fx._custom_builtins["device"] is before


def test_it_is_for_the_versions_that_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = SpecifierSet(DEVICE_CONSTANTS.torch)
    assert [v for v in ("2.6.0", "2.7.1", "2.9.0", "2.13.0", "2.14.0") if v in inside] == [
        *("2.7.1", "2.9.0", "2.13.0")
    ]
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    assert mend(DEVICE_CONSTANTS) == f"not applied: for torch {DEVICE_CONSTANTS.torch}"


def in_text(value: Any) -> Any:
    """What becomes of a constant if devices are looked for in the text of the generated code."""
    code = constant(value).graph.python_code("self")

    def call(found: re.Match[str]) -> str:
        index = "" if found[2] is None else f":{found[2]}"
        return f"torch.device('{found[1]}{index}')"

    source = re.sub(r"\bdevice\(type='([^']+)'(?:,\s*index=(\d+))?\)", call, code.src)
    names = {**code.globals, "torch": torch}
    exec(source, names)
    return names["forward"](None)


CPU, SECOND = Device("cpu"), Device("cuda", 1)

# Each with whether looking for devices in the generated code's text would keep it.
CONSTANTS: dict[str, tuple[Any, bool]] = {
    "without index": (CPU, True),
    "with index": (SECOND, True),
    "index 0": (Device("cuda", 0), True),
    "without data": (Device("meta"), True),
    "nested": ([(CPU, 1), {"on": [SECOND, CPU]}], True),
    "text of a device": ("device(type='cpu')", False),
    "text with an index": ("device(type='cuda', index=1)", False),
    "text about a device": ("moved to device(type='cpu') and back", False),
    "text of a list": ("[device(type='cpu'), device(type='cuda', index=0)]", False),
    "text beside a device": ((CPU, "device(type='cpu')"), False),
    "text in a dictionary": ({"device": CPU, "was": ["device(type='cpu')"]}, False),
    "text as a key": ({"device(type='cpu')": CPU}, False),
    "text of a name": ("device", True),
    "text of a call": ("torch.device('cpu')", True),
    "plain": ((1, 2.5, None, float("inf"), torch.float16, slice(1, None)), True),
}


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_what_they_were(name: str) -> None:
    value, kept = CONSTANTS[name]
    mend(DEVICE_CONSTANTS)
    assert constant(value)() == value
    assert (in_text(value) == value) is kept


@pytest.mark.usefixtures("replaced")
def test_arguments_by_keyword() -> None:
    mend(DEVICE_CONSTANTS)
    graph = Graph()
    named = {"where": CPU, "text": "device(type='cpu')"}
    graph.output(graph.call_function(dict, kwargs=named))
    assert GraphModule(torch.nn.Module(), graph)() == named


def test_code_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {name: constant(value).code for name, (value, _) in CONSTANTS.items()}
    before = fx._custom_builtins["device"]
    monkeypatch.setattr(torch, "device", Stand)
    try:
        mend(DEVICE_CONSTANTS)
        assert {name: constant(value).code for name, (value, _) in CONSTANTS.items()} == plain
    finally:
        fx._register_custom_builtin("device", *before)


COPIES: list[Callable[[GraphModule], GraphModule]] = [
    copy.copy,
    copy.deepcopy,
    lambda module: pickle.loads(pickle.dumps(module)),
    lambda module: GraphModule(module, copy.deepcopy(module.graph)),
]


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle", "graph"])
def test_copies_run(copied: Callable[[GraphModule], GraphModule]) -> None:
    mend(DEVICE_CONSTANTS)
    again = copied(zeros_added())
    assert again(torch.ones(3)).equal(torch.ones(3))
    again.recompile()
    assert again(torch.ones(3)).equal(torch.ones(3))


@pytest.mark.usefixtures("replaced")
def test_what_was_pickled_runs_where_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    mend(DEVICE_CONSTANTS)
    pickled = pickle.dumps(constant([CPU, "device(type='cpu')"]))
    take_back(DEVICE_CONSTANTS, "applied")
    monkeypatch.undo()
    assert pickle.loads(pickled)() == [CPU, "device(type='cpu')"]


@pytest.mark.usefixtures("replaced")
def test_saved_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mend(DEVICE_CONSTANTS)
    monkeypatch.syspath_prepend(tmp_path)
    constant([SECOND, "device(type='cpu')"]).to_folder(tmp_path / "with_a_device", "Saved")
    assert import_module("with_a_device").Saved()() == [SECOND, "device(type='cpu')"]


def wanting(*wanted: Repair) -> Plugin:
    """A backend that is loaded, whose repairs were not needed then."""
    plugin = backend("b", devices=None)
    plugin.wanted.extend(wanted)
    plugin.repairs.update({each.name: NOT_NEEDED for each in wanted})
    return plugin


def compiled(x: torch.Tensor) -> Any:
    torch.compiler.reset()

    def fn(x: torch.Tensor) -> torch.Tensor:
        return hal.ops.softmax(torch.zeros(4, device=x.device) + x)

    return torch.compile(fn, backend="eager", fullgraph=True)(x)


def test_what_breaks_later_is_mended_when_an_operator_is_traced(
    request: pytest.FixtureRequest,
) -> None:
    x = torch.randn(2, 4)
    with installed(wanting(DEVICE_CONSTANTS), NATIVE):
        request.getfixturevalue("replaced")
        assert compiled(x).equal(hal.ops.softmax(x))
        assert hal.report("cpu", ops=[]).repairs == {DEVICE_CONSTANTS.name: "applied"}


@pytest.mark.usefixtures("replaced")
def test_what_is_undone_stays_so_until_it_is_asked_for() -> None:
    x = torch.randn(2, 4)
    with installed(wanting(DEVICE_CONSTANTS), NATIVE):
        assert hal.repair() == {DEVICE_CONSTANTS.name: "applied"}
        assert hal.repair(undo=True) == {DEVICE_CONSTANTS.name: "undone"}
        with pytest.raises(NameError, match=FAULT):
            compiled(x)
        assert hal.report("cpu", ops=[]).repairs == {DEVICE_CONSTANTS.name: "undone"}
        assert hal.repair() == {DEVICE_CONSTANTS.name: "applied"}
        assert compiled(x).equal(hal.ops.softmax(x))


@pytest.mark.usefixtures("replaced")
def test_the_report_asks_again() -> None:
    with installed(wanting(DEVICE_CONSTANTS), NATIVE):
        assert hal.report("cpu", ops=[]).to_dict()["repairs"] == {DEVICE_CONSTANTS.name: "applied"}
        assert not DEVICE_CONSTANTS.needed()


def switch(faulty: list[str], **changes: Any) -> Repair:
    """A repair that empties ``faulty``, and whose undoing fills it."""
    given: dict[str, Any] = {
        "needed": lambda: bool(faulty),
        "apply": faulty.clear,
        "undo": lambda: faulty.append("again"),
        **changes,
    }
    return Repair("a switch", torch=">=2.7", **given)


def test_what_cannot_be_undone_stays_applied() -> None:
    faulty = ["at first"]
    with installed(wanting(switch(faulty, undo=None)), NATIVE):
        assert hal.repair() == {"a switch": "applied"}
        assert hal.repair(undo=True) == {"a switch": "applied"}
    assert not faulty


def test_what_was_not_applied_is_not_undone() -> None:
    faulty: list[str] = []
    with installed(wanting(switch(faulty)), NATIVE):
        assert hal.repair(undo=True) == {"a switch": NOT_NEEDED}
    assert not faulty


def test_a_repair_without_effect_is_taken_back() -> None:
    faulty = ["at first"]
    with pytest.raises(BackendError, match="it was applied without effect"):
        mend(switch(faulty, apply=lambda: None))
    assert faulty == ["at first", "again"]


def test_one_that_fails_later_is_on_record() -> None:
    faulty = ["at first"]

    def failing() -> None:
        raise OSError("no such thing")

    with installed(plugin := wanting(switch(faulty, apply=failing)), NATIVE):
        with pytest.warns(UserWarning, match="backend b: repair a switch: OSError: no such thing"):
            assert hal.repair() == {"a switch": "failed: OSError: no such thing"}
        assert registry().troubles()
        faulty.clear()
        assert hal.repair() == {"a switch": NOT_NEEDED}
    assert plugin.problems == ["repair a switch: OSError: no such thing"]


def test_a_repair_that_needs_hal_ends() -> None:
    """It would be asked for, for the sake of the operator, for ever."""
    plugin = wanting(switch([], needed=hal.repair))
    told = pytest.warns(UserWarning, match="hal was asked, in hal_repairs of backend b")
    with installed(plugin, NATIVE), told:
        hal.repair()
    assert "needs the result of just that" in plugin.repairs["a switch"]


forks = pytest.fixture(running, scope="module")


def test_as_a_backend_states_it(forks: Forks, tmp_path: Path) -> None:
    source = """
faulty = []
@hookimpl
def hal_repairs():
    return Repair("a switch", torch=">=2", needed=lambda: bool(faulty), apply=faulty.clear,
                  undo=lambda: faulty.append(1))
"""
    questions = {
        "loaded": "hal.report('cpu').repairs",
        "broken": "[sys.modules['hal_acme'].faulty.append(1), hal.report('cpu').repairs][1]",
        "undone": "hal.repair(undo=True), [*sys.modules['hal_acme'].faulty]",
        "again": "hal.repair(), [*sys.modules['hal_acme'].faulty]",
    }
    answers = forks.ask(tmp_path, [Stranger("acme", source)], questions)
    assert answers["loaded"] == {"a switch": NOT_NEEDED}
    assert answers["broken"] == {"a switch": "applied"}
    assert answers["undone"] == [{"a switch": "undone"}, [1]]
    assert answers["again"] == [{"a switch": "applied"}, []]


def test_without_the_devices_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = ["at first"]
    plugin = backend("b", devices=("acme", "toaster"))
    plugin.wanted.append(switch(faulty))
    with installed(plugin, NATIVE):
        assert hal.repair() == {}
        assert faulty
        monkeypatch.setattr(torch, "toaster", object(), raising=False)
        assert hal.repair() == {"a switch": "applied"}


def test_the_backends_here_that_have_repairs() -> None:
    having = {p.name: [each.name for each in p.wanted] for p in registry().load() if p.wanted}
    assert having == {"musa": [DEVICE_CONSTANTS.name]}
