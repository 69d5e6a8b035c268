"""What processes that run a model together compare before each of them captures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from hal.errors import HalError, InvalidInput
from hal.report import fingerprint

__all__ = ["check_ranks", "slowest"]


def _count(group: Any) -> int:
    """How many ranks there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    count = dist.get_world_size(group)
    if count < 1:
        raise InvalidInput(f"group is one of ranks without this one, which is {dist.get_rank()}")
    return count


def _gathered(mine: Any, group: Any) -> list[Any]:
    """What each of several ranks gives, in order."""
    found: list[Any] = [None] * _count(group)
    dist.all_gather_object(found, mine, group=group)
    return found


def slowest(measure: Callable[[], list[float]], who: str, group: Any = None) -> list[float]:
    """Of each of some figures the largest that a rank measures.

    Args:
        measure: Gives this rank's, as many as on each other.
        who: What is measured.
        group: A process group of ``torch.distributed``; None for all ranks.

    Raises:
        HalError: It has failed on a rank, which all of them are told; a single one has its error.
    """
    if _count(group) == 1:
        return measure()
    try:
        mine = measure()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise _failed(who, _gathered(said, group), group) from error
    found = _gathered(mine, group)
    if any(isinstance(each, str) for each in found):
        raise _failed(who, found, group)
    return [max(each) for each in zip(*found, strict=True)]


def _failed(who: str, found: Sequence[Any], group: Any) -> HalError:
    """What all ranks raise where some have said what went wrong, and others their figures."""
    lines = [
        f"\n  rank {rank}: {each}"
        for rank, each in zip(_numbers(group), found, strict=True)
        if isinstance(each, str)
    ]
    return HalError(f"{who} was not measured, since it failed:{''.join(lines)}")


def _numbers(group: Any) -> list[int]:
    """The numbers that the ranks of a group have among all."""
    return dist.get_process_group_ranks(group or dist.group.WORLD)


def check_ranks(device: torch.device, group: Any = None, **captured: Any) -> None:
    """Refuse, on every rank of a group, what is not the same on all: what is captured, what serves.

    A collective in a graph waits for the other ranks', so that all have to capture and replay the
    same in the same order. Without ``torch.distributed``, or with one rank, there is no question.

    Args:
        device: Where.
        group: A process group of ``torch.distributed``; None for all ranks.
        captured: What is to be the same, by name.

    Raises:
        InvalidInput: This rank is not in the group.
        HalError: The ranks differ; it names them as all ranks are numbered, and in what.
    """
    if _count(group) == 1:
        return
    mine = {"fingerprint": fingerprint(device), "device": device.type, **captured}
    found = _gathered(mine, group)
    ranks = _numbers(group)
    said = {key: {r: repr(each[key]) for r, each in zip(ranks, found, strict=True)} for key in mine}
    unlike = [line for key, values in said.items() for line in _unlike(key, values)]
    if unlike:
        raise HalError("ranks would not capture the same:" + "".join(f"\n  {u}" for u in unlike))


def _unlike(key: str, values: dict[int, str]) -> list[str]:
    """Who differs from most, or from the first of equals; from what each rank has."""
    usual = Counter(values.values()).most_common(1)[0][0]
    first = next(rank for rank, value in values.items() if value == usual)
    return [
        f"{key} of rank {rank} is {value}; of rank {first}, {usual}"
        for rank, value in values.items()
        if value != usual
    ]
