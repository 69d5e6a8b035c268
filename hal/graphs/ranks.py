"""What processes that run a model together compare before each of them captures it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from hal.errors import HalError
from hal.report import fingerprint

__all__ = ["check_ranks"]


def check_ranks(device: torch.device, **captured: Any) -> None:
    """Refuse, on every rank, what is not the same on all: what is captured, or what would serve.

    A collective in a graph waits for the other ranks', so that all have to capture and replay the
    same in the same order. Without ``torch.distributed``, or with one rank, there is no question.

    Raises:
        HalError: The ranks differ; it names them, and in what.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    mine = {"fingerprint": fingerprint(device), "device": device.type, **captured}
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    unlike = [line for key in mine for line in _unlike(key, [repr(each[key]) for each in found])]
    if unlike:
        raise HalError("ranks would not capture the same:" + "".join(f"\n  {u}" for u in unlike))


def _unlike(key: str, values: list[str]) -> list[str]:
    """Who differs from most, or from the first of equals."""
    usual = Counter(values).most_common(1)[0][0]
    return [
        f"{key} of rank {rank} is {value}; of rank {values.index(usual)}, {usual}"
        for rank, value in enumerate(values)
        if value != usual
    ]
