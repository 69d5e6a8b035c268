"""What the caller forces (``hal.use``) and prefers (``hal.prefer``), per thread and per async task."""

from __future__ import annotations

import contextvars
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import attrs
from torch.utils._contextlib import (
    _DecoratorContextManager,  # pyright: ignore[reportPrivateUsage]
)

from hal.errors import InvalidInput
from hal.op import OPS
from hal.plugins import registry
from hal.settings import settings

__all__ = ["Policy", "active", "current", "entered", "op_name", "prefer", "use"]


@attrs.frozen
class Entry:
    """One active statement: ``kind`` is use, prefer, trait or trace; ``op`` None stands for every op."""

    kind: str
    op: str | None
    value: Any


@attrs.frozen(eq=False)
class Policy:
    """All active statements, outermost first. Equal statements share one policy, which plans are keyed by."""

    entries: tuple[Entry, ...]

    def _values(self, kind: str, op: str) -> list[Any]:
        return [e.value for e in reversed(self.entries) if e.kind == kind and e.op in (None, op)]

    def forced(self, op: str) -> tuple[str, ...]:
        """The only backends or kernels allowed for ``op``, best first; empty when nothing is forced."""
        return next(iter(self._values("use", op)), ())

    def preferred(self, op: str) -> tuple[str, ...]:
        """The backends or kernels to try first for ``op``, best first."""
        return tuple(spec for specs in self._values("prefer", op) for spec in specs)

    def traits(self) -> tuple[str, ...]:
        """The traits that a kernel must have."""
        return tuple(e.value for e in self.entries if e.kind == "trait")

    def traces(self) -> list[list[Any]]:
        """The lists that record each call."""
        return [e.value.records for e in self.entries if e.kind == "trace"]


active: contextvars.ContextVar[Policy | None] = contextvars.ContextVar("hal_policy", default=None)
"""The policy of this thread or task; None where only the environment has a say."""


@functools.lru_cache(maxsize=256)
def _policy(entries: tuple[Entry, ...]) -> Policy:
    return Policy(entries)


@functools.cache
def _environment() -> Policy:
    stated = settings()
    entries = _entries("prefer", stated.prefer) + _entries("use", stated.use)
    return _policy(entries)


def current() -> Policy:
    """The policy that holds here."""
    return active.get() or _environment()


def op_name(op: object) -> str:
    """The name of a declared op, given as a name or as a function of ``hal.ops``."""
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name in OPS or (name.endswith("_") and OPS.get(name[:-1]) and OPS[name[:-1]].inplace):
        return name if name in OPS else name[:-1]
    near = difflib.get_close_matches(name, OPS, n=3) or list(OPS)
    raise InvalidInput(f"there is no op {name!r}; did you mean {' or '.join(near)}?")


def _checked(spec: str) -> str:
    """Require ``spec`` to name a discovered backend, or a kernel as ``backend:kernel``."""
    known = [plugin.name for plugin in registry().plugins]
    if spec.partition(":")[0] not in known:
        raise InvalidInput(f"there is no backend {spec.partition(':')[0]!r}; found {', '.join(known)}")
    return spec


def _entries(kind: str, text: str) -> tuple[Entry, ...]:
    """Parse ``native``, ``triton,native`` or ``rms_norm=triton,softmax=native``."""
    wanted: dict[str | None, list[str]] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        op, equals, spec = item.rpartition("=")
        name = op_name(op.strip()) if equals else None
        wanted.setdefault(name, []).append(_checked(spec.strip()))
    # What is said of one op comes last, and so wins over what is said of all.
    ordered = sorted(wanted.items(), key=lambda item: item[0] is not None)
    return tuple(Entry(kind, op, tuple(specs)) for op, specs in ordered)


class entered(_DecoratorContextManager):  # noqa: N801  # A context manager reads as a verb.
    """Hold some statements during a block, or during each call of a decorated function or generator."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def clone(self) -> entered:
        """A fresh manager for each call of a decorated function."""
        return entered(self.entries)

    def __enter__(self) -> None:
        active.set(_interned(current().entries + self.entries))

    def __exit__(self, *_: object) -> None:
        # Take back just these: a suspended generator may leave out of turn, or in another context.
        left = list(current().entries)
        for entry in self.entries:
            if entry in left:
                del left[len(left) - 1 - left[::-1].index(entry)]
        stated = tuple(left)
        active.set(None if stated == _environment().entries else _interned(stated))


def _interned(entries: tuple[Entry, ...]) -> Policy:
    return Policy(entries) if any(e.kind == "trace" for e in entries) else _policy(entries)


def _statement(kind: str, specs: tuple[str, ...], by_op: dict[str, str]) -> entered:
    if not specs and not by_op:
        raise InvalidInput(f"{kind}() needs a backend, as in hal.{kind}('native')")
    text = [*specs, *(f"{op}={spec}" for op, specs in by_op.items() for spec in specs.split(","))]
    return entered(_entries(kind, ",".join(text)))


def use(*backends: str, **by_op: str) -> entered:
    """Force backends, for all ops or for some, during a ``with`` block or a decorated function.

    Strict: where none of the named can serve a call, the call raises ``NoKernel`` with every reason. Holds in
    this thread or async task only; nests, the innermost statement on an op wins. A ``with`` inside a generator
    also holds in its caller while the generator is suspended; decorate the generator function to avoid that.

    Args:
        backends: Names such as ``"native"``, or one kernel of a backend as ``"cuda:flashinfer"``; best first.
        by_op: The same for one op, as in ``rms_norm="triton"``; several names are separated by commas.

    Raises:
        InvalidInput: A name that is not an op or not a discovered backend.

    Example:
        >>> with hal.use("native"):
        ...     hal.explain("softmax", torch.zeros(1, 2)).chosen.backend
        'native'
    """
    return _statement("use", backends, by_op)


def prefer(*backends: str, **by_op: str) -> entered:
    """Put backends first, for all ops or for some; where they cannot serve, the usual order goes on.

    Takes what ``hal.use`` takes and holds as long.

    Example:
        >>> with hal.prefer(softmax="native"):
        ...     hal.ops.softmax(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    return _statement("prefer", backends, by_op)
