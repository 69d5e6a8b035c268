"""torch_musa's face on a simulated device: its names, its module, what it puts into torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from hal.testing.simulated import Face
from hal_musa.simulated.aten import register_operators
from hal_musa.simulated.cards import Card, Properties, card_named
from hal_musa.simulated.dynamo import register_interface
from hal_musa.simulated.graphs import graphs_of
from hal_musa.simulated.layers import install_layers
from hal_musa.simulated.shelf import add, check

__all__ = ["face"]

# torch_musa's, and what its MUSA_VERSION macro is as a string, whose scale is not documented.
_VERSION = "2.7.1"
_MUSA = "50200"

_held: list[torch.library.Library] = []


def face(card: str | None) -> Face:
    """What a simulated device looks like that is the card of this name, by default an S5000.

    Libraries that are there with it come after the card, as in ``S5000+mate+sgl_kernel``.

    Raises:
        InvalidInput: There is no such card, or no such library; it lists those there are.
    """
    name, *names = (card or "").split("+")
    found = card_named(name or None)
    check(*names)
    return Face(found.memory, found.properties, functools.partial(_install, found, names))


def _install(card: Card, names: Sequence[str], module: ModuleType) -> None:
    _name(module)
    _probing(card, module)
    _streams(module)
    vars(module).update(graphs_of(module))
    _submodules(module)
    _mudnn()
    _held.extend(register_operators())
    install_layers()
    register_interface(module)
    add(*names)


def _package(module: ModuleType, name: str) -> None:
    """Have ``import`` find ``module`` as the package ``name``."""
    module.__name__ = name
    module.__path__ = []
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module


def _name(module: ModuleType) -> None:
    """``torch.musa`` is ``torch_musa``; ``import torch.musa`` finds nothing.

    The device is initialised first: where torch's own code does that, it imports ``torch.musa``.
    """
    torch.empty(0, device="musa")
    torch.__dict__["musa"] = module
    sys.modules.pop("torch.musa", None)
    _package(module, "torch_musa")
    vars(module)["__version__"] = _VERSION
    torch.version.__dict__["musa"] = _MUSA


def _probing(card: Card, module: Any) -> None:
    properties = module.get_device_properties

    def get_device_properties(device: Any) -> Properties:
        """The seven fields; the device has to be said."""
        return properties(device)

    def get_device_capability(device: Any = None) -> tuple[int, int]:
        """(major, minor)."""
        found = properties(device)
        return found.major, found.minor

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        """From 22 on."""
        return card.capability >= (2, 2)

    def get_amp_supported_dtype() -> list[torch.dtype]:
        """What autocast takes."""
        return [torch.float16, torch.bfloat16] if is_bf16_supported() else [torch.float16]

    module.get_device_properties = get_device_properties
    module.get_device_capability = get_device_capability
    module.get_device_name = lambda device=None: properties(device).name
    module.is_bf16_supported = is_bf16_supported
    module.get_amp_supported_dtype = get_amp_supported_dtype
    module.get_arch_list = lambda: ["21", "22", "31"]
    module._is_compiled = lambda: True
    # Two functions, as torch_musa's are: Dynamo knows each by itself.
    module._maybe_exchange_device = lambda device: module._exchange_device(device)
    module._MUSAC = SimpleNamespace(
        _musa_version=_MUSA,
        _MusaDeviceProperties=Properties,
        _musa_getDeviceCount=module.device_count,
        _musa_getCurrentRawStream=lambda index: module.current_stream(index).stream_id,
    )


def _streams(module: Any) -> None:
    """A stream's handle; there is no ``cuda_stream``."""
    module.Stream.musa_stream = property(lambda stream: stream.stream_id)
    module.StreamContext = getattr(module, "StreamContext", module.stream)


class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801 - torch_musa's name for it
    """``torch.autocast("musa", ...)``."""

    def __init__(
        self,
        enabled: bool = True,
        dtype: torch.dtype = torch.float16,
        cache_enabled: bool = True,
    ) -> None:
        super().__init__("musa", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


# Where torchada and others look for what torch_musa's module has itself.
_PLACES: dict[str, tuple[str, ...]] = {
    "core": (),
    "core._lazy_init": ("_lazy_init", "_lazy_call", "is_initialized"),
    "core._utils": (),
    "core.amp": (),
    "core.device": ("device", "device_of", "current_device", "set_device", "device_count"),
    "core.memory": ("memory_allocated", "max_memory_allocated", "memory_stats", "mem_get_info"),
    "core.random": ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state"),
    "core.stream": (
        *("Stream", "Event", "StreamContext", "stream"),
        *("current_stream", "default_stream", "set_stream"),
    ),
    "musa_graph": ("MUSAGraph", "graph", "graph_pool_handle", "is_current_stream_capturing"),
}


def _submodules(module: Any) -> None:
    made: dict[str, Any] = {"": module}
    for place, names in _PLACES.items():
        part = ModuleType(f"torch_musa.{place}")
        _package(part, part.__name__)
        for name in names:
            setattr(part, name, getattr(module, name))
        above, _, name = place.rpartition(".")
        made[place] = part
        setattr(made[above], name, part)
    amp = made["core.amp"]
    amp.autocast = autocast
    amp.GradScaler = functools.partial(torch.amp.GradScaler, "musa")
    module.amp = sys.modules["torch_musa.amp"] = amp
    module.memory, module.graphs = made["core.memory"], made["musa_graph"]
    made["core._utils"]._get_musa_device_index = _index(module)
    made["core._utils"]._get_musa_arch = lambda: _arch(module)


def _index(module: Any) -> Any:
    def _get_musa_device_index(device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
        """The number of a device; -1 is the host's, where that is allowed."""
        if device is None:
            if not optional:
                raise ValueError("Expected a musa device, but got: None")
            return module.current_device()
        if isinstance(device, int):
            return device
        found: Any = torch.device(device)
        if found.type == "cpu" and allow_cpu:
            return -1
        if found.type != "musa":
            raise ValueError(f"Expected a musa device, but got: {device}")
        index = found.index
        return module.current_device() if index is None else index

    return _get_musa_device_index


def _arch(module: Any) -> int:
    major, minor = module.get_device_capability()
    return 10 * major + minor


def _mudnn() -> None:
    """``torch.backends.mudnn``; the version is the first of those with MLA's rotation."""
    mudnn: Any = ModuleType("torch.backends.mudnn")
    mudnn.allow_tf32 = False
    mudnn.version = lambda: 3000
    torch.backends.__dict__["mudnn"] = sys.modules["torch.backends.mudnn"] = mudnn
