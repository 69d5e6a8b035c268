"""What is particular to Moore Threads' devices: facts, capabilities, and their libraries' kernels.

Nothing here has run on such a device: it was tried on a simulated one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal import Backend, Device, Repair, hookimpl

if TYPE_CHECKING:
    from hal.testing.simulated import Face

backend = Backend(api=1, torch=">=2.7", devices=("musa",))


@hookimpl
def hal_devices() -> list[Device] | str:
    """The devices of a torch that is built for MUSA."""
    import torch

    if getattr(torch.version, "musa", None) is None:
        return "this torch is built without MUSA"
    return "no device of Moore Threads' is known yet"


@hookimpl
def hal_repairs() -> list[Repair]:
    """What torchada breaks by replacing ``torch.device``, which its 0.1.103 mends by itself."""
    from hal.repairs import DEVICE_CONSTANTS

    return [DEVICE_CONSTANTS]


@hookimpl
def hal_simulated(card: str | None) -> Face | None:
    """What torch_musa, on this card, looks like."""
    from hal_musa.simulated import face

    return face(card)
