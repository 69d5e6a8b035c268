"""What is particular to NVIDIA's devices: facts, capabilities, and kernels of their libraries.

Libraries that are installed offer what they have: ``sgl_kernel``, ``flashinfer`` and ``fa3`` by
the modules of these names, each kernel with its condition, or the reason why it is refused;
``measured`` has the figures that make one the choice or leave it to who names it. ``hal.explain``
shows all that.

Not offered, and why: ``fused_experts`` by torch's grouped product, which rounds gate, up and parts
to bfloat16 where the op rounds once (a relative norm of 3.7e-3; 2.5e-3 is allowed); cuDNN for
ragged sequences, which torch has plan anew at each call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hal import Backend, Capability, Device, Kernel, hookimpl
from hal.op import OPS

if TYPE_CHECKING:
    from torch import Tensor

backend = Backend(api=1, torch=">=2.7", devices=("cuda",))


@hookimpl
def hal_devices() -> list[Device] | str:
    """The devices that torch sees; asked of a child process before CUDA is used in this one."""
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.device_count():
        return "torch finds no device of NVIDIA's"
    from hal_cuda.probe import facts

    return [
        Device("cuda", index, vendor="NVIDIA", warp_size=32, **known)
        for index, known in enumerate(facts())
    ]


@hookimpl
def hal_capabilities(device: Device) -> set[Capability]:
    """By compute capability: https://docs.nvidia.com/cuda/cuda-programming-guide/ has the table."""
    claimed = {Capability.GRAPH_CAPTURE}
    if device.arch is None:
        return claimed
    since = {Capability.COMPILE: 70, Capability.BF16: 80, Capability.FP8: 89, Capability.PDL: 90}
    return claimed | {capability for capability, arch in since.items() if device.arch >= arch}


@hookimpl
def hal_late_copy(device: Device) -> Callable[[Tensor, Tensor], None] | None:
    """Made with Triton, if that is there."""
    if importlib.util.find_spec("triton") is None:
        return None
    from hal_cuda.late import copy

    return copy


_KERNELS = {
    "scaled_mm": ("torch",),
    "block_scaled_mm": ("torch", "deep_gemm"),
    "fused_gemv": ("torch",),
    "varlen_attention": ("torch", "flash"),
}
"""Those of each op; only the first is ever chosen without being named."""

_PLACES = {
    "scaled_mm": ("matmul", "scaled_mm"),
    "block_scaled_mm": ("matmul", "block_scaled_mm"),
    "fused_gemv": ("gemv", "fused_gemv"),
    "varlen_attention": ("attention", "varlen_attention"),
    "deep_gemm": ("deep_gemm", "block_scaled_mm"),
    "flash": ("attention", "flash"),
}
"""Module and function, by kernel or else by op."""

_MEASURED = 90
"""The compute capability that they were measured on."""

_LIBRARIES = ("fa3", "sgl_kernel", "flashinfer")
"""Modules about a library, in the order in which their kernels come, before ours.

None is chosen but where a measurement says so.
"""

_SINCE = 80
"""The first compute capability that all of these libraries are built for."""


def _serves(device: Device) -> bool:
    return device.arch == _MEASURED and importlib.util.find_spec("triton") is not None


def _there(op: str, name: str) -> bool:
    """Whether a kernel's library is there, and knows of the op."""
    if name == "deep_gemm":
        return importlib.util.find_spec("deep_gemm") is not None
    if op not in ("scaled_mm", "block_scaled_mm"):
        return True
    from hal_cuda.matmul import known

    return known()


def _kernel(op: str, name: str, device: Device) -> Kernel:
    from hal_cuda.measured import wish

    place, function = _PLACES.get(name) or _PLACES[op]
    module = importlib.import_module(f"hal_cuda.{place}")
    # That cuBLAS is deterministic holds as torch calls it, with memory of its own for each stream.
    known = name != "deep_gemm"
    supports = getattr(module, f"{function}_supports")
    return Kernel(
        fn=getattr(module, function),
        supports=supports,
        on_request=None if name == "torch" else wish(name, op, device),
        name=name,
        graph_safe=known,
        deterministic=known,
    )


def _of_libraries(op: str, device: Device) -> Iterator[Kernel]:
    if (device.arch or 0) >= _SINCE:
        for name in _LIBRARIES:
            yield from importlib.import_module(f"hal_cuda.{name}").kernels(op, device)


def _offer(op: str) -> object:
    def hook(device: Device) -> list[Kernel]:
        there = _KERNELS.get(op, ()) if _serves(device) else ()
        ours = [_kernel(op, name, device) for name in there if _there(op, name)]
        return [*_of_libraries(op, device), *ours]

    return hookimpl(hook)


globals().update({op: _offer(op) for op in OPS})
