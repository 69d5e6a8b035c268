"""What processes that run a model together compare before each of them captures it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.distributed as dist

from hal.errors import HalError, InvalidInput
from hal.report import fingerprint

__all__ = ["check_ranks", "slowest", "telling"]


def _count(group: Any) -> int:
    """How many ranks there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    count = dist.get_world_size(group)
    if count < 1:
        raise InvalidInput(f"group is one of ranks without this one, which is {dist.get_rank()}")
    return count


def _numbers(group: Any) -> list[int]:
    """The numbers that the ranks of a group have among all."""
    return dist.get_process_group_ranks(group or dist.group.WORLD)


def _gathered(mine: Any, group: Any) -> list[Any]:
    """What each of several ranks gives, in order; a string is what went wrong.

    Raises:
        HalError: On every rank, if something did on one.
    """
    found: list[Any] = [None] * _count(group)
    dist.all_gather_object(found, mine, group=group)
    failed = [(r, e) for r, e in zip(_numbers(group), found, strict=True) if isinstance(e, str)]
    if failed:
        said = "".join(f"\n  rank {rank}: {error}" for rank, error in failed)
        raise HalError(f"not every rank can go on:{said}")
    return found


@contextlib.contextmanager
def telling(group: Any = None) -> Generator[None, None, None]:
    """Let the other ranks, which wait to compare what they have, fail with what fails in a block.

    Args:
        group: A process group of ``torch.distributed``; None for all ranks.

    Raises:
        HalError: What failed, as all ranks are told it; with one rank it is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if _count(group) > 1:
            _gathered(f"{type(error).__name__}: {error}", group)
        raise


def slowest(measure: Callable[[], list[float]], group: Any = None) -> list[float]:
    """Of each of some figures the largest that a rank measures.

    Raises:
        HalError: A rank has failed to.
    """
    with telling(group):
        mine = measure()
    found = [mine] if _count(group) == 1 else _gathered(mine, group)
    return [max(each) for each in zip(*found, strict=True)]


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
    with telling(group):
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
