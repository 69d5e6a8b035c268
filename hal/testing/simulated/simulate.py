"""Making the simulated device of a process."""

from __future__ import annotations

import threading
from types import ModuleType

import attrs
import torch

from hal.errors import HalError, InvalidInput
from hal.plugins import registry
from hal.probe import asked
from hal.testing.simulated import codegen, graphs, memory, place, random, streams
from hal.testing.simulated.build import extension
from hal.testing.simulated.face import Face

__all__ = ["Simulation", "simulate", "simulation"]

_MEMORY = 8 << 30


@attrs.frozen
class Simulation:
    """What ``simulate`` was given."""

    name: str
    card: str | None = None
    devices: int = 1
    memory: int | None = None

    def offers(self, wanted: Simulation) -> bool:
        """Whether it is what another call asks for; what that leaves out may be anything."""
        usual, given = Simulation(wanted.name), attrs.astuple(wanted)
        same = zip(attrs.astuple(self), given, attrs.astuple(usual), strict=True)
        return self.name == wanted.name and all(
            has == want or want == left for has, want, left in same
        )


_made: Simulation | None = None
_lock = threading.RLock()


def simulation() -> Simulation | None:
    """What this process simulates, None for nothing."""
    return _made


def _face(name: str, card: str | None) -> Face | None:
    """What the backend that serves devices of a type says they look like."""
    for plugin in registry().load():
        hook = plugin.hooks.get("hal_simulated")
        if hook is not None and plugin.serves(name):
            return hook(card)
    if card is not None:
        raise InvalidInput(f"no backend says what a {card} is among devices of type {name}")
    return None


def _taken(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return hasattr(torch, name)
    return True


def _check_name(name: str) -> None:
    if not name.isidentifier() or not name.islower() or _taken(name):
        raise InvalidInput(f"a device cannot be named {name!r}: torch has that, or it is no name")


def _module(name: str) -> ModuleType:
    made = ModuleType(f"torch.{name}", f"The simulated device {name}.")
    for part in (place, memory, random, streams, graphs):
        vars(made).update({each: getattr(part, each) for each in part.__all__})
    setattr(made, f"{name.upper()}Graph", graphs.Graph)
    # Torch has them beside the class of graphs, by such names.
    setattr(graphs, f"_{name}_endAllocateToPool", graphs.end_pool)
    setattr(graphs, f"_{name}_releasePool", graphs.release_pool)
    vars(made)["__getattr__"] = codegen.attributes(made)
    return made


def _make(wanted: Simulation) -> ModuleType:
    name = wanted.name
    _check_name(name)
    if asked():
        raise HalError(
            f"hal knows this machine's devices already; simulate {name} before hal is first asked"
        )
    face = _face(name, wanted.card)
    usual = _MEMORY if face is None else face.memory
    extension().start(wanted.devices, usual if wanted.memory is None else wanted.memory)
    torch.utils.rename_privateuse1_backend(name)  # pyright: ignore[reportPrivateImportUsage]
    module = _module(name)
    torch._register_device_module(name, module)  # pyright: ignore[reportPrivateUsage]
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)  # pyright: ignore[reportPrivateImportUsage]
    if face is not None:
        place.describe(face.properties)
        face.install(module)
    return module


def simulate(
    name: str, card: str | None = None, *, devices: int = 1, memory: int | None = None
) -> ModuleType:
    """Make a device of some type on host memory, for the rest of the process.

    A process has one simulated type, since torch renames its spare type once. It comes before the
    first question to hal, such as ``hal.devices()``, whose answers are kept.

    Args:
        name: The type, such as ``"acme"``; if a backend serves it and implements
            ``hal_simulated``, the device looks like that vendor's.
        card: The vendor's name of a card; without it the usual one.
        devices: How many devices there are, 1 to 16.
        memory: Bytes of memory of each; without it as much as the card has, or 8 GiB.

    Returns:
        ``torch.<name>``, as it is afterwards; of a call for what is there already, that.

    Raises:
        InvalidInput: The name is taken, or no backend knows the card.
        HalError: This process simulates another device, hal has been asked for devices already, or
            the device cannot be compiled.

    Example:
        >>> simulate("acme").device_count()  # doctest: +SKIP
        1
    """
    global _made
    wanted = Simulation(name, card, devices, memory)
    with _lock:
        if _made is None:
            module = _make(wanted)
            _made = wanted
            return module
        if not _made.offers(wanted):
            raise HalError(f"this process has {_made}, and cannot have {wanted} as well")
        return torch.get_device_module(name)
