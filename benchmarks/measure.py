"""Holding kernels against the reference, and timing those that are right."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

import hal
from case import Case
from failures import Failures, attempt
from judges import LIMIT
from peers import Peer
from timing import Call, Graph, Time, copies, copy_time, eager, in_turn

AUTO = "hal"
"""The provider that hal itself chooses among its backends."""

CASE = "case"
"""In place of a provider among what is wrong: the reference, or the arguments."""


@attrs.define
class Row(Failures):
    """What was found for a case.

    Attributes:
        case: The case.
        ours: The providers that are of hal.
        notes: By provider what it does instead of the op.
        judged: By provider how its results were judged.
        times: By provider its time in a graph.
        host: By provider microseconds of the host for a call.
        served: The backend and kernel that hal chooses.
        copy: The time of a copy of as many bytes.
    """

    case: Case
    ours: list[str]
    notes: dict[str, str] = attrs.field(factory=dict)
    judged: dict[str, str] = attrs.field(factory=dict)
    times: dict[str, Time] = attrs.field(factory=dict)
    host: dict[str, float] = attrs.field(factory=dict)
    served: str = ""
    copy: Time | None = None

    @property
    def red(self) -> bool:
        """Whether something of ours is wrong."""
        return any(name in self.wrong for name in (*self.ours, CASE))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        case = self.case
        known = {"family": case.family, "op": case.op, "shape": case.shape, "rows": case.rows}
        return known | {
            "bytes": case.moved,
            "flops": case.flops,
            "ours": self.ours,
            "served": self.served,
            "copy_us": self.copy.us if self.copy else None,
            "us": {name: time.us for name, time in self.times.items()},
            "spread_us": {name: time.spread for name, time in self.times.items()},
            "host_us": self.host,
            "compared": self.judged,
            "notes": self.notes,
            "refused": self.refused,
            "wrong": self.wrong,
        }


def by_hal(op: str, backend: str) -> Callable[..., Any]:
    """The op as the backend serves it, or as hal does by itself."""
    form = getattr(hal.ops, op)
    if backend == AUTO:
        return form

    def call(*args: Any, **kwargs: Any) -> Any:
        with hal.use(backend):
            return form(*args, **kwargs)

    return call


def size(values: Sequence[Any]) -> int:
    return sum(v.numel() * v.itemsize for v in values if isinstance(v, Tensor))


def reference(case: Case, device: torch.device) -> Any:
    torch.manual_seed(0)
    args, kwargs = case.make(device)
    return (case.reference or by_hal(case.op, "native"))(*args, **kwargs)


def checked(row: Row, provider: Peer, want: Any, device: torch.device) -> bool:
    """Whether a provider's results are right, as far as they can be compared."""
    torch.manual_seed(0)
    args, kwargs = row.case.make(device)
    got = provider.bound(args, kwargs)()
    if provider.note:
        row.notes[provider.name] = provider.note
        return True
    judge = provider.judge or row.case.judge
    row.judged[provider.name] = judge.__name__
    off = judge(got, want, args, kwargs)
    if not off < LIMIT:
        row.wrong[provider.name] = f"{judge.__name__}: off by {off:.1e}"
    return off < LIMIT


def eager_call(provider: Peer, row: Row, device: torch.device) -> float:
    """Of hal without what it takes to enter a block of ``hal.use``."""
    args, kwargs = row.case.make(device)
    if provider.name not in row.ours or provider.name == AUTO:
        return eager(provider.bound(args, kwargs))
    with hal.use(provider.name):
        return eager(functools.partial(getattr(hal.ops, row.case.op), *args, **kwargs))


def prepared(provider: Peer, sets: Sequence[Any]) -> Graph:
    """The provider's calls of all sets of arguments, in a graph."""
    calls: list[Call] = [provider.bound(*arguments) for arguments in sets]
    return Graph(calls)


def right(row: Row, providers: Sequence[Peer], device: torch.device) -> list[Peer]:
    """Those providers whose results are the reference's; the row has what became of the others."""
    torch._dynamo.reset()  # A peer is compiled for each shape; past eight, torch gives up.
    want = attempt(row, CASE, lambda: reference(row.case, device))
    if want is None:
        return []

    def is_right(provider: Peer) -> bool:
        return bool(attempt(row, provider.name, lambda: checked(row, provider, want, device)))

    return [provider for provider in providers if is_right(provider)]


def timed(row: Row, providers: Sequence[Peer], cold: int, device: torch.device) -> None:
    """Add the times of the providers and of a copy, all with the same sets of arguments."""
    case = row.case
    args, kwargs = case.make(device)
    row.served = str(hal.explain(case.op, *args, **kwargs).chosen)
    # Of many experts only the chosen ones are read: they have to leave the cache, not all.
    count = copies(min(size((*args, *kwargs.values())), case.moved), cold)
    sets = [(args, kwargs), *(case.make(device) for _ in range(count - 1))]

    def graph(provider: Peer) -> Graph | None:
        return attempt(row, provider.name, lambda: prepared(provider, sets))

    graphs = {provider.name: graph(provider) for provider in providers}
    row.times = in_turn({name: each for name, each in graphs.items() if each})
    row.copy = copy_time(case.moved, cold, device)


def measured(
    case: Case, backends: Sequence[str], peers: Sequence[Peer], cold: int, device: torch.device
) -> Row:
    """Time all providers that are right; for a single row the host's part, too."""
    row = Row(case, list(backends))
    ours = [Peer(name, case.op, by_hal(case.op, name)) for name in backends]
    providers = right(row, (*ours, *peers), device)
    if providers:
        attempt(row, CASE, lambda: timed(row, providers, cold, device))
    for each in providers if case.rows == 1 else ():
        found = attempt(row, each.name, lambda each=each: eager_call(each, row, device))
        row.host |= {} if found is None else {each.name: found}
    return row


def release() -> None:
    """Give memory back before the next case."""
    gc.collect()
    torch.cuda.empty_cache()
