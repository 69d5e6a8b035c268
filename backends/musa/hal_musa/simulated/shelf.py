"""Where the stand-ins for Moore Threads' libraries lie, and who may import them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Generator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from hal import InvalidInput

__all__ = ["add", "check", "libraries", "remove"]

_SHELF = Path(__file__).parent / "libraries"


class _Finder(MetaPathFinder):
    """Finds what was asked for on the shelf, by its first name."""

    names: frozenset[str] = frozenset()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.names:
            return None
        return PathFinder.find_spec(name, [str(_SHELF)], target)


_finder = _Finder()


def check(*names: str) -> None:
    """Refuse names of which there is no stand-in.

    Raises:
        InvalidInput: It lists those there are.
    """
    known = sorted(place.parent.name for place in _SHELF.glob("*/__init__.py"))
    for name in names:
        if name not in known:
            raise InvalidInput(f"no stand-in is called {name!r}; there are {', '.join(known)}")


def add(*names: str) -> None:
    """Have ``import`` find these of ``mate`` and ``sgl_kernel``, before installed ones.

    Raises:
        InvalidInput: There is no stand-in of that name.
    """
    check(*names)
    _finder.names |= frozenset(names)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    importlib.invalidate_caches()


def remove(*names: str) -> None:
    """Have ``import`` find them no longer; their modules and operators are gone."""
    _finder.names -= frozenset(names)
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        library = vars(sys.modules.pop(name)).get("_operators")
        if library is not None:
            library._destroy()


@contextlib.contextmanager
def libraries(*names: str) -> Generator[None, None, None]:
    """Have stand-ins for the libraries ``names`` and no others, for as long as this is open.

    Example:
        >>> import importlib.util
        >>> with libraries("mate"):
        ...     importlib.util.find_spec("mate") is not None
        True
        >>> importlib.util.find_spec("mate") is None  # where the real one is not installed
        True
    """
    before = _finder.names
    remove(*before - set(names))
    add(*names)
    try:
        yield
    finally:
        remove(*set(names) - before)
        add(*before)
