"""Tiles that were measured to be quick, by architecture; elsewhere a rule of thumb has to do."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

import hal
from hal_triton.launch import next_power_of_2

__all__ = ["TABLES", "Config", "find", "measured"]

Config = tuple[int, ...]

TABLES = Path(__file__).parent / "tables"
"""A file for each architecture, which ``benchmarks/tune.py`` writes there."""


def measured(name: str, device: torch.device, sizes: tuple[int, ...], otherwise: Config) -> Config:
    """The configuration of a kernel that is in the table of a device, or else the one given.

    Args:
        name: What is configured.
        device: Where it runs.
        sizes: What the choice goes by; each stands for all down to half of it, without that.
        otherwise: For a device, or for sizes, of which there is no measurement.
    """
    return find(name, device, ",".join(str(next_power_of_2(size)) for size in sizes), otherwise)


def find(name: str, device: torch.device, key: str, otherwise: Config) -> Config:
    """The entry of a table, or what there is without it."""
    return tuple(_table(device).get(name, {}).get(key, otherwise))


@functools.cache
def _table(device: torch.device) -> dict[str, dict[str, list[int]]]:
    path = TABLES / f"{device.type}-{hal.device(device).arch}.json"
    return json.loads(path.read_text(encoding="utf-8"))["tables"] if path.exists() else {}
