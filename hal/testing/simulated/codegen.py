"""``torch.compile`` on simulated devices: Dynamo's interface, and Inductor's code for the host."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

__all__ = ["inductor", "interface"]


def interface(module: ModuleType) -> Any:
    """What Dynamo and Inductor ask about a device, answered by its module."""
    from torch._dynamo.device_interface import DeviceInterface

    class Interface(DeviceInterface):
        device = module.device
        Event = module.Event
        Stream = module.Stream
        current_device = staticmethod(module.current_device)
        set_device = staticmethod(module.set_device)
        device_count = staticmethod(module.device_count)
        is_available = staticmethod(module.is_available)
        synchronize = staticmethod(module.synchronize)
        stream = staticmethod(module.stream)
        current_stream = staticmethod(module.current_stream)
        set_stream = staticmethod(module.set_stream)
        get_device_properties = staticmethod(module.get_device_properties)
        exchange_device = staticmethod(module._exchange_device)
        maybe_exchange_device = staticmethod(module._maybe_exchange_device)

        class Worker:
            current_device = staticmethod(module.current_device)
            set_device = staticmethod(module.set_device)
            get_device_properties = staticmethod(module.get_device_properties)

        @staticmethod
        def get_raw_stream(device_idx: int) -> int:
            return module.current_stream(device_idx).stream_id

        @staticmethod
        def get_compute_capability(device: Any = None) -> str:
            return ""

        @staticmethod
        def is_bf16_supported(including_emulation: bool = False) -> bool:
            return True

    return Interface
