"""Backends: discovery from metadata, loading that cannot take the host down, and what became of each."""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pluggy
import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from hal import hookspecs
from hal.compat import Repair, repair, torch_version
from hal.errors import BackendError
from hal.hookspecs import API, Backend
from hal.settings import Settings, settings
from hal.version import __version__

__all__ = ["DISTRIBUTION", "REFERENCE", "BackendInfo", "Plugin", "Registry", "State", "registry"]

GROUP = "hal.backends"
DISTRIBUTION = "torch-hal"
# The reference is the one backend that hal must know by name: it defines the results, and HAL_SAFE keeps it alone.
REFERENCE = "native"


class State(enum.Enum):
    """How far a backend came."""

    DISCOVERED = "discovered"
    DISABLED = "disabled"
    INCOMPATIBLE = "incompatible"
    FAILED = "failed"
    LOADED = "loaded"


@attrs.frozen
class BackendInfo:
    """A discovered backend, as ``hal.backends()`` lists it."""

    name: str
    distribution: str
    version: str
    state: str
    reason: str | None

    def to_dict(self) -> dict[str, str | None]:
        """The fields as plain data."""
        return attrs.asdict(self)


@attrs.define(eq=False)
class Plugin:
    """A backend from discovery on: its entry point, its state and, once loaded, its hooks."""

    entry: importlib.metadata.EntryPoint
    distribution: str
    version: str
    state: State = State.DISCOVERED
    reason: str | None = None
    backend: Backend | None = None
    hooks: pluggy.PluginManager | None = None
    repairs: dict[str, str] = attrs.Factory(dict)
    problems: list[str] = attrs.Factory(list)

    @property
    def name(self) -> str:
        """The name of the entry point, which is the name of the backend."""
        return self.entry.name

    @property
    def ours(self) -> bool:
        """Whether hal ships it."""
        return canonicalize_name(self.distribution) == DISTRIBUTION

    def info(self) -> BackendInfo:
        """The public record."""
        return BackendInfo(self.name, self.distribution, self.version, self.state.value, self.reason)

    def serves(self, device_type: str) -> bool:
        """Whether it may be asked about a device of this type."""
        if self.state is not State.LOADED or self.backend is None:
            return False
        return self.backend.devices is None or device_type in self.backend.devices

    def refuse(self, state: State, reason: str) -> None:
        """Set it aside; under HAL_STRICT anything but a user's own choice is an error."""
        self.state, self.reason, self.hooks = state, reason, None
        if settings().strict and state is not State.DISABLED:
            raise BackendError(f"backend {self.name} ({self.distribution}): {reason}; HAL_STRICT is set")


def _gate(plugin: Plugin, rivals: list[Plugin], limits: Settings) -> tuple[State, str] | None:
    """Decide from metadata and settings, before any import, whether ``plugin`` may be loaded.

    ``rivals`` are the other backends of the same name that are not denied.
    """
    names = {plugin.name, plugin.distribution}
    if not plugin.ours and (plugin.name == REFERENCE or any(rival.ours for rival in rivals)):
        return State.INCOMPATIBLE, f"the name {plugin.name} is reserved for {DISTRIBUTION}"
    if names & limits.disable:
        return State.DISABLED, "denied by HAL_DISABLE"
    if limits.safe and plugin.name != REFERENCE:
        return State.DISABLED, "HAL_SAFE is set"
    if limits.plugins is not None and plugin.name != REFERENCE and not names & limits.plugins:
        return State.DISABLED, "not in HAL_PLUGINS"
    if rivals and not plugin.ours:
        others = ", ".join(rival.distribution for rival in rivals)
        return State.INCOMPATIBLE, f"{others} claims the same name; deny one of them in HAL_DISABLE"
    return _unmet_requirement(plugin)


def _unmet_requirement(plugin: Plugin) -> tuple[State, str] | None:
    """Whether the distribution asks for another version of hal."""
    for text in (plugin.entry.dist.requires if plugin.entry.dist else None) or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            return State.INCOMPATIBLE, f"its metadata has an invalid requirement: {text}"
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if canonicalize_name(wanted.name) != DISTRIBUTION or not applies:
            continue
        if not wanted.specifier.contains(__version__, prereleases=True):
            return State.INCOMPATIBLE, f"it requires {text}; this is {DISTRIBUTION} {__version__}"
    return None


def _state_of_torch() -> dict[str, object]:
    """The process-wide settings of torch that no backend may change by being loaded."""
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "random seed": torch.initial_seed(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


_RESTORE = {
    "default dtype": torch.set_default_dtype,
    "grad mode": torch.set_grad_enabled,
    "random seed": torch.manual_seed,
    "deterministic mode": torch.use_deterministic_algorithms,
}


def _foreign_overrides(before: set[str]) -> list[str]:
    """Python kernels registered since ``before`` for operators that belong to torch or to hal."""
    added = torch.library._impls - before  # pyright: ignore[reportPrivateUsage]
    private = ("PrivateUse1", "AutogradPrivateUse1")
    return sorted(
        key
        for key in added
        if key.split("/")[0] in ("aten", "prims", "hal") and key.split("/")[-1] not in private
    )


@contextlib.contextmanager
def _unchanged_torch() -> Iterator[list[str]]:
    """Yield a list that names, after the block, what the block changed in torch; undo what can be undone."""
    changes: list[str] = []
    before, implemented = _state_of_torch(), set(torch.library._impls)  # pyright: ignore[reportPrivateUsage]
    try:
        yield changes
    finally:
        after = _state_of_torch()
        for name, value in before.items():
            if after[name] != value:
                changes.append(f"changed torch's {name} from {value} to {after[name]}")
                _RESTORE[name](value)
        changes.extend(f"overrode {key}" for key in _foreign_overrides(implemented))


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":")


class Registry:
    """The backends of this process."""

    def __init__(self) -> None:
        """Discover from metadata; nothing is imported."""
        self.lock = threading.RLock()
        entries = importlib.metadata.entry_points(group=GROUP)
        self.plugins = [
            Plugin(entry, entry.dist.name if entry.dist else "?", entry.dist.version if entry.dist else "?")
            for entry in sorted(entries, key=lambda entry: entry.name)
        ]
        limits = settings()
        allowed = [p for p in self.plugins if not {p.name, p.distribution} & limits.disable]
        for plugin in self.plugins:
            rivals = [p for p in allowed if p.name == plugin.name and p is not plugin]
            refusal = _gate(plugin, rivals, limits)
            if refusal:
                plugin.state, plugin.reason = refusal

    def load(self) -> list[Plugin]:
        """Load what is discovered and not refused, once; return the loaded backends by name."""
        with self.lock:
            for plugin in self.plugins:
                if plugin.state is State.DISCOVERED:
                    self._load(plugin)
                elif settings().strict and plugin.state in (State.INCOMPATIBLE, State.FAILED):
                    plugin.refuse(plugin.state, plugin.reason or "")
        return [plugin for plugin in self.plugins if plugin.state is State.LOADED]

    def _load(self, plugin: Plugin) -> None:
        with _unchanged_torch() as changes:
            refusal = self._import(plugin)
        if refusal is None and changes:
            refusal = State.FAILED, f"while loading it {'; '.join(changes)}"
        if refusal:
            plugin.refuse(*refusal)
            return
        plugin.state = State.LOADED
        self._repair(plugin)

    def _import(self, plugin: Plugin) -> tuple[State, str] | None:
        try:
            module = plugin.entry.load()
            return self._handshake(plugin, module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # SystemExit from a plugin must not end the host.
            return State.FAILED, _cause(error)

    def _handshake(self, plugin: Plugin, module: Any) -> tuple[State, str] | None:
        backend = getattr(module, "backend", None)
        if not isinstance(backend, Backend):
            return State.INCOMPATIBLE, f"{plugin.entry.value} has no hal.Backend named 'backend'"
        if backend.api != API:
            return State.INCOMPATIBLE, f"written for plugin API {backend.api}; this hal has {API}"
        if not SpecifierSet(backend.torch, prereleases=True).contains(torch_version()):
            return State.INCOMPATIBLE, f"supports torch {backend.torch}; this is {torch.__version__}"
        plugin.backend, plugin.hooks = backend, _validated_hooks(plugin.name, module)
        return None

    def _repair(self, plugin: Plugin) -> None:
        for wanted in self.ask(plugin, "hal_repairs") or ():
            if not isinstance(wanted, Repair):
                plugin.problems.append(f"hal_repairs answered with {wanted!r}, not a Repair")
                continue
            try:
                plugin.repairs[wanted.name] = repair(wanted)
            except Exception as error:  # noqa: BLE001  # A repair is the plugin's code; its failure is reported.
                plugin.repairs[wanted.name] = f"failed: {_cause(error)}"
                plugin.problems.append(f"repair {wanted.name}: {_cause(error)}")

    def ask(self, plugin: Plugin, hook: str, *args: object) -> Any:
        """Call one hook of one backend by position; None, and a problem on record, if it raises."""
        callers = getattr(plugin.hooks.hook, hook).get_hookimpls() if plugin.hooks else []
        with self.lock:
            for implementation in callers:
                try:
                    with _unchanged_torch() as changes:
                        return implementation.function(*args[: len(implementation.argnames)])
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # noqa: BLE001  # As when importing.
                    self.problem(plugin, f"{hook} raised {_cause(error)}")
                finally:
                    for change in changes:
                        self.problem(plugin, f"{hook} {change}")
        return None

    def problem(self, plugin: Plugin, problem: str) -> None:
        if problem not in plugin.problems:
            plugin.problems.append(problem)
        if settings().strict:
            raise BackendError(f"backend {plugin.name}: {problem}; HAL_STRICT is set")

    def troubles(self) -> str:
        """What went wrong with backends so far, as lines to append to an error; empty if nothing did."""
        broken = (State.INCOMPATIBLE, State.FAILED)
        lines = [f"{p.name} is {p.state.value}: {p.reason}" for p in self.plugins if p.state in broken]
        lines += [f"{p.name}: {problem}" for p in self.plugins for problem in p.problems]
        return "".join(f"\n  backend {line}" for line in lines)


def _validated_hooks(name: str, module: Any) -> pluggy.PluginManager:
    """Register ``module`` in a manager of its own, so that a refused backend leaves nothing behind."""
    manager = pluggy.PluginManager("hal")
    manager.add_hookspecs(hookspecs)
    manager.add_hookspecs(hookspecs.op_hooks())
    manager.register(module, name)
    manager.check_pending()
    for caller in manager.get_hookcallers(module) or ():
        for implementation in caller.get_hookimpls():
            if implementation.wrapper or implementation.hookwrapper:
                raise BackendError(f"{caller.name} is a hook wrapper; a backend answers for itself only")
    return manager


_registry: Registry | None = None
_registry_lock = threading.Lock()


def registry() -> Registry:
    """The one registry, made at first use."""
    global _registry
    if _registry is None:
        with _registry_lock:
            if _registry is None:
                _registry = Registry()
    return _registry
