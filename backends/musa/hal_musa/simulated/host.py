"""Kernels of a simulated device: what they read, compute and write, on the host."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check",
    "host",
    "memory",
    "on_host",
    "only",
    "register",
    "sent",
    "unmodelled",
    "write",
]


def check(holds: bool, message: str) -> None:
    """Raise what TORCH_CHECK raises."""
    if not holds:
        raise RuntimeError(message)


def only(what: str, dtype: torch.dtype, *allowed: torch.dtype) -> None:
    """Refuse a dtype that is not among those allowed."""
    names = ", ".join(str(one).removeprefix("torch.") for one in allowed)
    check(dtype in allowed, f"{what} has to be of {names}, and is {dtype}")


def unmodelled(**asked: object) -> None:
    """Refuse what a library does and its simulation does not: what is not None.

    Raises:
        NotImplementedError: It names them.
    """
    names = [name for name, value in asked.items() if value is not None]
    if names:
        raise NotImplementedError(f"the simulation has no {', '.join(names)}")


def host(x: Tensor) -> Tensor:
    """``x`` as the host's tensor, on the same memory: what is written to it is in ``x``.

    A simulated device's memory is the host's; a copy would not be allowed in a capture.
    """
    storage = x.untyped_storage()
    size = storage.nbytes() // x.element_size() * x.element_size()
    if not size:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    buffer = (ctypes.c_char * size).from_address(storage.data_ptr())
    whole = torch.frombuffer(buffer, dtype=torch.uint8).view(x.dtype)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def sent(x: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``x``, from the host, as a contiguous tensor on the device of ``like``: rounded once."""
    out = torch.empty(x.shape, dtype=dtype or x.dtype, device=like.device)
    host(out).copy_(x)
    return out


def write(out: Tensor, values: Tensor) -> None:
    """Round ``values``, from the host, into ``out`` on the device."""
    host(out).copy_(values)


def memory(x: Tensor, count: int) -> Tensor:
    """The elements from where ``x`` starts, ``count`` of them or what its storage has.

    What a kernel sees that is given an address: strides and sizes say nothing to it.
    """
    have = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    return x.as_strided((min(count, have),), (1,))


def _moved(x: Any) -> Any:
    return host(x) if isinstance(x, Tensor) else x


def _back(x: Any, like: Tensor) -> Any:
    if isinstance(x, Tensor):
        return sent(x, like)
    return type(x)(_back(part, like) for part in x) if isinstance(x, tuple) else x


def on_host(compute: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel for the device from a function of tensors on the host, of which it writes none."""

    @functools.wraps(compute)
    def kernel(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        named = {name: _moved(x) for name, x in kwargs.items()}
        return _back(compute(host(first), *map(_moved, args), **named), first)

    return kernel


def register(
    namespace: str, kind: str, schemas: Sequence[str], kernels: dict[str, Callable[..., Any]]
) -> torch.library.Library:
    """Declare operators, with a kernel on the simulated device for those that have one."""
    library = torch.library.Library(namespace, kind)
    for schema in schemas:
        library.define(schema)
    for name, kernel in kernels.items():
        library.impl(name, kernel, "PrivateUse1")
    return library
