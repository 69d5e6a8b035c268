"""What goes wrong with a provider is kept, and the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import attrs
import torch

import hal
from peers import DoesNotFit


class DeviceLost(Exception):
    """Nothing can be run on the device any more; what was found so far is to be kept."""


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@attrs.define
class Failures:
    """By provider why it has nothing for a call, and what went wrong with it."""

    refused: dict[str, str] = attrs.field(factory=dict, init=False)
    wrong: dict[str, str] = attrs.field(factory=dict, init=False)


def attempt(failures: Failures, name: str, function: Callable[[], Any]) -> Any:
    """What a function returns, or None; then ``failures`` have the reason.

    Raises:
        DeviceLost: The device does not answer any more.
    """
    try:
        return function()
    except (DoesNotFit, hal.NoKernel) as error:
        failures.refused[name] = " ".join(str(error).split())[:300]
    except Exception as error:  # noqa: BLE001  # Other libraries may raise anything.
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        failures.wrong[name] = f"{type(error).__name__}: {error} ({at})"[:300]
        try:
            synchronize()
        except RuntimeError as lost:
            raise DeviceLost(failures.wrong[name]) from lost
    return None
