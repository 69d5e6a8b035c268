"""What each row may have of its own, as kernels take it."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Parameter", "any_words", "counts", "floats", "integers", "words"]

_LARGEST = torch.finfo(torch.float32).max


class Parameter(NamedTuple):
    """The 32-bit words of a tensor and their stride from row to row, or a number for all rows."""

    tensor: Tensor | None
    stride: int
    number: int
    wide: bool = False
    """Whether two words, the low one first, are an element."""


def integers(value: Tensor | int | None) -> Parameter:
    """Integers of 32 or 64 bits; without them a number of 0."""
    if not isinstance(value, Tensor):
        return Parameter(None, -1, value or 0)
    size, flat = value.itemsize // 4, value.reshape(-1)
    if flat.stride(0) != 1:  # Even of one element, which counts as contiguous.
        flat = flat.clone(memory_format=torch.contiguous_format)
    return Parameter(flat.view(torch.int32), size if value.dim() else 0, 0, size == 2)


def counts(value: Tensor | int | None, below: int) -> Parameter:
    """Integers, of which a number that is not from 1 to ``below`` is 0."""
    if isinstance(value, Tensor):
        return integers(value)
    return integers(value if value is not None and 0 < value < below else 0)


def floats(value: Tensor | float) -> Parameter:
    """Floating point numbers, in float32; a number by its bits."""
    if isinstance(value, Tensor):
        return integers(value.to(torch.float32))
    # What is beyond float32 is packed as an infinity only if it is one.
    single = value if -_LARGEST <= value <= _LARGEST else value * float("inf")
    return integers(*struct.unpack("i", struct.pack("f", single)))


def words(parameter: Parameter, anything: Tensor) -> Tensor:
    """The words; where there is only a number, anything of 32 bits."""
    return anything if parameter.tensor is None else parameter.tensor


def any_words(x: Tensor) -> Tensor:
    """Words to point to where only numbers count: those of ``x``, if it has elements of 32 bits."""
    same = x.itemsize == 4
    return x.view(torch.int32) if same else x.new_empty((1,), dtype=torch.int32)
