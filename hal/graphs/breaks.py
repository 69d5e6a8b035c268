"""The operators between graphs: taken out of a capture, and run each time with what it left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hal import ops
from hal.form import Form
from hal.graphs.device import Maker, weak_ref_tensor
from hal.policy import Entry, breaker, entered, stated, uncaptured
from hal.select import CAPTURED
from hal.validate import as_tuple, validate
from hal.wanted import brought, wanted_in

__all__ = ["Break", "Kept", "Recording", "Warming", "capturing"]


@attrs.frozen
class _Given:
    """An argument that is the one of the call."""

    name: str


@attrs.frozen(eq=False)
class Break:
    """A call of an operator between two graphs.

    Attributes:
        form: The operator.
        flat: Its arguments: what the graph before computes, what is always there, and what the
            caller gives.
        targets: Where the graph after reads its results; empty where it writes into arguments.
        places: Those of them that were made for it, and lie apart from its arguments.
        entries: What was forced or preferred around the call.
    """

    form: Form
    flat: tuple[Any, ...]
    targets: tuple[Any, ...]
    places: tuple[Any, ...]
    entries: tuple[Entry, ...]

    def run(self, given: Mapping[str, Any]) -> None:
        """Call it, with the arguments that the caller gives this time."""
        flat = [given[v.name] if isinstance(v, _Given) else v for v in self.flat]
        forced = entered(self.entries) if self.entries else contextlib.nullcontext()
        with forced, wanted_in(self.places):
            results = self.form.op.call(getattr(ops, self.form.name), flat)
        if self.targets:
            brought(as_tuple(results), self.targets)


def _targets(form: Form, flat: Sequence[Any], out: Any) -> tuple[Any, ...]:
    """New memory for the results of a call, or what it was given for them."""
    promised = validate(form.op, flat)
    if out is not None:
        return as_tuple(out)
    where = next(value.device for value in flat if isinstance(value, Tensor))
    return tuple(
        t if t is None else torch.empty(t.shape, dtype=t.dtype, device=where) for t in promised
    )


def _returned(form: Form, flat: Sequence[Any], targets: tuple[Any, ...]) -> Any:
    """What a call returns whose results are in ``targets``."""
    found = tuple(flat[i] for i in form.op.overwritten) if form.inplace else targets
    return found[0] if form.op.results is None else found


class Kept:
    """Tensors without a share in their memory, until it is known whose memory lasts.

    Args:
        device: Where graphs keep what they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._storages: list[Any] = []

    def alias(self, value: Any) -> Any:
        """The same elements, for who does not hold their memory; itself if no graph keeps that."""
        if not isinstance(value, Tensor) or value.device != self._device:
            return value
        self._storages.append(StorageWeakRef(value.untyped_storage()))
        return weak_ref_tensor(value)

    def lasting(self) -> list[Any]:
        """The storages that somebody else still has, such as those of weights and caches."""
        found: list[Any] = [
            torch.UntypedStorage._new_with_weak_ptr(storage.cdata)  # pyright: ignore
            for storage in self._storages
        ]
        self._storages.clear()
        return [storage for storage in found if storage is not None]


class Recording:
    """The graphs of one run of a function, and the operators between them.

    Args:
        maker: What makes the graphs.
        given: The names of the caller's arguments by identity.
        kept: Whose memory lasts.
    """

    def __init__(self, maker: Maker, given: Mapping[int, str], kept: Kept) -> None:
        self.graphs: list[Any] = []
        self.breaks: list[Break] = []
        self._maker, self._given, self._kept = maker, given, kept
        self._under_way: Any = None

    def begin(self) -> None:
        """Capture what follows."""
        self._under_way = self._maker.begin()

    def end(self) -> None:
        """End the graph that is under way."""
        begun, self._under_way = self._under_way, None
        self.graphs.append(self._maker.end(begun))

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._under_way is not None:
            # What went wrong may have ended the capture, or made it invalid.
            with contextlib.suppress(RuntimeError):
                self.end()
        for graph in self.graphs:
            self._maker.drop(graph)

    def __call__(self, form: Form, flat: Sequence[Any], out: Any) -> Any:
        """Put an operator between two graphs."""
        # Before the graph ends: its memory is kept for the results, and apart from the arguments.
        targets = () if form.inplace else _targets(form, flat, out)
        self.end()
        kept = tuple(map(self._argument, flat))
        read = tuple(map(self._kept.alias, targets))
        self.breaks.append(Break(form, kept, read, read if out is None else (), stated()))
        self.begin()
        return out if out is not None else _returned(form, flat, targets)

    def _argument(self, value: Any) -> Any:
        name = self._given.get(id(value))
        return self._kept.alias(value) if name is None else _Given(name)


class Warming:
    """Calls of operators at which a capture will break.

    Args:
        given: The names of the caller's arguments by identity.
        runs: Whether to run them; what is captured for other sizes than the example's has
            arguments beside it that do not fit.
        changes: Called with the name of each that works in place, and with what it changes.
    """

    def __init__(
        self,
        given: Mapping[int, str],
        runs: bool,
        changes: Callable[[str, list[Any]], None] | None = None,
    ) -> None:
        self.count, self.taken = 0, set[str]()
        self._given, self._runs, self._changes = given, runs, changes

    def __call__(self, form: Form, flat: Sequence[Any], out: Any) -> Any:
        """Run it, or return zeros."""
        self.count += 1
        self.taken |= {self._given[id(v)] for v in flat if id(v) in self._given}
        if form.inplace and self._changes:
            self._changes(form.name, [flat[i] for i in form.op.overwritten])
        if self._runs:
            with uncaptured():
                function = getattr(ops, form.name)
                given = {} if out is None else {"out": out}
                return form.op.call(lambda *a, **k: function(*a, **k, **given), flat)
        targets = () if form.inplace else _targets(form, flat, out)
        for target in targets:
            if target is not None:
                target.zero_()
        return out if out is not None else _returned(form, flat, targets)


@contextlib.contextmanager
def capturing(at: Sequence[str], taker: Any) -> Generator[None, None, None]:
    """Take kernels that may be captured, and hand calls of the ops in ``at`` to ``taker``."""
    token = breaker.set(taker)
    try:
        with entered([CAPTURED, *(Entry("break", name, None) for name in at)]):
            yield
    finally:
        breaker.reset(token)
