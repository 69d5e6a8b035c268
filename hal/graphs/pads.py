"""How an argument that counts tokens is padded to a bucket of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from torch import Tensor

from hal.errors import InvalidInput, InvalidType

__all__ = ["Fill", "Pad", "as_pads"]

Fill = float | Literal["last"]
"""What the rows of a bucket hold that a call does not fill: a number, or what the last one has."""


@attrs.frozen
class Pad:
    """An argument with a dimension that counts tokens, other than the first.

    Args:
        value: What fills the rest of a bucket: a number, or ``"last"`` to repeat the last element.
        dim: The dimension.

    Example:
        >>> hal.graphs.Pad(0, dim=1)
        Pad(value=0, dim=1)
    """

    value: Fill
    dim: int = 0

    def check(self, name: str, value: Any) -> None:
        """Refuse what has no such dimension, and what cannot fill it.

        Raises:
            InvalidInput: The argument of this name is no such tensor, or ``value`` is no number.
        """
        dims = value.dim() if isinstance(value, Tensor) else 0
        if not -dims <= self.dim < dims:
            raise InvalidInput(f"pad names {name}, which has no dimension {self.dim}")
        fill: Any = self.value
        if fill != "last" and not isinstance(fill, (int, float)):
            raise InvalidType(f"pad fills {name} with a number or 'last', not {fill!r}")


def as_pads(given: Mapping[str, Fill | Pad]) -> dict[str, Pad]:
    """How each argument is padded, by name."""
    return {name: p if isinstance(p, Pad) else Pad(p) for name, p in given.items()}
