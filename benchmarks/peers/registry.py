"""Which kernels of other libraries, and of torch, do what an op does."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import attrs
import torch

from judges import Judge

Function = Callable[..., Any]

ON_REQUEST = frozenset({"flashinfer"})
"""Peers that are left out unless they are named: they compile for minutes when they are loaded."""


class DoesNotFit(Exception):
    """A peer has nothing for a call, and why; which is no fault of it."""


@attrs.frozen
class Peer:
    """A function that takes the arguments of an op and returns its results.

    Attributes:
        name: The library, or the way.
        op: The form in ``hal.ops``.
        function: What is timed; if ``planned``, it returns what is timed, a call without arguments.
        there: Whether it can be had.
        planned: Whether something is done ahead of the call, such as laying out weights.
        judge: How its results are judged, if not as the case says.
        note: What it does instead of the op; its results are then not compared, and it is no peer.
    """

    name: str
    op: str
    function: Function
    there: Callable[[], bool] = lambda: True
    planned: bool = False
    judge: Judge | None = None
    note: str = ""

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        """The call that is timed."""
        if self.planned:
            return self.function(*args, **kwargs)
        return functools.partial(self.function, *args, **kwargs)


PEERS: dict[tuple[str, str], Peer] = {}

Decorator = Callable[[Function], Function]


def peer(name: str, op: str, there: Callable[[], bool] = lambda: True, **more: Any) -> Decorator:
    """Keep a function under a name, for an op."""

    def keep(function: Function) -> Function:
        PEERS[name, op] = Peer(name, op, function, there, **more)
        return function

    return keep


def compiled(op: str, **more: Any) -> Decorator:
    """A peer that torch.compile makes of plain torch."""

    def keep(function: Function) -> Function:
        made = torch.compile(function, dynamic=False)
        PEERS["compile", op] = Peer("compile", op, made, torch.cuda.is_available, **more)
        return function

    return keep


def in_dispatcher(name: str, namespace: str, op: str, theirs: str, **more: Any) -> Decorator:
    """A peer among torch's operators, once its library is loaded."""
    return peer(name, op, lambda: hasattr(getattr(torch.ops, namespace), theirs), **more)


def on_cuda(name: str, op: str, **more: Any) -> Decorator:
    return peer(name, op, torch.cuda.is_available, **more)


def sgl(op: str, theirs: str, **more: Any) -> Decorator:
    return in_dispatcher("sgl", "sgl_kernel", op, theirs, **more)


def vllm(op: str, theirs: str, namespace: str = "_C", **more: Any) -> Decorator:
    return in_dispatcher("vllm", namespace, op, theirs, **more)


def flashinfer(op: str, **more: Any) -> Decorator:
    return peer(
        "flashinfer", op, lambda: importlib.util.find_spec("flashinfer") is not None, **more
    )


def peers(op: str, names: list[str] | None = None) -> list[Peer]:
    """The peers of a form that have one of the names, "all" being any; else those loaded soon."""
    given = names or sorted({p.name for p in PEERS.values()} - ON_REQUEST)
    asked = [p for p in PEERS.values() if p.op == op and (p.name in given or "all" in given)]
    return [p for p in asked if p.there()]
