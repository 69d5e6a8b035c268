"""What a backend states (``Backend``) and the hooks it may implement; those of the ops come from ``hal.ops``.

Each hook is called by hal once for each device, never with a tensor. A wrapper, ``tryfirst`` or ``trylast`` has no
place here: the order of backends is data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace

import attrs
import pluggy
from packaging.specifiers import SpecifierSet

from hal.compat import Repair
from hal.hardware import Capability, Device
from hal.op import OPS, Kernel, Op

__all__ = ["API", "Backend", "hookimpl", "op_hooks"]

API = 1
"""The version of the plugin interface: these hooks, ``Kernel`` and ``Backend``."""

hookspec = pluggy.HookspecMarker("hal")
hookimpl = pluggy.HookimplMarker("hal")


@attrs.frozen
class Backend:
    """What a backend states of itself, as ``backend`` in the module (or object) its entry point names.

    Args:
        api: The version of the plugin interface it was written for.
        torch: The range of torch versions it supports, as in a requirement.
        devices: The device types it serves, such as ``("cpu",)``; None if it is portable and decides by hook.

    Example:
        >>> hal.Backend(api=1, torch=">=2.7", devices=("cpu",))
        Backend(api=1, torch='>=2.7', devices=('cpu',))
    """

    api: int = attrs.field(validator=attrs.validators.instance_of(int))
    torch: str = attrs.field(default=">=2.7", validator=lambda _, __, text: SpecifierSet(text))
    devices: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(tuple)
    )


@hookspec
def hal_devices() -> Sequence[Device] | str:
    """Probe: the devices present, or the reason why there are none. Initialises no device."""
    ...


@hookspec
def hal_capabilities(device: Device) -> Collection[Capability]:
    """What this backend claims for ``device``, in addition to what others claim."""
    ...


@hookspec
def hal_repairs() -> Sequence[Repair]:
    """Repairs to torch that the backend's devices need; run once, when the backend is loaded."""
    ...


def _op_hook(op: Op) -> object:
    def hook(device: Device) -> Kernel | Sequence[Kernel] | None:
        ...

    hook.__name__ = hook.__qualname__ = op.name
    hook.__doc__ = f"Offer kernels for ``{op!r}`` on ``device``, best first, or None."
    return hookspec(hook)


def op_hooks() -> SimpleNamespace:
    """A hook specification for each declared op, under the op's name."""
    return SimpleNamespace(**{op.name: _op_hook(op) for op in OPS.values()})
