"""Random numbers on simulated devices: each draws what the host draws from the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hal.testing.simulated.build import extension
from hal.testing.simulated.place import DeviceIndex, device_count, index_of

__all__ = [
    "default_generator",
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]


def default_generator(device: DeviceIndex = None) -> torch.Generator:
    """The generator of a device, from which it draws unless another is given."""
    return extension().default_generator(index_of(device))


def manual_seed(seed: int) -> None:
    """Seed the current device."""
    default_generator().manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every device."""
    for index in range(device_count()):
        default_generator(index).manual_seed(seed)


def seed() -> None:
    """Seed the current device by chance."""
    default_generator().seed()


def seed_all() -> None:
    """Seed every device by chance, alike."""
    default_generator(0).seed()
    manual_seed_all(default_generator(0).initial_seed())


def initial_seed() -> int:
    """The seed of the current device."""
    return default_generator().initial_seed()


def get_rng_state(device: DeviceIndex = None) -> Tensor:
    """The state of a device's generator."""
    return default_generator(device).get_state()


def set_rng_state(new_state: Tensor, device: DeviceIndex = None) -> None:
    """Set the state of a device's generator."""
    default_generator(device).set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The states of all devices' generators."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: Sequence[Tensor]) -> None:
    """Set the states of all devices' generators."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
