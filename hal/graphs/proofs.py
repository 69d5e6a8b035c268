"""What torch.compile needs to trace a function, proven before it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from hal.errors import HalError
from hal.graphs.arguments import Arguments
from hal.plugins import registry
from hal.repairs import DEVICE_CONSTANTS, UNDONE

__all__ = ["check_faked", "check_repaired"]


def check_repaired(who: str) -> None:
    """Prove that code which FX generates finds the devices in it.

    Raises:
        HalError: It does not, and why.
    """
    states = registry().repair(but=UNDONE)
    if not DEVICE_CONSTANTS.needed():
        return
    state = states.get(DEVICE_CONSTANTS.name, "no backend asks for it")
    raise HalError(
        f"{who} cannot be traced: something has replaced torch.device, and code that FX generates "
        f"does not find it; the repair, {DEVICE_CONSTANTS.name}, is not in place ({state}): "
        "hal.repair() applies it where a backend asks for it"
    )


def check_faked(fn: Callable[..., Any], arguments: Arguments, bucket: int) -> None:
    """Prove that every operator which a function calls has a fake kernel, by a run without data.

    Raises:
        HalError: One has none, or reads data.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    values = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments.inputs(bucket)]
    who = arguments.who
    try:
        with mode:
            arguments.call(fn, values)
    except UnsupportedOperatorException as error:
        raise HalError(
            f"{who} cannot be traced: {error.func} has no fake kernel; give it one with "
            f"torch.library.register_fake, or with hal.fake_if_exists({error.func.name()!r})"
        ) from error
    except DataDependentOutputException as error:
        raise HalError(
            f"{who} cannot be traced: {error.func} reads data, which is not there yet"
        ) from error
