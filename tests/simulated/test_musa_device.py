"""What hal knows of a Moore Threads card, on simulated ones."""

from __future__ import annotations

import pytest
import torch

import hal
from hal.hardware import Capability
from hal_musa import backend, probe
from hal_musa.simulated import CARDS
from simulated.vendors import ARCH

WARPS = {21: 128, 22: 128, 31: 32}


def test_the_facts_are_those_of_the_card() -> None:
    card = next(each for each in CARDS.values() if each.name == torch.musa.get_device_name())
    found = hal.device("musa")
    assert (found.name, found.vendor) == (card.name, "Moore Threads")
    assert found.arch == 10 * card.capability[0] + card.capability[1]
    assert (found.memory, found.multiprocessors) == (card.memory, card.multiprocessors)
    assert found.warp_size == WARPS[ARCH]


def test_every_device_is_found_and_comes_before_the_host() -> None:
    kinds = [(device.type, device.index) for device in hal.devices()]
    assert kinds[:-1] == [("musa", i) for i in range(torch.musa.device_count())]
    assert kinds[-1][0] == "cpu"


def test_nothing_of_it_is_taken_for_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    # A shim for CUDA's names lets torch.cuda count this card, which hal_cuda must not.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", None)  # As in a torch for MUSA.
    from hal_cuda import hal_devices

    assert hal_devices() == "this torch is built without CUDA"


def test_torch_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("torch.cuda was asked")

    for name in ("is_available", "device_count", "get_device_properties", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, asked)
    from hal_musa import hal_devices

    assert [found.index for found in hal_devices()] == list(range(torch.musa.device_count()))


def test_a_torch_without_musa_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal_musa import hal_devices

    monkeypatch.delattr(torch.version, "musa")
    assert "built without MUSA" in str(hal_devices())


def test_a_machine_without_a_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from hal_musa import hal_devices

    monkeypatch.setattr(torch.musa, "is_available", lambda: False)
    assert hal_devices() == "torch_musa finds no device of Moore Threads'"


def test_before_it_is_used_a_child_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The child is a new process, in which there is no torch_musa here: that is what it says.
    monkeypatch.setattr(torch.musa, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"(?s)asking MUSA .* failed: .*torch_musa"):
        probe.facts()


@pytest.mark.parametrize(("arch", "bf16", "fp8"), [(21, 0, 0), (22, 1, 0), (31, 1, 1)])
def test_capabilities_go_by_architecture(arch: int, bf16: bool, fp8: bool) -> None:
    from hal_musa import hal_capabilities

    claimed = hal_capabilities(hal.Device("musa", 0, arch=arch))
    assert {Capability.GRAPH_CAPTURE, Capability.COMPILE} <= claimed
    assert (Capability.BF16 in claimed, Capability.FP8 in claimed) == (bf16, fp8)
    assert Capability.PDL not in claimed


def test_it_serves_its_devices_alone() -> None:
    assert backend.devices == ("musa",)
