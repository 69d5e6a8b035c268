"""What a backend states (``Backend``) and the hooks it may implement; those of ops are generated.

Each hook is called by hal once for each device, never with a tensor. The order of backends is data:
a wrapper is refused, ``tryfirst`` and ``trylast`` say nothing. A hook that an older hal may not
know, such as that of a new op, is marked ``@hookimpl(optionalhook=True)``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

from hal.errors import BackendError
from hal.hardware import Capability, Device
from hal.op import OPS, Kernel, Op
from hal.repairs import Repair, torch_range

if TYPE_CHECKING:
    from torch import Tensor

    from hal.testing.simulated import Face

__all__ = ["API", "Backend", "Hook", "hookimpl", "implemented", "op_hooks"]

API = 1
"""The version of the plugin interface: these hooks, ``Kernel`` and ``Backend``."""

Hook = Callable[..., Any]
"""A hook as a backend implements it, called by position."""

hookspec = pluggy.HookspecMarker("hal")
hookimpl = pluggy.HookimplMarker("hal")


def _device_types(given: Iterable[str] | None) -> tuple[str, ...] | None:
    """The types as a tuple; a lone string would fall apart into letters."""
    if given is None:
        return None
    if isinstance(given, str):
        raise TypeError(f"devices must be a tuple of device types, such as ({given!r},)")
    types = tuple(given)
    named = all(isinstance(t, str) and re.fullmatch(r"[a-z]\w*", t) for t in types)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not types or not named:
        raise ValueError(
            f"devices must be torch's types of device, without an index; it is {types!r}"
        )
    return types


@attrs.frozen
class Backend:
    """What a backend states of itself, as ``backend`` in the module or object of its entry point.

    Args:
        api: The version of the plugin interface it was written for.
        torch: The range of torch versions it supports, as in a requirement.
        devices: The device types it serves, such as ``("cpu",)``; None if it is portable and
            decides by hook.

    Example:
        >>> hal.Backend(api=1, torch=">=2.7", devices=("cpu",))
        Backend(api=1, torch='>=2.7', devices=('cpu',))
    """

    api: int = attrs.field(validator=attrs.validators.instance_of(int))
    torch: str = attrs.field(default=">=2.7", validator=torch_range)
    devices: tuple[str, ...] | None = attrs.field(default=None, converter=_device_types)


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
    """Repairs to torch that the backend's devices need.

    Applied when the backend is loaded, and where ``hal.repair`` says, since what breaks torch can
    be imported later.
    """
    ...


@hookspec
def hal_known_gaps() -> Sequence[object]:
    """What ``hal check`` will find wrong, each with its reason; made by ``hal.testing.notyet``."""
    ...


@hookspec
def hal_late_copy(device: Device) -> Callable[[Tensor, Tensor], None] | None:
    """For ``hal check``: what copies bytes, and lets the next kernel start long before.

    It takes where to and where from, vectors of uint8 on ``device``. Who claims PDL gives one.
    """
    ...


@hookspec
def hal_simulated(card: str | None) -> Face | None:
    """For ``hal.testing.simulated``: what a device of this backend looks like.

    It takes the name of a card, of which None is the usual one; the reason is raised where there is
    no such card.
    """
    ...


def _op_hook(op: Op) -> object:
    def hook(device: Device) -> Kernel | Sequence[Kernel] | None: ...

    hook.__name__ = hook.__qualname__ = op.name
    hook.__doc__ = f"Offer kernels for ``{op!r}`` on ``device``, best first, or None."
    return hookspec(hook)


def op_hooks() -> SimpleNamespace:
    """A hook specification for each declared op, under the op's name."""
    return SimpleNamespace(**{op.name: _op_hook(op) for op in OPS.values()})


def implemented(name: str, plugin: Any) -> dict[str, Hook]:
    """The hooks of ``plugin``, a module or object, each checked against its specification.

    Raises:
        BackendError: A hook wrapper, or a second implementation of a hook.
        pluggy.PluginValidationError: An unknown hook, or one with other parameters.
    """
    # A manager of its own: what is refused leaves nothing behind, and no backend can wrap another.
    manager = pluggy.PluginManager("hal")
    manager.add_hookspecs(sys.modules[__name__])
    manager.add_hookspecs(op_hooks())  # pyright: ignore[reportArgumentType]
    manager.register(plugin, name)
    manager.check_pending()
    found: dict[str, Hook] = {}
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            if implementation.wrapper or implementation.hookwrapper:
                raise BackendError(f"{caller.name} wraps a hook; a backend answers for itself only")
            if caller.name in found:
                raise BackendError(f"{caller.name} is implemented twice")
            found[caller.name] = _by_position(implementation)
    return found


def _by_position(implementation: pluggy.HookImpl) -> Hook:
    """Call it with as many arguments as it takes: a hook may leave out what it does not need."""
    count = len(implementation.argnames)
    return lambda *args: implementation.function(*args[:count])
