"""What the caller forces (``hal.use``) and prefers (``hal.prefer``), per thread and async task."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import functools
import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import attrs
from torch.utils._contextlib import (
    _DecoratorContextManager,  # pyright: ignore[reportPrivateUsage]
)

from hal import ops
from hal.compat import untraced
from hal.errors import InvalidInput, InvalidType
from hal.op import OPS
from hal.plugins import REFERENCE, registry
from hal.settings import settings

__all__ = [
    "Policy",
    "active",
    "backend_named",
    "breaker",
    "current",
    "entered",
    "op_name",
    "op_names",
    "prefer",
    "stated",
    "uncaptured",
    "use",
]


@attrs.frozen
class Entry:
    """One statement: ``kind`` is use, prefer, trait, trace or break; ``op`` None is every op."""

    kind: str
    op: str | None
    value: Any


@attrs.frozen(eq=False)
class Policy:
    """All active statements, outermost first; equal ones share one policy, which plans key on."""

    entries: tuple[Entry, ...]
    traces: tuple[list[Any], ...] = attrs.field(init=False)
    """The lists that record each call."""
    broken: frozenset[str | None] = attrs.field(init=False)
    """The ops whose calls go to ``breaker``."""

    @traces.default  # pyright: ignore[reportUntypedFunctionDecorator, reportAttributeAccessIssue]
    def _traces(self) -> tuple[list[Any], ...]:
        return tuple(e.value.records for e in self.entries if e.kind == "trace")

    @broken.default  # pyright: ignore[reportUntypedFunctionDecorator, reportAttributeAccessIssue]
    def _broken(self) -> frozenset[str | None]:
        return frozenset(e.op for e in self.entries if e.kind == "break")

    def _values(self, kind: str, op: str) -> list[Any]:
        return [e.value for e in reversed(self.entries) if e.kind == kind and e.op in (None, op)]

    def forced(self, op: str) -> tuple[str, ...]:
        """The only backends or kernels allowed for ``op``, best first; empty if none is forced."""
        return next(iter(self._values("use", op)), ())

    def preferred(self, op: str) -> tuple[str, ...]:
        """The backends or kernels to try first for ``op``, best first."""
        return tuple(spec for specs in self._values("prefer", op) for spec in specs)

    def traits(self) -> tuple[str, ...]:
        """The traits that a kernel must have."""
        return tuple(e.value for e in self.entries if e.kind == "trait")


active: contextvars.ContextVar[Policy | None] = contextvars.ContextVar("hal_policy", default=None)
"""The policy of this thread or task; None where only the environment has a say."""

breaker: contextvars.ContextVar[Callable[[Any, Sequence[Any], Any], Any] | None]
breaker = contextvars.ContextVar("hal_breaker", default=None)
"""What takes the calls of ops at which a capture is broken: form, arguments, ``out``."""


@functools.lru_cache(maxsize=256)
def _policy(entries: tuple[Entry, ...]) -> Policy:
    return Policy(entries)


@functools.cache
def _environment() -> Policy:
    stated = settings()
    read: tuple[Entry, ...] = ()
    for kind, text in ("prefer", stated.prefer), ("use", stated.use):
        try:
            read += _entries(kind, text)
        except InvalidInput as error:
            raise InvalidInput(f"HAL_{kind.upper()}={text}: {error}") from None
    return _policy(read)


def current() -> Policy:
    """The policy that holds here."""
    return active.get() or _environment()


def op_name(op: object) -> str:
    """The name of a declared op, given as a name or as a function of ``hal.ops``."""
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    if not isinstance(op, str) and not (callable(op) and vars(ops).get(name) is op):
        raise InvalidType(f"expected the name of an op or a function of hal.ops, not {op!r}")
    if name in OPS or (name.endswith("_") and OPS.get(name[:-1]) and OPS[name[:-1]].inplace):
        return name if name in OPS else name[:-1]
    near = difflib.get_close_matches(name, OPS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(OPS)}"
    raise InvalidInput(f"there is no op {name!r}; {hint}")


def op_names(given: object) -> list[str]:
    """The names of some ops, each once, or of a single one; of all without any."""
    if given is None:
        return list(OPS)
    # A name is a sequence too, of letters.
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return list(dict.fromkeys(map(op_name, several)))


def backend_named(name: str) -> str:
    """Require ``name`` to be that of a discovered backend."""
    known = sorted({plugin.name for plugin in registry().plugins})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"found {', '.join(known)}"
        raise InvalidInput(f"there is no backend {name!r}; {hint}")
    return name


def _checked(spec: str) -> str:
    """Require ``spec`` to name a discovered backend, or a kernel as ``backend:kernel``."""
    backend, colon, kernel = spec.partition(":")
    backend_named(backend)
    if colon and not kernel:
        raise InvalidInput(f"{spec!r} names no kernel; write {backend!r} or '{backend}:kernel'")
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


_held: contextvars.ContextVar[tuple[entered, ...]] = contextvars.ContextVar("hal_held", default=())
"""What was entered and not left here, outermost first; ``active`` follows from it."""


class entered(_DecoratorContextManager):  # noqa: N801  # A context manager reads as a verb.
    """Hold some statements in a block, or in each call of a decorated function or generator."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def clone(self) -> entered:
        """A fresh manager for each call of a decorated function."""
        return entered(self.entries)

    def __call__(self, function: Any) -> Any:
        """Decorate a function, a generator function or a coroutine function."""
        if inspect.isasyncgenfunction(function):
            # Nothing tells when it is suspended, so its caller would be under the statement too.
            raise InvalidType("an async generator cannot be decorated; use a with block inside it")
        if inspect.isclass(function) or not callable(function):
            raise InvalidType(f"expected a function to decorate, not {function!r}")
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        async def held(*args: Any, **kwargs: Any) -> Any:
            with self.clone():
                return await function(*args, **kwargs)

        return held

    def __enter__(self) -> None:
        _hold((*_held.get(), self))

    def __exit__(self, *_: object) -> None:
        # Just this one: a suspended generator may leave out of turn, or in another context.
        held = list(_held.get())
        for i in reversed(range(len(held))):
            if held[i] is self:
                del held[i]
                break
        _hold(tuple(held))


def _hold(held: tuple[entered, ...]) -> None:
    entries = tuple(entry for statement in held for entry in statement.entries)
    _held.set(held)
    active.set(_interned(_environment().entries + entries) if held else None)


# What holds in a capture alone, where hal.graphs states it.
_CAPTURE = ("trait", "break")


def stated() -> tuple[Entry, ...]:
    """What is forced and preferred here, beyond the environment."""
    before = len(_environment().entries)
    return tuple(e for e in current().entries[before:] if e.kind in ("use", "prefer"))


@contextlib.contextmanager
def uncaptured() -> Generator[None, None, None]:
    """Take back in a block what is stated for a capture, and nothing else."""
    kept = tuple(e for e in current().entries if e.kind not in _CAPTURE)
    token = active.set(_interned(kept))
    try:
        yield
    finally:
        active.reset(token)


def _interned(entries: tuple[Entry, ...]) -> Policy:
    return Policy(entries) if any(e.kind == "trace" for e in entries) else _policy(entries)


# Compiled code ends here in any case; Dynamo of torch 2.14 fails on the attrs classes inside.
@untraced
def _statement(kind: str, specs: tuple[str, ...], by_op: dict[str, str]) -> entered:
    for given in (*specs, *by_op.values()):
        if not isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidType(f"{kind}() takes names of backends, not {given!r}")
    text = [*specs, *(f"{op}={spec}" for op, text in by_op.items() for spec in text.split(","))]
    entries = _entries(kind, ",".join(text))
    if not entries:
        raise InvalidInput(f"{kind}() needs a backend, as in hal.{kind}('{REFERENCE}')")
    return entered(entries)


def use(*backends: str, **by_op: str) -> entered:
    """Force backends, for all ops or for some, during a ``with`` block or a decorated function.

    Strict: where none of the named can serve a call, the call raises ``NoKernel`` with every
    reason. Holds in this thread or async task only; nests, the innermost statement on an op wins.
    A ``with`` inside a generator also holds in its caller while the generator is suspended;
    decorate the generator function to avoid that.

    Args:
        backends: Names such as ``"native"``, or one kernel of a backend as
            ``"cuda:flashinfer"``; best first. A backend is what it chooses itself: a kernel that
            ``hal.explain`` says is there on request only is named in full.
        by_op: The same for one op, as in ``rms_norm="triton"``; several names are separated by
            commas.

    Raises:
        InvalidInput: A name that is not an op or not a discovered backend.

    Example:
        >>> with hal.use("native"):
        ...     hal.explain("softmax", torch.zeros(1, 2)).chosen.backend
        'native'
    """
    return _statement("use", backends, by_op)


def prefer(*backends: str, **by_op: str) -> entered:
    """Put backends first, for all ops or some; where they cannot serve, the usual order goes on.

    Takes what ``hal.use`` takes and holds as long.

    Example:
        >>> with hal.prefer(softmax="native"):
        ...     hal.ops.softmax(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    return _statement("prefer", backends, by_op)
