"""What each row may have of its own, as kernels take it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.layout import element, same

__all__ = ["Parameter", "counts", "floats", "integers"]

_LARGEST = torch.finfo(torch.float32).max


class Parameter(NamedTuple):
    """The 32-bit words of a tensor and their stride from row to row, or a number for all rows."""

    words: Callable[[Any], Tensor]
    """What makes the words of values like this one; where there is only a number, any word."""
    stride: int
    number: int
    wide: bool = False
    """Whether two words, the low one first, are an element."""


def integers(value: Tensor | int | None, device: torch.device) -> Parameter:
    """Integers of 32 or 64 bits; without them a number of 0."""
    if not isinstance(value, Tensor):
        return _number(value or 0, device)
    wide = value.itemsize == 8
    stride = (2 if wide else 1) if value.dim() else 0
    if value.dim() != 1 or value.stride(0) != 1:  # Even of one element, which is contiguous.
        return Parameter(_words, stride, 0, wide)
    return Parameter(same if value.dtype == torch.int32 else _as_words, stride, 0, wide)


def counts(value: Tensor | int | None, below: int, device: torch.device) -> Parameter:
    """Integers, of which a number that is not from 1 to ``below`` is 0."""
    if value is None or isinstance(value, Tensor):
        return integers(value, device)
    return integers(value if 0 < value < below else 0, device)


def floats(value: Tensor | float, device: torch.device) -> Parameter:
    """Floating point numbers, in float32; a number by its bits."""
    if isinstance(value, Tensor):
        if value.dtype == torch.float32:
            return integers(value, device)
        return Parameter(_single_words, 1 if value.dim() else 0, 0)
    # What is beyond float32 is packed as an infinity only if it is one.
    single = value if -_LARGEST <= value <= _LARGEST else value * float("inf")
    return _number(*struct.unpack("i", struct.pack("f", single)), device)


def _number(number: int, device: torch.device) -> Parameter:
    word = element(device, torch.int32)
    return Parameter(lambda _: word, -1, number)


def _words(value: Tensor) -> Tensor:
    flat = value.reshape(-1)
    if flat.stride(0) != 1:
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.int32)


def _as_words(value: Tensor) -> Tensor:
    return value.view(torch.int32)


def _single_words(value: Tensor) -> Tensor:
    return _words(value.float())
