"""What libraries whose kernels are FlashInfer's, or came from there, have for rows in 16 bits.

They are called with matrices that are contiguous and begin at multiples of 16 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hal
from hal import Capability
from hal_cuda.layout import together

__all__ = [
    "HALVES",
    "add_norm",
    "add_norm_supports",
    "added",
    "gate",
    "gate_supports",
    "matrix",
    "norm",
    "norm_supports",
    "on",
]

Call = Callable[..., Any]

HALVES = (torch.bfloat16, torch.float16)
_WIDE = 2**32
"""From so many elements on offsets in 32 bits are not enough."""
_LONGEST = 2**15
"""A row of sums lies in shared memory, as float32; the rest of it is for the sums of warps."""
_VECTOR = 8
"""Elements of 16 bits that are loaded at once."""


def on(x: Tensor) -> Any:
    """A block on the device of a tensor, which some libraries launch on the current one instead."""
    return torch.cuda.device_of(x)


def matrix(x: Tensor) -> Tensor:
    """[..., d] as [rows, d]; a copy where it does not lie as they want it."""
    return together(x.reshape(-1, x.shape[-1]))


@functools.cache
def _early(device: torch.device) -> bool:
    """Whether kernels may start before those ahead of them have ended; theirs await them."""
    return device.type == "cuda" and hal.supports(Capability.PDL, device)


def norm(call: Call) -> Call:
    """An RMS norm by ``call(out, x, weight, eps, early)``."""

    def run(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
        out = x.new_empty(x.shape)
        if x.numel():
            with on(x):
                call(out.view(-1, x.shape[-1]), matrix(x), together(weight), eps, _early(x.device))
        return out

    return run


def norm_supports(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> str | None:
    if x.dtype not in HALVES:
        return "its norms are of float16 and bfloat16"
    if weight is None or weight.dtype != x.dtype:
        return "its norms take a weight of the dtype of x"
    return "it counts elements in 32 bits" if x.numel() >= _WIDE else None


def add_norm(call: Call) -> Call:
    """A sum and its norm by ``call(x, residual, weight, eps, early)``, which overwrites both."""

    def run(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        if x.numel():
            parts = matrix(x), matrix(residual)
            with on(x):
                call(*parts, together(weight), eps, _early(x.device))
            for whole, part in zip((x, residual), parts, strict=True):
                if part.data_ptr() != whole.data_ptr():
                    whole.copy_(part.view(whole.shape))
        return x, residual

    return run


def added(overwrite: Call) -> Call:
    """The form of ``add_norm`` that leaves its arguments as they are."""

    def run(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        kept = (each.clone(memory_format=torch.contiguous_format) for each in (x, residual))
        return overwrite(*kept, weight, eps)

    return run


def add_norm_supports(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> str | None:
    if residual.dtype != x.dtype:
        return "it takes a residual of the dtype of x"
    if x.shape[-1] > _LONGEST:
        return f"it keeps a row in shared memory, up to {_LONGEST} columns"
    return norm_supports(x, weight, eps)


def gate(call: Call) -> Call:
    """A gated activation by ``call(out, x)``."""

    def run(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], half))
        if out.numel():
            with on(x):
                call(out.view(-1, half), matrix(x))
        return out

    return run


def gate_supports(x: Tensor) -> str | None:
    if x.dtype not in HALVES:
        return "its activations are called in float16 and bfloat16"
    half = x.shape[-1] // 2
    return f"it takes halves of a multiple of {_VECTOR} columns" if half % _VECTOR else None
