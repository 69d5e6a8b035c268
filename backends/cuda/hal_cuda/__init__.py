"""What is particular to NVIDIA's devices: facts, capabilities, and kernels that only they have."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from hal import Backend, Capability, Device, Kernel, hookimpl

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


_FAMILIES = {
    "matmul": ("scaled_mm", "block_scaled_mm"),
    "gemv": ("fused_gemv",),
    "attention": ("varlen_attention",),
}

_SINCE = {"scaled_mm": 89}
"""The least compute capability; that of the others is the one where they were measured."""
_MEASURED = 90


def _serves(op: str, device: Device) -> bool:
    if device.arch is None or importlib.util.find_spec("triton") is None:
        return False
    fits = device.arch >= _SINCE[op] if op in _SINCE else device.arch == _MEASURED
    if op == "block_scaled_mm":
        from torch.nn import functional

        fits = fits and hasattr(functional, "scaled_mm")  # Since torch 2.10.
    return fits


def _offer(op: str, family: str) -> object:
    def hook(device: Device) -> Kernel | None:
        if not _serves(op, device):
            return None
        module = importlib.import_module(f"hal_cuda.{family}")
        return Kernel(
            fn=getattr(module, op),
            supports=getattr(module, f"{op}_supports"),
            name="torch",
            graph_safe=True,
            # Of cuBLAS that holds as torch calls it, with memory of its own for each stream.
            deterministic=True,
        )

    return hookimpl(hook)


for _family, _ops in _FAMILIES.items():
    globals().update({op: _offer(op, _family) for op in _ops})
