"""The backends of this process: loading that cannot take the host down, and asking their hooks."""

from __future__ import annotations

import contextlib
import os
import reprlib
import threading
import warnings
from collections.abc import Callable, Generator
from typing import Any, TypeGuard, TypeVar

import attrs
import torch

from hal.compat import registrations, unchanged
from hal.discovery import DISTRIBUTION, REFERENCE, BackendInfo, Plugin, State, discovered
from hal.errors import BackendError
from hal.hookspecs import API, Backend, implemented
from hal.repairs import Repair, fits_torch, mend, take_back
from hal.settings import settings

__all__ = [
    "DISTRIBUTION",
    "REFERENCE",
    "BackendInfo",
    "Plugin",
    "Registry",
    "State",
    "cause",
    "is_a",
    "lock",
    "registry",
    "repair",
    "shown",
]

Kind = TypeVar("Kind")
Step = Callable[[Repair, str], str]
"""What is done with a repair in some state, and the state it is in then."""


@attrs.frozen
class Outcome:
    """What came of running a backend's code: its answer, or what is held against it."""

    answer: Any = None
    error: str | None = None
    changes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


def _described(describe: Callable[[Any], str], value: object, otherwise: str) -> str:
    """What ``describe`` says; an object of a backend may fail to describe itself."""
    try:
        return describe(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001
        return otherwise


def _text(error: BaseException) -> str:
    text, words = str(error), error.args
    # attrs adds the objects concerned, and Python then shows all arguments as a tuple.
    return str(words[0]) if len(words) > 1 and text == str(words) else text


def cause(error: BaseException) -> str:
    """The error in one paragraph."""
    text = _described(_text, error, "which has no text")
    return f"{type(error).__name__}: {text}".strip().rstrip(":")


def shown(value: object) -> str:
    """What a backend answered, cut short."""
    return _described(reprlib.repr, value, f"a {type(value).__name__}")


def is_a(value: object, kind: type[Kind] | tuple[type[Kind], ...]) -> TypeGuard[Kind]:
    """Whether a backend's answer is a ``kind``; an object may even fail to name its class."""
    return issubclass(type(value), kind)


def _run(plugin: Plugin, function: Callable[..., Any], *args: object) -> Outcome:
    """Run code of a backend, which can neither end the host nor change torch's settings."""
    answer, error = None, None
    with registrations() as overrides, unchanged() as changes:
        try:
            answer = function(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # noqa: BLE001  # SystemExit must not end the host.
            plugin.error, error = raised, cause(raised)
    return Outcome(answer, error, tuple(changes), tuple(overrides))


def _admit(plugin: Plugin) -> str | None:
    """Import it and take its hooks, or say why it does not fit."""
    module = plugin.entry.load()
    # Its hooks so far would pass for all it has.
    if getattr(getattr(module, "__spec__", None), "_initializing", False):
        raise BackendError(f"{plugin.entry.value} uses hal while it is being imported")
    backend = getattr(module, "backend", None)
    if not isinstance(backend, Backend):
        return f"{plugin.entry.value} has no hal.Backend named 'backend'"
    if backend.api != API:
        return f"written for plugin API {backend.api}; this hal has {API}"
    if not fits_torch(backend.torch):
        return f"supports torch {backend.torch}; this is {torch.__version__}"
    plugin.backend, plugin.hooks = backend, implemented(plugin.name, module)
    return None


# Held while backends are loaded or asked, and across a fork, so that a child finds no half of it.
lock = threading.RLock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


class Registry:
    """The backends of this process."""

    def __init__(self) -> None:
        """Discover from metadata; nothing is imported."""
        self.lock = lock
        self.plugins = discovered()
        self._open: list[tuple[object, ...]] = []
        self._told = False

    def settle(self) -> list[Plugin]:
        """Load what is discovered and not refused, once; return all backends, loaded or not."""
        with self.lock:
            for plugin in self.plugins:
                if plugin.state is State.DISCOVERED:
                    self._load(plugin)
            if not self._told and not settings().strict and self.troubles():
                self._told = True
                warnings.warn(f"not every backend can be used:{self.troubles()}", stacklevel=2)
        return self.plugins

    def load(self) -> list[Plugin]:
        """The loaded backends by name.

        Raises:
            BackendError: HAL_STRICT is set, and something went wrong with a backend.
        """
        plugins = self.settle()
        self._insist()
        return [plugin for plugin in plugins if plugin.state is State.LOADED]

    @contextlib.contextmanager
    def _asking(self, plugin: Plugin, question: str, *args: object) -> Generator[None, None, None]:
        """Hold the lock; refuse to ask what is being asked, which would never end."""
        with self.lock:
            if (plugin, question, *args) in self._open:
                raise BackendError(
                    f"hal was asked, in {question} of backend {plugin.name}, for what needs "
                    "the result of just that; kernels and the hooks of other ops may use hal"
                )
            self._open.append((plugin, question, *args))
            try:
                yield
            finally:
                self._open.pop()

    def _load(self, plugin: Plugin) -> None:
        with self._asking(plugin, "the import"):
            outcome = _run(plugin, _admit, plugin)
            faults = [f"while loading it {each}" for each in outcome.changes + outcome.overrides]
            faults = [outcome.error, *faults] if outcome.error else faults
            if faults:
                plugin.refuse(State.FAILED, "; ".join(faults))
            elif outcome.answer:
                plugin.refuse(State.INCOMPATIBLE, outcome.answer)
            else:
                plugin.wanted = self.collect(plugin, "hal_repairs", Repair)
                self._repair(plugin)
                plugin.state = State.LOADED

    def _repair(self, plugin: Plugin, step: Step = mend, but: str | None = None) -> None:
        # Asked each time: the vendor's package may be imported after hal was first used.
        for wanted in plugin.wanted if plugin.at_home else ():
            before = plugin.repairs.get(wanted.name, "")
            if before == but:
                continue
            with self._asking(plugin, "hal_repairs"):
                outcome = _run(plugin, step, wanted, before)
            faults = [outcome.error, *outcome.changes] if outcome.error else outcome.changes
            plugin.repairs[wanted.name] = outcome.answer or before
            if faults:
                plugin.repairs[wanted.name] = f"failed: {'; '.join(faults)}"
                self.problem(plugin, f"repair {wanted.name}: {'; '.join(faults)}")

    def repair(self, step: Step = mend, but: str | None = None) -> dict[str, str]:
        """Take a step with each repair but those in one state; the state of each by its name."""
        for plugin in self.plugins:
            self._repair(plugin, step, but)
        return {name: state for plugin in self.plugins for name, state in plugin.repairs.items()}

    def ask(self, plugin: Plugin, hook: str, *args: object) -> Any:
        """Call one hook of one backend by position; None, with a problem on record, if it fails.

        What it answered after changing torch is not used either.
        """
        if hook not in plugin.hooks:
            return None
        with self._asking(plugin, hook, *args):
            outcome = _run(plugin, plugin.hooks[hook], *args)
        faults = [f"raised {outcome.error}"] if outcome.error else []
        faults += outcome.changes + outcome.overrides
        for fault in faults:
            self.problem(plugin, f"{hook} {fault}")
        return None if faults else outcome.answer

    def collect(self, plugin: Plugin, hook: str, kind: type[Kind], *args: object) -> list[Kind]:
        """Ask for a list; what is not a ``kind`` is left out, with a problem on record."""
        return self.members(plugin, hook, kind, self.ask(plugin, hook, *args))

    def members(self, plugin: Plugin, hook: str, kind: type[Kind], answer: Any) -> list[Kind]:
        """The members of a hook's answer that are a ``kind``."""
        several = is_a(answer, (list, tuple, set, frozenset))
        given = answer if several else [] if answer is None else [answer]
        for each in given:
            if not is_a(each, kind):
                found = shown(each)
                self.problem(plugin, f"{hook} answered with {found}, not a hal.{kind.__name__}")
        return [each for each in given if is_a(each, kind)]

    def problem(self, plugin: Plugin, problem: str) -> None:
        """Put on record, once, what is wrong with a backend; an error under HAL_STRICT."""
        with self.lock:
            new = problem not in plugin.problems
            if new:
                plugin.problems.append(problem)
        if new and not settings().strict:
            warnings.warn(f"backend {plugin.name}: {problem}", stacklevel=2)
        self._insist()

    def _insist(self) -> None:
        # Not within a backend's code, which would be blamed for it.
        if settings().strict and not self._open and self.troubles():
            first = next((plugin.error for plugin in self.plugins if plugin.error), None)
            raise BackendError(f"HAL_STRICT is set:{self.troubles()}") from first

    def troubles(self, told: str = "") -> str:
        """What went wrong with backends and is not ``told`` yet, as lines to append to an error."""
        broken = (State.INCOMPATIBLE, State.FAILED)
        out = [plugin for plugin in self.plugins if plugin.state in broken]
        lines = [(plugin.name, f" is {plugin.state.value}", plugin.reason) for plugin in out]
        lines += [(p.name, "", problem) for p in self.plugins for problem in p.problems]
        new = [(name, state, text) for name, state, text in lines if text and text not in told]
        return "".join(f"\n  backend {name}{state}: {text}" for name, state, text in new)


_registry: Registry | None = None


def registry() -> Registry:
    """The one registry, made at first use."""
    global _registry
    if _registry is None:
        with lock:
            if _registry is None:
                _registry = Registry()
    return _registry


def repair(*, undo: bool = False) -> dict[str, str]:
    """Mend torch where a backend's devices need it, or take back what was mended.

    It is done besides when backends are loaded, for ``hal.report()``, and when ``torch.compile``
    comes to an operator of hal; what was undone is left so there. Call it where a module that
    breaks torch is imported later than that, and a graph without an operator of hal comes first.

    Args:
        undo: Take back what is applied and can be undone; until the next call it stays so.

    Returns:
        The state of each repair by its name, as ``hal.report().repairs`` has it.

    Raises:
        BackendError: HAL_STRICT is set, and a repair failed or a backend cannot be used.

    Example:
        >>> [name for name, state in hal.repair().items() if state.startswith("failed")]
        []
    """
    registry().load()
    return registry().repair(take_back if undo else mend)
