"""Backends before any import: what metadata and settings say of them."""

from __future__ import annotations

import difflib
import enum
import importlib.metadata
import re
import warnings
from typing import Any

import attrs
import torch

from hal.hookspecs import Backend, Hook
from hal.op import OPS
from hal.repairs import Repair
from hal.settings import settings
from hal.version import __version__

__all__ = ["DISTRIBUTION", "REFERENCE", "BackendInfo", "Plugin", "State", "discovered"]

GROUP = "hal.backends"
DISTRIBUTION = "torch-hal"
# The reference is the one backend that hal must know by name: it defines the results, and
# HAL_SAFE keeps it alone.
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
    hooks: dict[str, Hook] = attrs.Factory(dict)
    wanted: list[Repair] = attrs.Factory(list)
    repairs: dict[str, str] = attrs.Factory(dict)
    problems: list[str] = attrs.Factory(list)
    error: BaseException | None = None

    @property
    def name(self) -> str:
        """The name of the entry point, which is the name of the backend."""
        return self.entry.name

    @property
    def ours(self) -> bool:
        """Whether hal ships it."""
        return _canonical(self.distribution) == DISTRIBUTION

    @property
    def at_home(self) -> bool:
        """Whether torch knows a type of device that it serves; no device need be there."""
        types = None if self.backend is None else self.backend.devices
        # Of those that are not torch's own it knows by the vendor's package.
        return types is None or any(hasattr(torch, kind) for kind in types)

    def info(self) -> BackendInfo:
        """The public record."""
        state = self.state.value
        return BackendInfo(self.name, self.distribution, self.version, state, self.reason)

    def listed(self, words: frozenset[str]) -> bool:
        """Whether a setting names it, as a backend or as a distribution however spelt."""
        spelt = {_canonical(word) for word in words}
        return self.name in words or _canonical(self.distribution) in spelt

    def denied(self, op: str) -> bool:
        """Whether HAL_DISABLE takes this op from it, in whichever form."""
        words = {word.rstrip("_") for word in settings().disable}
        return f"{self.name}:{op}".rstrip("_") in words

    def serves(self, device_type: str) -> bool:
        """Whether it may be asked about a device of this type."""
        if self.state is not State.LOADED or self.backend is None:
            return False
        return self.backend.devices is None or device_type in self.backend.devices

    def refuse(self, state: State, reason: str) -> None:
        """Set it aside, with nothing of it left to be asked."""
        self.state, self.reason = state, reason
        self.hooks = {}


def discovered() -> list[Plugin]:
    """Every entry point of the group by name; some refused by their metadata or by settings."""
    entries = importlib.metadata.entry_points(group=GROUP)
    found = [Plugin(entry, *_identity(entry.dist)) for entry in entries]
    found.sort(key=lambda plugin: (plugin.name, plugin.distribution))
    for plugin in found:
        namesakes = [p for p in found if p.name == plugin.name and p is not plugin]
        refusal = _gate(plugin, namesakes)
        if refusal:
            plugin.refuse(*refusal)
    _warn_of_unknown_words(found)
    return found


def _canonical(name: str) -> str:
    """The name of a distribution in the one spelling that counts (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identity(dist: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version of a distribution, whose metadata may be damaged."""
    try:
        metadata: Any = (dist.metadata if dist else None) or {}
    except (OSError, ValueError):  # The gate reads it as well, and says so.
        metadata = {}
    return metadata.get("Name") or "unknown", metadata.get("Version") or "unknown"


def _refers_to_nothing(plugin: Plugin) -> str | None:
    """Whether its entry point is in no form that can be loaded."""
    if plugin.entry.pattern.match(plugin.entry.value):
        return None
    return f"its entry point is {plugin.entry.value!r}; write module or module:object"


def _gate(plugin: Plugin, namesakes: list[Plugin]) -> tuple[State, str] | None:
    """Decide from metadata and settings whether ``plugin`` may be imported."""
    off = _switched_off(plugin)
    if off:
        return State.DISABLED, off
    reason = (
        _misnamed(plugin, namesakes) or _refers_to_nothing(plugin) or _unmet_requirement(plugin)
    )
    return (State.INCOMPATIBLE, reason) if reason else None


def _switched_off(plugin: Plugin) -> str | None:
    """Whether the user's settings keep it out."""
    limits = settings()
    if plugin.listed(limits.disable):
        return "denied by HAL_DISABLE"
    if plugin.ours and plugin.name == REFERENCE:
        return None
    if limits.safe:
        return "HAL_SAFE is set"
    if limits.plugins is not None and not plugin.listed(limits.plugins):
        return "not in HAL_PLUGINS"
    return None


def _misnamed(plugin: Plugin, namesakes: list[Plugin]) -> str | None:
    """Whether its name cannot be written in a setting, or is another's; no claimant wins."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", plugin.name):
        return f"the name {plugin.name!r} must be of letters, digits and _ . + - only"
    if plugin.ours:
        return None
    if plugin.name == REFERENCE or any(other.ours for other in namesakes):
        return f"the name {plugin.name} is reserved for {DISTRIBUTION}"
    rivals = [other.distribution for other in namesakes if not _switched_off(other)]
    if rivals:
        return f"{', '.join(rivals)} claims the same name; deny one distribution in HAL_DISABLE"
    return None


def _unmet_requirement(plugin: Plugin) -> str | None:
    """Whether the distribution asks for another version of hal."""
    from packaging.requirements import Requirement  # Slow, and needed by no import of hal.

    try:
        requirements = (plugin.entry.dist.requires if plugin.entry.dist else None) or ()
    except (OSError, ValueError) as error:
        return f"its metadata cannot be read: {error}"
    for text in requirements:
        try:
            wanted = Requirement(text)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        except ValueError:  # What packaging raises for a requirement or a marker derives from it.
            return f"its metadata has an invalid requirement: {text}"
        if not applies or _canonical(wanted.name) != DISTRIBUTION:
            continue
        if not wanted.specifier.contains(__version__, prereleases=True):
            return f"it requires {text}; this is {DISTRIBUTION} {__version__}"
    return None


def _warn_of_unknown_words(plugins: list[Plugin]) -> None:
    """A misspelt denial would deny nothing, and say nothing."""
    limits = settings()
    ops = {f"{plugin.name}:{op}".rstrip("_") for plugin in plugins for op in OPS}
    names = {plugin.name for plugin in plugins} | {plugin.distribution for plugin in plugins}
    for variable, words in ("HAL_DISABLE", limits.disable), ("HAL_PLUGINS", limits.plugins or ()):
        for word in sorted(words):
            if word.rstrip("_") in ops or any(p.listed(frozenset({word})) for p in plugins):
                continue
            near = difflib.get_close_matches(word, ops if ":" in word else names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; found {', '.join(sorted(names))}"
            warnings.warn(f"{variable}: there is no {word!r} here{hint}", stacklevel=2)
