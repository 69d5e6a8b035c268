"""Which devices are here, and what they can do, as the backends state it."""

from __future__ import annotations

import functools
import sys

import attrs
import torch
from torch import Tensor

from hal.compat import default_device
from hal.errors import InvalidInput, InvalidType
from hal.hardware import Capability, Device
from hal.plugins import REFERENCE, Plugin, is_a, registry

__all__ = ["asked", "device", "devices", "known_capability", "present", "supports"]


def _by_precedence() -> list[Plugin]:
    """Backends that name their device types first, the reference with its generic facts last."""

    def rank(plugin: Plugin) -> tuple[bool, bool, str]:
        named = plugin.backend is not None and plugin.backend.devices is not None
        return plugin.name == REFERENCE, not named, plugin.name

    return sorted(registry().load(), key=rank)


def _claims(found: Device) -> frozenset[Capability]:
    claimed: set[Capability] = set(found.capabilities)
    for plugin in registry().load():
        if plugin.serves(found.type):
            claimed.update(registry().collect(plugin, "hal_capabilities", Capability, found))
    return frozenset(claimed)


def present(found: Device) -> bool:
    """Whether torch can place a tensor there; that is counted without initialising the device."""
    try:
        module = torch.get_device_module(found.type)
        count = getattr(module, "device_count", None)
        return count is None or (found.index or 0) < count()
    except Exception:  # noqa: BLE001  # A device's module is its vendor's code.
        return False


def _seen(plugin: Plugin) -> list[Device]:
    """The devices one backend finds; a reason for finding none is put into its record."""
    answer = registry().ask(plugin, "hal_devices")
    if is_a(answer, str):
        plugin.reason = answer
        return []
    claimed = registry().members(plugin, "hal_devices", Device, answer)
    for each in claimed:
        if not present(each):
            problem = f"hal_devices claims {each}, on which this torch can place nothing"
            registry().problem(plugin, problem)
    return [each for each in claimed if present(each)]


def _probed() -> dict[tuple[str, int | None], Device]:
    with registry().lock:
        return _probe()


@functools.cache
def _probe() -> dict[tuple[str, int | None], Device]:
    found: dict[tuple[str, int | None], Device] = {}
    for plugin in _by_precedence():
        for seen in _seen(plugin):
            found.setdefault((seen.type, seen.index), seen)
    return {
        key: attrs.evolve(seen, capabilities=_claims(seen), simulated=_simulated(seen))
        for key, seen in found.items()
    }


def _simulated(found: Device) -> bool:
    """Whether this process has made a device of this type itself, which needs what made it."""
    maker = sys.modules.get("hal.testing.simulated")
    made = None if maker is None else maker.simulation()
    return made is not None and made.name == found.type


def asked() -> bool:
    """Whether devices were looked for, which is done once."""
    return _probe.cache_info().currsize > 0


@functools.cache
def _bare(kind: str, index: int | None) -> Device:
    bare = Device(kind, index)
    # One that is not here does nothing; shapes need no device.
    able = _claims(bare) if present(bare) else _claims(bare) & {Capability.FAKE_KERNELS}
    return attrs.evolve(bare, capabilities=able)


def _unknown(kind: str, index: int | None) -> Device:
    """A device that no backend found; what is portable may still serve it."""
    with registry().lock:
        return _bare(kind, index)


def devices() -> list[Device]:
    """The devices of this machine, accelerators first.

    Example:
        >>> "cpu" in [device.type for device in hal.devices()]
        True
    """
    return sorted(_probed().values(), key=lambda d: (not d.accelerator, d.type, d.index or 0))


def device(like: Tensor | torch.device | Device | str | None = None) -> Device:
    """The device of a tensor, or of torch's notation for one; without either, the current device.

    The current device is that of a new tensor under ``torch.set_default_device``, else the current
    accelerator, else the host.

    Raises:
        InvalidInput: A string that names no device.

    Example:
        >>> hal.device(torch.zeros(1)).type
        'cpu'
    """
    if isinstance(like, Device):
        return like
    if like is None:
        return _current()
    where = like.device if isinstance(like, Tensor) else _parsed(like)
    return _found(where.type, where.index)


def _parsed(like: torch.device | str) -> torch.device:
    if not isinstance(like, (str, torch.device)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"expected a tensor or a device, not {like!r}")
    # A backend may bring the type along.
    registry().load()
    try:
        return torch.device(like)
    except RuntimeError as error:
        what = f"{like!r} is not a device: {error}".splitlines()[0]
        raise InvalidInput(f"{what}{registry().troubles()}") from None


def _found(kind: str, index: int | None) -> Device:
    probed = _probed()
    for key in (kind, index), (kind, None):
        if key in probed:
            return probed[key]
    if index is None:
        first = [found for (its, _), found in probed.items() if its == kind]
        return min(first, key=lambda found: found.index or 0) if first else _unknown(kind, None)
    return _unknown(kind, index)


def _current() -> Device:
    chosen = default_device()
    accelerators = [found for found in devices() if found.accelerator]
    default = _found(chosen.type, chosen.index)
    if default.accelerator or not accelerators:
        return default
    kind = accelerators[0].type
    return _found(kind, torch.get_device_module(kind).current_device())


def known_capability(wanted: Capability | str) -> Capability:
    """A capability given as such or by its value.

    Raises:
        InvalidInput: An unknown value; the message lists the known ones.
    """
    try:
        return Capability(wanted)
    except ValueError:
        known = ", ".join(each.value for each in Capability)
        raise InvalidInput(f"there is no capability {wanted!r}; known: {known}") from None


_device = device


def supports(
    capability: Capability | str, device: Tensor | torch.device | Device | str | None = None
) -> bool:
    """Whether a device, or the current one, has a capability, by the claims of its backends.

    Raises:
        InvalidInput: An unknown capability or device.

    Example:
        >>> hal.supports(hal.Capability.FAKE_KERNELS, "cpu")
        True
    """
    return known_capability(capability) in _device(device).capabilities
