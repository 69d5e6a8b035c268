"""What a vendor's device looks like from outside, as its backend states it for simulation."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import attrs

__all__ = ["Face"]


@attrs.frozen
class Face:
    """One card of a vendor.

    Args:
        memory: Bytes of device memory.
        properties: What ``get_device_properties`` of the device's module returns, of its total
            memory in bytes.
        install: Called once with the device's module in torch, when the device is there: adds what
            the vendor's torch has besides, such as names, operators and modules.
    """

    memory: int
    properties: Callable[[int], object]
    install: Callable[[ModuleType], None]
