"""Backends made up by a test, in place of those that are installed, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import hal
from hal import offers, probe, tracing
from hal.functions import FORMS
from hal.op import OPS
from hal.plugins import DISTRIBUTION, REFERENCE, Plugin, State, registry

__all__ = ["ACME", "NATIVE", "Noting", "backend", "installed", "kernel", "refusing"]

# torch knows no device of this type, so no tensor is on it; that is enough to choose for it.
ACME = hal.Device("acme", 0, name="Example", capabilities=frozenset(hal.Capability))

# What is installed is probed and loaded before anything takes its place.
hal.devices()
NATIVE = next(plugin for plugin in registry().plugins if plugin.name == REFERENCE)


def kernel(op: str, name: str = "fast", **traits: Any) -> hal.Kernel:
    """A kernel of its own that computes ``op`` as the reference does."""
    reference = NATIVE.hooks[op](hal.device("cpu")).fn

    def fn(*args: Any, **kwargs: Any) -> Any:
        return reference(*args, **kwargs)

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return hal.Kernel(fn=fn, name=name, **traits)


def refusing(reason: str | None) -> Callable[..., str | None]:
    """A condition that gives this answer to every call of any op."""
    return lambda *_, **__: reason


def backend(
    name: str, *, devices: tuple[str, ...] | None = ("acme",), ours: bool = False, **hooks: Any
) -> Plugin:
    """A loaded backend that answers for each op in ``hooks`` with that kernel, or those."""
    distribution = DISTRIBUTION if ours else f"hal-{name}"
    return Plugin(
        EntryPoint(name, f"hal_{name}", "hal.backends"),
        distribution,
        "1.0",
        state=State.LOADED,
        backend=hal.Backend(api=1, devices=devices),
        hooks={op: lambda _, answer=answer: answer for op, answer in hooks.items()},
    )


def _forget() -> None:
    for form in FORMS.values():
        form.forget()
    tracing._inlined.cache_clear()
    probe._bare.cache_clear()  # What these backends say of a device that nobody found.


@contextlib.contextmanager
def installed(*plugins: Plugin) -> Iterator[None]:
    """Have ``plugins``, in this order, and no other."""
    before = registry().plugins, registry()._told, offers.asked
    # Of trouble that a test made it knows; a process is told of it once, so not in every order.
    registry().plugins, registry()._told, offers.asked = list(plugins), True, {}
    _forget()
    try:
        yield
    finally:
        registry().plugins, registry()._told, offers.asked = before
        _forget()


class Noting:
    """A backend with a kernel that notes the calls of itself and of its condition."""

    def __init__(self, op: str, refuses: Callable[..., str | None] | None = None, **traits: Any):
        self.ran: list[tuple[Any, ...]] = []
        self.asked: list[tuple[Any, ...]] = []
        plain = kernel(op).fn

        def fn(*args: Any, **kwargs: Any) -> Any:
            self.ran.append((*args, *kwargs.values()))
            return plain(*args, **kwargs)

        def supports(*args: Any, **kwargs: Any) -> str | None:
            self.asked.append((*args, *kwargs.values()))
            return refuses(*args, **kwargs) if refuses else None

        fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
        self.kernel = hal.Kernel(fn=fn, name="noting", supports=supports, **traits)
        self.backend = backend("noting", devices=None, **{op: self.kernel})
