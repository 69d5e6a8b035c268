"""``Device`` and ``Capability``, which devices are here, and what they can do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

import hal
from hal import probe
from hal.plugins import registry
from offering import NATIVE, backend, installed

HOST = hal.device("cpu")


def forget() -> None:
    probe._probe.cache_clear()
    probe._bare.cache_clear()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Have devices probed again, by the backends that the test installs, and once more after."""
    forget()
    yield
    forget()
    hal.devices()


def seen(*devices: hal.Device | str, **options: Any) -> Any:
    """A backend that finds these devices."""
    plugin = backend(options.pop("name", "a"), **({"devices": ("cpu",)} | options))
    plugin.hooks["hal_devices"] = lambda: devices if len(devices) != 1 else devices[0]
    return plugin


def test_capabilities() -> None:
    names = "PDL GRAPH_CAPTURE FAKE_KERNELS COMPILE TRITON FP8 BF16"
    assert [capability.name for capability in hal.Capability] == names.split()
    assert all(capability.value == capability.name.lower() for capability in hal.Capability)


def test_a_device_is_frozen_data() -> None:
    device = hal.Device("acme", 3, memory=2**30, capabilities=[hal.Capability.FP8])
    twin = hal.Device("acme", 3, memory=2**30, capabilities={hal.Capability.FP8})
    assert device == twin
    assert len({device, twin, attrs.evolve(device, index=4)}) == 2
    assert str(device) == "acme:3"
    assert str(hal.Device("acme")) == "acme"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        device.index = 4  # type: ignore[misc]
    assert json.loads(json.dumps(device.to_dict())) == {
        "type": "acme",
        "index": 3,
        "name": "unknown",
        "vendor": None,
        "arch": None,
        "memory": 2**30,
        "multiprocessors": None,
        "warp_size": None,
        "accelerator": True,
        "max_graphs": None,
        "simulated": False,
        "capabilities": ["fp8"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": 3}, "'type' must be"),
        ({"type": "acme", "index": "0"}, "'index' must be"),
        ({"type": "acme", "capabilities": ["fp8"]}, "'capabilities' must be"),
    ],
)
def test_a_device_of_wrong_facts(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        hal.Device(**arguments)


def test_the_host_is_a_device() -> None:
    assert HOST in hal.devices()
    assert not HOST.accelerator
    assert hal.Capability.FAKE_KERNELS in HOST.capabilities


@pytest.mark.parametrize("like", ["cpu", "cpu:0", torch.device("cpu"), torch.zeros(1), HOST])
def test_device_takes_what_names_one(like: Any) -> None:
    assert hal.device(like) is HOST


def test_a_device_that_nobody_found_has_what_is_portable() -> None:
    device = hal.device(torch.zeros(1, device="meta"))
    assert (device.type, device.index, device.name) == ("meta", None, "unknown")
    assert device.capabilities == {hal.Capability.FAKE_KERNELS}
    assert device not in hal.devices()


def test_what_other_backends_said_of_such_a_device_goes_with_them() -> None:
    """Whichever test is the first to ask."""
    probe._bare.cache_clear()
    with installed(backend("a", devices=("cpu",))):
        assert hal.device("meta").capabilities == frozenset()
    assert hal.device("meta").capabilities == {hal.Capability.FAKE_KERNELS}


def test_the_current_device_follows_torchs_default() -> None:
    assert hal.device() is HOST
    with torch.device("meta"):
        assert hal.device().type == "meta"
    assert hal.device() is HOST


def test_the_current_device_once_torchs_default_is_taken_back() -> None:
    found: list[str] = []

    def ask() -> None:
        for default in ("meta", None):
            torch.set_default_device(default)
            found.append(hal.device().type)

    # Torch keeps the default for each thread.
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == ["meta", "cpu"]


@pytest.mark.parametrize(
    ("like", "error", "message"),
    [
        ("toaster", hal.InvalidInput, "'toaster' is not a device: Expected one of cpu, cuda"),
        ("", hal.InvalidInput, "'' is not a device: Device string must not be empty"),
        ("cpu:x", hal.InvalidInput, "'cpu:x' is not a device: "),
        (3, hal.InvalidType, "expected a tensor or a device, not 3"),
        (["cpu"], hal.InvalidType, "expected a tensor or a device, not ['cpu']"),
    ],
)
def test_device_of_something_else(like: Any, error: type[Exception], message: str) -> None:
    asking = hal.device, hal.report, hal.fingerprint, lambda like: hal.supports("fp8", like)
    for ask in asking:
        with pytest.raises(error) as caught:
            ask(like)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_supports() -> None:
    assert hal.supports("compile", "cpu")
    assert hal.supports(hal.Capability.COMPILE)
    assert not hal.supports(hal.Capability.PDL, torch.zeros(1))
    assert hal.supports("pdl", hal.Device("acme", capabilities=[hal.Capability.PDL]))
    for wrong in ("COMPILE", "compil", None):
        with pytest.raises(hal.InvalidInput, match="known: pdl, graph_capture, fake_kernels"):
            hal.supports(wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh")
def test_who_names_its_devices_describes_them() -> None:
    portable = seen(hal.Device("cpu", name="portable"), name="a", devices=None)
    named = seen(hal.Device("cpu", name="named"), name="z")
    with installed(portable, NATIVE, named):
        assert hal.device("cpu").name == "named"
        forget()
        registry().plugins.remove(named)
        assert hal.device("cpu").name == "portable"


@pytest.mark.usefixtures("fresh")
def test_capabilities_are_the_claims_of_all_who_serve_it() -> None:
    first, second = seen(hal.Device("cpu", capabilities=[hal.Capability.PDL])), backend("b")
    first.hooks["hal_capabilities"] = lambda _: {hal.Capability.FP8}
    second.hooks["hal_capabilities"] = lambda _: {hal.Capability.TRITON}
    with installed(first, second):
        assert hal.device("cpu").capabilities == {hal.Capability.PDL, hal.Capability.FP8}
        assert hal.device("meta").capabilities == set()


@pytest.mark.usefixtures("fresh")
def test_a_reason_for_no_devices_is_kept() -> None:
    plugin = seen("the driver is too old")
    with installed(plugin, NATIVE):
        assert [device.type for device in hal.devices()] == ["cpu"]
    assert plugin.info().reason == "the driver is too old"


@pytest.mark.usefixtures("fresh")
def test_a_device_on_which_torch_places_nothing_is_a_problem() -> None:
    plugin = seen(hal.Device("toaster", 0), hal.Device("cpu"))
    problem = "hal_devices claims toaster:0, on which this torch can place nothing"
    with installed(plugin), pytest.warns(UserWarning, match=problem):
        assert [str(device) for device in hal.devices()] == ["cpu"]
    assert plugin.problems == [problem]


@pytest.fixture
def two_chips(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two accelerators of a type that torch knows by name, the second being torch's current one."""
    module = SimpleNamespace(device_count=lambda: 2, current_device=lambda: 1)
    # torch.accelerator asks this of the module too; the machine's own devices are not wanted here.
    module.is_available = lambda: False
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    chips = [hal.Device("cuda", i, name=f"chip {i}") for i in (1, 0)]
    with installed(seen(*chips, devices=("cuda",)), NATIVE):
        yield


@pytest.mark.usefixtures("two_chips")
def test_accelerators_come_first() -> None:
    assert [str(device) for device in hal.devices()] == ["cuda:0", "cuda:1", "cpu"]
    assert hal.device("cuda").name == "chip 0"
    assert hal.device("cuda:1").name == "chip 1"
    assert hal.device("cuda:2").name == "unknown"


def test_a_device_that_is_not_here_can_do_nothing_but_shapes() -> None:
    assert hal.device("cuda:99").capabilities == {hal.Capability.FAKE_KERNELS}
    answer = hal.require(hal.Capability.GRAPH_CAPTURE, ops=[], device="cuda:99")
    assert not answer
    assert answer.reasons == {
        "cuda:99": "no backend states graph_capture for cuda:99 (unknown)",
    }


@pytest.mark.usefixtures("two_chips")
def test_the_current_accelerator_is_the_current_device() -> None:
    assert hal.device().name == "chip 1"
    assert str(hal.explain("silu_and_mul", torch.zeros(2, 8, device="meta")).device) == "cuda:1"
    assert str(hal.require("fp8", ops=[]).device) == "cuda:1"
    with torch.device("cuda:0"):
        assert hal.device().name == "chip 0"


@pytest.mark.usefixtures("fresh")
def test_devices_are_probed_once() -> None:
    count: list[int] = []
    plugin = seen(hal.Device("cpu"))
    plugin.hooks["hal_devices"] = lambda: (count.append(1), hal.Device("cpu"))[1]
    with installed(plugin):
        threads = [threading.Thread(target=hal.devices) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hal.device("cpu")
    assert count == [1]
