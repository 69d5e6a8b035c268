"""The guard against changes to torch by a backend, and what hal needs of torch's insides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch
from torch._C._dynamo.eval_frame import (  # pyright: ignore
    _FrameAction,  # pyright: ignore[reportPrivateUsage]
    _FrameExecStrategy,  # pyright: ignore[reportPrivateUsage]
    set_code_exec_strategy,
)
from torch.overrides import (
    _get_current_function_mode_stack,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

__all__ = [
    "default_device",
    "registrations",
    "unchanged",
    "untraced",
]


def default_device() -> torch.device:
    """The device of a new tensor.

    ``torch.get_default_device()`` of torch 2.7 overlooks ``with torch.device(...)``, and fails
    after ``torch.set_default_device(None)``.
    """
    modes = reversed(_get_current_function_mode_stack())
    chosen = next((mode.device for mode in modes if isinstance(mode, DeviceContext)), None)
    if chosen is None or chosen.index is None:  # pyright: ignore[reportUnnecessaryComparison]
        # A type without an index stands for its current device.
        return torch.empty(0).device
    return chosen


_Function = TypeVar("_Function", bound=Callable[..., Any])
_SKIP = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)


def untraced(function: _Function) -> _Function:
    """Keep Dynamo out of a function and of what that calls; nothing in there is for it.

    ``torch.compiler.disable`` does this with a wrapper, and imports Dynamo, which takes long.
    """
    # The one where it would trace a call; the other where it could not, and tries what is called.
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    set_code_exec_strategy(function.__code__, _SKIP)
    return function


def _set_seed(seed: int) -> None:
    # Accelerators are seeded as well, and only this reaches those that are not initialised yet.
    torch.manual_seed(seed)


def _set_default_device(device: torch.device) -> None:
    # None takes the mode away that every factory function would go through.
    torch.set_default_device(None)
    # It leaves a None that torch 2.7 trips over; without it, all is as before the first setting.
    del torch._GLOBAL_DEVICE_CONTEXT.device_context  # pyright: ignore[reportPrivateUsage]
    if default_device() != device:
        torch.set_default_device(device)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (default_device, _set_default_device),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "random seed": (torch.initial_seed, _set_seed),
    "deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
}
"""What no backend may change in torch for the whole process, with how to read and to set each."""


@contextlib.contextmanager
def _kept_generator() -> Generator[None, None, None]:
    """Restore the host's generator: a self-test that draws numbers must not change the caller's."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextlib.contextmanager
def unchanged() -> Generator[list[str], None, None]:
    """Run a backend's code outside the caller's modes, and undo its changes to torch's settings.

    What a backend makes while it is loaded outlives the caller's inference mode or fake tensors.

    Yields:
        A list that says, after the block, what was changed.
    """
    changes: list[str] = []
    # inference_mode(False) also records gradients, and restores both on leaving.
    with torch.inference_mode(False), _disable_current_modes(), _kept_generator():
        before = {name: read() for name, (read, _) in _SETTINGS.items()}
        try:
            yield changes
        finally:
            for name, value in before.items():
                read, restore = _SETTINGS[name]
                found = read()
                if found != value:
                    changes.append(f"changed torch's {name} from {value} to {found}")
                    restore(value)


def _named(namespace: str, schemas: set[str]) -> set[str]:
    """The operators of ``namespace`` among those that Python has defined, without it."""
    prefix = f"{namespace}::"
    return {text.removeprefix(prefix) for text in schemas if text.startswith(prefix)}


def _table(op: str) -> str:
    """What the dispatcher has for an operator of hal, with the file that registered each kernel."""
    return torch._C._dispatch_dump(f"hal::{op}")  # pyright: ignore[reportPrivateUsage]


# A device that torch does not know by itself implements torch's operators under these keys.
_PRIVATE = ("PrivateUse1", "AutogradPrivateUse1")


def _overrides(keys: set[str], late: set[str]) -> list[str]:
    """Those of ``keys``, as ``namespace/op/dispatch key``, that take an operator of torch over."""
    # Parts of torch that load late, such as its compiler, define operators of their own.
    split = [key.split("/") for key in sorted(keys)]
    return [
        f"overrode {namespace}::{op} for {where}, until the process ends"
        for namespace, op, where in split
        if namespace in ("aten", "prims") and where not in _PRIVATE
        if f"{namespace}::{op}" not in late
    ]


@contextlib.contextmanager
def registrations() -> Generator[list[str], None, None]:
    """Watch for operators of torch or hal that the block takes over.

    They stay so: torch forgets a kernel only with the library object, which the backend holds.

    Yields:
        A list that names them, after the block.
    """
    taken: list[str] = []
    # They are made at first use; what takes one over comes after.
    hasattr(torch.ops.hal, "operators")
    implemented = torch.library._impls  # pyright: ignore[reportPrivateUsage]
    defined = torch.library._defs  # pyright: ignore[reportPrivateUsage]
    keys, names = set(implemented), set(defined)
    tables = {op: _table(op) for op in _named("hal", names)}
    try:
        yield taken
    finally:
        taken.extend(_overrides(implemented - keys, defined - names))
        changed = [op for op, table in tables.items() if _table(op) != table]
        taken.extend(f"overrode hal::{op}, until the process ends" for op in changed)
