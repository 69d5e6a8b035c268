"""Moore Threads' libraries for a test, and what is asked of them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal.plugins import registry
from hal_musa.simulated import libraries
from offering import installed

__all__ = ["ARCH", "asked", "chosen", "close", "drawn", "host", "on_card", "vendors"]

ARCH = hal.device("musa").arch or 0


@contextlib.contextmanager
def vendors(*names: str) -> Iterator[None]:
    """Have stand-ins for these libraries and no others, and hal ask again what there is."""
    with libraries(*names), installed(*registry().plugins):
        yield


def asked(patch: pytest.MonkeyPatch, path: str) -> list[dict[str, Any]]:
    """The arguments of each call of a library's function from now on, by name, with defaults."""
    place, _, name = path.rpartition(".")
    module = torch.ops.aten if place == "aten" else importlib.import_module(place)
    function, calls = getattr(module, name), list[dict[str, Any]]()

    @functools.wraps(function)
    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(_named(function, args, kwargs))
        return function(*args, **kwargs)

    patch.setattr(module, name, spy)
    return calls


def _named(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    if isinstance(function, torch._ops.OpOverloadPacket):
        schema = function.default._schema
        return dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def host(value: Any) -> Any:
    """The same on the host."""
    if isinstance(value, dict):
        return {name: host(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(host, value))
    return value.to("cpu") if isinstance(value, Tensor) else value


def on_card(value: Any, there: dict[int, Tensor] | None = None) -> Any:
    """The same on the card, a tensor that comes twice as one."""
    there = {} if there is None else there
    if isinstance(value, dict):
        return {name: on_card(each, there) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(on_card(each, there) for each in value)
    if not isinstance(value, Tensor):
        return value
    return there.setdefault(id(value), value.to("musa"))


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers on the host, the same for the same shape."""
    made = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=made).to(dtype)


def chosen(op: str, *args: Any, **kwargs: Any) -> str:
    """Which kernel serves a call."""
    return str(hal.explain(op, *args, **kwargs).chosen)


def close(op: str, *args: Any, **kwargs: Any) -> Any:
    """Call an op on the card, and require what it returns to be what it is on the host."""
    function = getattr(hal.ops, op)
    found = function(*on_card(args), **on_card(kwargs))
    wanted = function(*args, **kwargs)
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for got, want in pairs:
        if want is not None:
            assert got.device.type == "musa"
            torch.testing.assert_close(got.to("cpu"), want, equal_nan=True)
    return found
