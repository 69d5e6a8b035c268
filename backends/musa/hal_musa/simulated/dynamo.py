"""torch_musa's device as Dynamo sees it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

__all__ = ["register_interface"]


def _known(name: str) -> Any:
    """What the device has registered already, or what a device has at least."""
    from torch._dynamo import device_interface

    try:
        return device_interface.get_interface_for_device(name)
    except NotImplementedError:
        return device_interface.DeviceInterface


def register_interface(module: ModuleType) -> None:
    """Register the type and each device; the compute capability is an int, 31 for (3, 1)."""
    from torch._dynamo.device_interface import register_interface_for_device

    musa: Any = module
    base = _known("musa")

    class MusaInterface(base):
        device, Event, Stream = musa.device, musa.Event, musa.Stream

        class Worker(base.Worker):
            set_device = staticmethod(musa.set_device)
            current_device = staticmethod(musa.current_device)
            get_device_properties = staticmethod(musa.get_device_properties)

        current_device = staticmethod(musa.current_device)
        set_device = staticmethod(musa.set_device)
        device_count = staticmethod(musa.device_count)
        is_available = staticmethod(musa.is_available)
        stream = staticmethod(musa.stream)
        current_stream = staticmethod(musa.current_stream)
        set_stream = staticmethod(musa.set_stream)
        get_raw_stream = staticmethod(musa._MUSAC._musa_getCurrentRawStream)
        synchronize = staticmethod(musa.synchronize)
        get_device_properties = staticmethod(musa.get_device_properties)
        exchange_device = staticmethod(musa._exchange_device)
        maybe_exchange_device = staticmethod(musa._maybe_exchange_device)

        @staticmethod
        def get_compute_capability(device: Any = None) -> int:
            major, minor = musa.get_device_capability(device)
            return 10 * major + minor

        @staticmethod
        def is_bf16_supported(including_emulation: bool = False) -> bool:
            return musa.is_bf16_supported()

    register_interface_for_device("musa", MusaInterface)
    for index in range(musa.device_count()):
        register_interface_for_device(f"musa:{index}", MusaInterface)
