"""The exceptions hal raises.

::

    HalError
    ├── InvalidInput(ValueError)      an argument an op, a query or a setting cannot take
    │   └── InvalidType(TypeError)    ... because of its type
    ├── NoKernel(RuntimeError)        no backend can serve this call here, or not the forced one
    └── BackendError(RuntimeError)    a backend broke its promise, or cannot be had under HAL_STRICT
"""

from __future__ import annotations

__all__ = ["BackendError", "HalError", "InvalidInput", "InvalidType", "NoKernel"]


class HalError(Exception):
    """Whatever hal itself raises."""


class InvalidInput(HalError, ValueError):
    """An argument that is refused before anything runs; says what was found and what would work."""


class InvalidType(InvalidInput, TypeError):
    """An argument of a type that is refused before anything runs."""


class NoKernel(HalError, RuntimeError):
    """No kernel may serve the call; lists every candidate with its reason."""


class BackendError(HalError, RuntimeError):
    """A backend did not keep its contract; names the backend and how to switch it off."""
