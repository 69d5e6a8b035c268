"""What is particular to NVIDIA's devices: facts, capabilities, and kernels that only they have."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from hal import Backend, Capability, Device, hookimpl

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
