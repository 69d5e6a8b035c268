"""Whether a library is there, and what is offered of it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import attrs

from hal import Device, Kernel
from hal.op import OPS
from hal_cuda.measured import wish

__all__ = ["Library", "offered", "wrong"]


@attrs.frozen(eq=False)
class Library:
    """A package that may be installed.

    Attributes:
        name: Of its kernels.
        package: What is imported.
        known: Whether what is called is there without it, such as operators from a file.
        lacks: What is missing for its use once it is imported; None if nothing is.
    """

    name: str
    package: str
    known: Callable[[], bool] = lambda: False
    lacks: Callable[[], str | None] = lambda: None

    @property
    def there(self) -> bool:
        """Whether it is installed; a broken one is."""
        # What is imported may have been put there without a specification.
        imported = sys.modules.get(self.package) is not None
        return self.known() or imported or importlib.util.find_spec(self.package) is not None

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used; it is imported for that, once."""
        return None if self.known() else _imported(self)


@functools.cache
def _imported(library: Library) -> str | None:
    try:
        importlib.import_module(library.package)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # What a wheel for another torch or CUDA, or without its compiler, was seen to raise.
        said = str(error).strip().partition("\n")[0]
        return f"it cannot be imported: {type(error).__name__}: {said}"
    return library.lacks()


def wrong(library: Library, op: str, reason: str) -> Kernel:
    """What is not called, with the reason for ``hal.explain``."""
    return Kernel(fn=OPS[op].contract, name=library.name, refused=reason)


def offered(library: Library, op: str, device: Device, **how: Any) -> Kernel:
    """A kernel that computes each row by itself, in one order."""
    traits: dict[str, Any] = {
        "graph_safe": True,
        "deterministic": True,
        "batch_invariant": True,
    } | how
    return Kernel(name=library.name, on_request=wish(library.name, op, device), **traits)
