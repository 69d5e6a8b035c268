"""The devices of the simulated type: which there are, which is current, and what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.testing.simulated.build import extension

__all__ = [
    "DeviceIndex",
    "_exchange_device",
    "_is_in_bad_fork",
    "_lazy_call",
    "_lazy_init",
    "_maybe_exchange_device",
    "can_device_access_peer",
    "current_device",
    "device",
    "device_count",
    "device_of",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_device_properties",
    "index_of",
    "init",
    "is_available",
    "is_initialized",
    "kind",
    "set_device",
    "synchronize",
]

DeviceIndex = torch.device | str | int | None
"""How a device of the type is given; None is the current one."""


@attrs.frozen
class Properties:
    """What is known of a device that no vendor describes; ``total_memory`` is in bytes."""

    name: str
    total_memory: int
    multi_processor_count: int = 1


_describe: Callable[[int], Any] | None = None


def describe(properties: Callable[[int], Any] | None) -> None:
    """Let ``get_device_properties`` return what ``properties`` makes of a device's bytes."""
    global _describe
    _describe = properties


def kind() -> str:
    """The type of the device, as torch calls it."""
    return torch._C._get_privateuse1_backend_name()  # pyright: ignore[reportPrivateUsage]


def index_of(device: DeviceIndex = None) -> int:
    """The number of a device of the simulated type.

    Raises:
        ValueError: It is of another type.
    """
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device):
        if device.type != kind():
            raise ValueError(f"expected a device of type {kind()}, not {device}")
        device = device.index
    return current_device() if device is None or device < 0 else device


def is_available() -> bool:
    """Whether there is a device, which there is."""
    return device_count() > 0


def device_count() -> int:
    """How many devices there are."""
    return extension().device_count()


def current_device() -> int:
    """The number of this thread's device."""
    return extension().current_device()


def set_device(device: DeviceIndex) -> None:
    """Make a device this thread's."""
    extension().set_device(index_of(device))


def _exchange_device(device: int) -> int:
    before = current_device()
    if device >= 0:
        set_device(device)
    return before


# A function of its own: Dynamo notes each of the two, and no function twice.
def _maybe_exchange_device(device: int) -> int:
    return _exchange_device(device)


class device:  # noqa: N801  # As every device's module has it.
    """A block in which a device is this thread's."""

    def __init__(self, device: DeviceIndex) -> None:
        self.idx = index_of(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        self.prev_idx = _exchange_device(self.idx)

    def __exit__(self, *error: object) -> None:
        _exchange_device(self.prev_idx)


class device_of(device):  # noqa: N801
    """A block in which a tensor's device is this thread's."""

    def __init__(self, obj: Tensor) -> None:
        super().__init__(obj.device if obj.device.type == kind() else None)


def get_device_properties(device: DeviceIndex = None) -> Any:
    """What is known of a device, as its vendor's torch says it."""
    total = extension().memory(index_of(device))["total"]
    return Properties(f"simulated {kind()}", total) if _describe is None else _describe(total)


def get_device_name(device: DeviceIndex = None) -> str:
    """The product's name."""
    return get_device_properties(device).name


def can_device_access_peer(device: DeviceIndex, peer_device: DeviceIndex) -> bool:
    """Whether one device reads the memory of another: each does."""
    return 0 <= index_of(device) < device_count() and 0 <= index_of(peer_device) < device_count()


def synchronize(device: DeviceIndex = None) -> None:
    """Wait for all work of a device, which is done already; forbidden while a graph is captured."""
    extension().synchronize(index_of(device))


def get_amp_supported_dtype() -> list[torch.dtype]:
    """The dtypes that ``torch.autocast`` may cast to."""
    return [torch.float16, torch.bfloat16]


def is_initialized() -> bool:
    """Whether the device is initialised, as it always is."""
    return True


def init() -> None:
    """Initialise the device, which is initialised."""


_lazy_init = init


def _lazy_call(call: Callable[[], None], **kwargs: Any) -> None:
    del kwargs
    call()


def _is_in_bad_fork() -> bool:
    # Its memory is the host's, which a fork has.
    return False
