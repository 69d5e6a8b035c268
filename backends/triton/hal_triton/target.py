"""Where Triton works, and what it cannot do there."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from triton.backends import backends

import hal
from hal_triton.launch import INTERPRETED, driver

if TYPE_CHECKING:
    from hal import Device

__all__ = ["has_fp8", "processors", "served", "shared_memory", "works"]

_PROCESSORS = 132
"""Those of an H100, on which rules of thumb were found."""
_ODD = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def works(device: Device) -> bool:
    """Whether kernels run on a device: by its Triton, or by the interpreter on any with data."""
    if INTERPRETED:
        return device.type != "meta"
    return device.accelerator and device.type == _native()


def _native() -> str | None:
    """The type of device that the one active driver of Triton is for."""
    active = [backend for backend in backends.values() if backend.driver.is_active()]
    current = torch.accelerator.current_accelerator() if len(active) == 1 else None
    return None if current is None else current.type


@functools.cache
def has_fp8(device: torch.device) -> bool:
    """Whether a device multiplies 8-bit floats as they are."""
    return not INTERPRETED and hal.supports(hal.Capability.FP8, device)


@functools.cache
def processors(device: torch.device) -> int:
    """How many of them programs are spread over, as of an H100 where nobody says."""
    return hal.device(device).multiprocessors or _PROCESSORS


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of it that a program may have."""
    if INTERPRETED:
        return 227 << 10  # An H100's, so that what runs there is what is interpreted.
    return driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


def served(*args: Any, **kwargs: Any) -> str | None:
    """The condition of every kernel: None, or which dtype it cannot take."""
    for value in (*args, *kwargs.values()):
        dtype = value.dtype if isinstance(value, Tensor) else value
        if dtype is torch.float64:
            return "float64 is left to the reference"
        # The interpreter computes on the bits of bfloat16, and its casts to 8 bits are wrong.
        if INTERPRETED and dtype in _ODD:
            return f"Triton's interpreter is not right for {str(dtype).removeprefix('torch.')}"
    return None
