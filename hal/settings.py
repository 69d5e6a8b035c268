"""The environment variables of hal, read once at first use; no other module reads any."""

from __future__ import annotations

import difflib
import functools
import os
import warnings

import attrs

__all__ = ["Settings", "recorded", "settings"]

_NAMES = (
    *("HAL_DISABLE", "HAL_EVIDENCE", "HAL_PLUGINS", "HAL_PREFER"),
    *("HAL_SAFE", "HAL_STRICT", "HAL_USE"),
)


@attrs.frozen
class Settings:
    """What the environment says.

    Attributes:
        use: ``HAL_USE``, forced backends in the grammar of ``hal.use``.
        prefer: ``HAL_PREFER``, preferred backends in the same grammar.
        plugins: ``HAL_PLUGINS``, the only backends (or distributions) allowed besides the
            reference, none if it is set and empty; None allows all.
        disable: ``HAL_DISABLE``, denied ``backend``, ``distribution`` or ``backend:op``; wins over
            ``plugins``.
        safe: ``HAL_SAFE=1``, the reference alone; no other backend is imported.
        strict: ``HAL_STRICT=1``, a backend or kernel that cannot be had is an error.
        evidence: ``HAL_EVIDENCE``, files that ``hal check`` wrote, separated as in ``PATH``.
    """

    use: str = ""
    prefer: str = ""
    plugins: frozenset[str] | None = None
    disable: frozenset[str] = frozenset()
    safe: bool = False
    strict: bool = False
    evidence: tuple[str, ...] = ()


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _switch(name: str) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        warnings.warn(f"{name}={value!r} is neither 0 nor 1; it counts as 1", stacklevel=2)
    return value not in ("", "0")


def recorded() -> str:
    """The folder in which ``hal check --record`` keeps evidence: with the user's data, by XDG."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.join("~", ".local", "share")
    return os.path.join(os.path.expanduser(data), "hal", "evidence")


def _warn_of_unknown_names() -> None:
    for name in sorted(os.environ):
        if name.startswith("HAL_") and name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_NAMES)}"
            warnings.warn(f"{name} is not a setting of hal; {hint}", stacklevel=2)


@functools.cache
def settings() -> Settings:
    """Read the environment; later changes to it have no effect."""
    _warn_of_unknown_names()
    allowed = os.environ.get("HAL_PLUGINS")
    return Settings(
        use=os.environ.get("HAL_USE", ""),
        prefer=os.environ.get("HAL_PREFER", ""),
        plugins=None if allowed is None else _words(allowed),
        disable=_words(os.environ.get("HAL_DISABLE", "")),
        safe=_switch("HAL_SAFE"),
        strict=_switch("HAL_STRICT"),
        evidence=tuple(filter(None, os.environ.get("HAL_EVIDENCE", "").split(os.pathsep))),
    )
