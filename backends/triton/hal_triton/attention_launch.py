"""How attention is launched: what programs have at once, and memory for what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from hal.wanted import wanted
from hal_triton.layout import empty

__all__ = ["Run", "Tensors", "Tile", "floats", "results"]

Run = Callable[..., tuple[Tensor, Tensor]]
Tensors = Sequence[Tensor | None]
"""What kernels are given, in their order, after their results."""


_FEWEST = 16
"""Keys of a tile that is multiplied, at least."""


class Tile(NamedTuple):
    """Rows and keys that a program has at once."""

    rows: int
    keys: int
    num_warps: int
    ahead: int
    """Tiles of keys that are on their way while one is multiplied."""
    split: bool
    """Whether weights are rounded in two parts, which costs a third of the products."""

    def num_stages(self, paged: bool) -> int:
        """Those of a loop: what lies in pages is on its way as long again as its place is."""
        return 1 + self.ahead * (2 if paged else 1)

    def fitted(self, of_row: int, of_key: int, room: int) -> Tile:
        """One that takes no more of the shared memory, or the smallest.

        Args:
            of_row: Bytes that it has of a row.
            of_key: Bytes that it has of a key and its value.
            room: Bytes of the shared memory.
        """
        taken = self.rows * of_row + (self.ahead + 1) * self.keys * of_key
        if self.keys == _FEWEST or taken <= room:
            return self
        less = {"ahead": 1} if self.ahead > 1 else {"keys": self.keys // 2}
        return self._replace(**less).fitted(of_row, of_key, room)


def results(q: Tensor, value_dim: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """What makes memory for both results, for each row of queries like ``q`` [..., head_dim]."""
    leading = tuple(q.shape[:-1])
    out, lse = empty((*leading, value_dim), q), floats(leading, q)
    device = q.device
    first = _like((*leading, value_dim), q.dtype, device)
    second = _like(leading, torch.float32, device)

    def made() -> tuple[Tensor, Tensor]:
        place, sums = (*wanted(), None, None)[:2]
        return place if first(place) else out(), sums if second(sums) else lse()

    return made


def _like(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Callable[[Any], TypeGuard[Tensor]]:
    """Whether a result of this shape, dtype and device may be put somewhere."""

    def fits(place: Any) -> TypeGuard[Tensor]:
        return (
            place is not None
            and place.dtype == dtype
            and place.device == device
            and tuple(place.shape) == shape
        )

    return fits


def floats(shape: Sequence[int], like: Tensor) -> Callable[[], Tensor]:
    """What makes memory for numbers in float32."""
    return empty(shape, like.new_empty((), dtype=torch.float32))
