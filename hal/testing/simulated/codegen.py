"""``torch.compile`` with Inductor on simulated devices, whose code for the host runs there."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from hal.testing.simulated import place
from hal.testing.simulated.capture import launched

__all__ = ["attributes"]

_HOST = torch.device("cpu")
_WANTED = {"Scheduling", "PythonWrapperCodegen", "CppWrapperCodegen", "WrapperFxCodegen"}
"""The attributes of a device's module in which Inductor looks for its parts."""


def attributes(module: ModuleType) -> Any:
    """The ``__getattr__`` of a device's module: Inductor's parts, once it asks for them.

    They import it, which takes long.
    """
    found: dict[str, Any] = {}

    def attribute(name: str) -> Any:
        if name not in _WANTED:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        if name == "WrapperFxCodegen":  # Torch 2.7 has none, and does not ask.
            return importlib.import_module("torch._inductor.codegen.wrapper_fxir").WrapperFxCodegen
        if not found:
            found.update(_inductor(module))
        return found[name]

    return attribute


def _interface(module: ModuleType) -> Any:
    """What Inductor asks about a device, answered by its module."""
    from torch._dynamo.device_interface import DeviceInterface

    def raw_stream(index: int) -> int:
        return module.current_stream(index).stream_id

    named: dict[str, Any] = {
        name: getattr(module, name)
        for name in vars(DeviceInterface)
        if hasattr(module, name) and not name.startswith("__")
    }
    named = {n: v if isinstance(v, type) else staticmethod(v) for n, v in named.items()}
    named["get_raw_stream"] = staticmethod(raw_stream)
    named["get_compute_capability"] = staticmethod(lambda device=None: "")
    named["is_bf16_supported"] = staticmethod(lambda including_emulation=False: True)
    return type("Interface", (DeviceInterface,), named)


def _inductor(module: ModuleType) -> dict[str, Any]:
    from torch._dynamo.device_interface import (
        get_interface_for_device,
        register_interface_for_device,
    )
    from torch._inductor import config
    from torch._inductor.codegen import cpu_device_op_overrides
    from torch._inductor.codegen.common import register_device_op_overrides
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    # It takes what is not the host for a device whose kernels have another form (torch 2.13).
    if hasattr(config, "loop_reindexing_after_fusion"):
        config.loop_reindexing_after_fusion = False
    kind = place.kind()  # Its module may have another name.
    try:
        get_interface_for_device(kind)  # A vendor's own.
    except NotImplementedError:
        interface = _interface(module)
        for name in (kind, *(f"{kind}:{i}" for i in range(module.device_count()))):
            register_interface_for_device(name, interface)
    register_device_op_overrides(kind, cpu_device_op_overrides.CpuDeviceOpOverrides())
    return {
        "Scheduling": _scheduling(),
        "PythonWrapperCodegen": _wrapper(),
        "CppWrapperCodegen": CppWrapperCpu,
    }


def _scheduling() -> Any:
    """What makes kernels, each as one of the host.

    What Inductor asks about the device of a kernel that it makes, it would take any for one with
    Triton, whose kernels need other facts: dynamic sizes, random numbers and ``any`` failed.
    """
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.virtualized import V

    class Scheduling(CppScheduling):
        def codegen_node(self, node: Any) -> None:
            with V.graph.set_current_device(_HOST):
                super().codegen_node(node)

    return Scheduling


def _wrapper() -> Any:
    """The code around Inductor's kernels, which it calls as those of the host."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    class Wrapper(PythonWrapperCodegen):
        @staticmethod
        def create(is_subgraph: bool, *given: Any, **named: Any) -> Any:
            made = PythonWrapperCodegen.create(is_subgraph, *given, **named)
            return made if is_subgraph else Wrapper()

        def write_header(self) -> None:
            super().write_header()
            self.imports.writeline(f"from {launched.__module__} import {launched.__name__}")

        def generate_kernel_call(self, kernel_name: str, *given: Any, **named: Any) -> Any:
            call = f"{launched.__name__}({kernel_name})"
            return super().generate_kernel_call(call, *given, **named | {"device": _HOST})

    return Wrapper
