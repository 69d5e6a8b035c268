"""Moore Threads' cards, by what torch_musa says of them."""

from __future__ import annotations

import attrs
import torch

from hal import InvalidInput

__all__ = ["CARDS", "Card", "Properties", "arch", "card_named"]


@attrs.frozen
class Properties:
    """What ``torch.musa.get_device_properties`` returns: seven fields, no warp size, no uuid.

    Attributes:
        name: The card's name.
        major: Of the compute capability.
        minor: Of the compute capability.
        is_multi_gpu_board: 0 or 1.
        is_integrated: 0 or 1.
        multi_processor_count: Of the device.
        total_memory: Bytes.
    """

    name: str
    major: int
    minor: int
    is_multi_gpu_board: int
    is_integrated: int
    multi_processor_count: int
    total_memory: int


@attrs.frozen
class Card:
    """A card.

    Attributes:
        name: As the driver says it.
        capability: (major, minor), of which torch_musa makes 21, 22 and 31.
        memory: Bytes.
        multiprocessors: How many.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int

    def properties(self, memory: int) -> Properties:
        """The seven fields, where the device has ``memory`` bytes."""
        return Properties(self.name, *self.capability, 0, 0, self.multiprocessors, memory)


# Memory and lanes are the vendor's data sheets' (4096 and 8192 lanes, 128 to a multiprocessor);
# what an S5000 has in multiprocessors no public page says: 56 is a guess.
CARDS = {
    "S80": Card("MTT S80", (2, 1), 16 << 30, 32),
    "S4000": Card("MTT S4000", (2, 2), 48 << 30, 64),
    "S5000": Card("MTT S5000", (3, 1), 80 << 30, 56),
}


def card_named(name: str | None) -> Card:
    """The card called ``name``; None is the S5000.

    Raises:
        InvalidInput: There is none of that name.
    """
    if name is None:
        return CARDS["S5000"]
    if name not in CARDS:
        raise InvalidInput(f"no card is called {name!r}; there are {', '.join(CARDS)}")
    return CARDS[name]


def arch() -> int:
    """The simulated card's capability as one number: 21, 22 or 31."""
    major, minor = torch.get_device_module("musa").get_device_capability()
    return 10 * major + minor
