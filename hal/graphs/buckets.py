"""The numbers of tokens that graphs are captured for."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from hal.errors import InvalidInput, InvalidType

__all__ = ["checked", "ladder"]


def ladder(most: int) -> tuple[int, ...]:
    """1, 2, 4, then steps of a fourth of the power of two below, and of 4 at least, up to ``most``.

    From 16 on a fifth of a bucket is padding at most; there are four for each power of two.

    Raises:
        InvalidInput: ``most`` is less than 1.

    Example:
        >>> hal.graphs.ladder(48)
        (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48)
    """
    if most < 1:
        raise InvalidInput(f"a ladder of buckets ends at 1 or more tokens, not {most}")
    sizes, size = [1, 2], 4
    while size < most:
        sizes.append(size)
        size += max(4, (1 << (size.bit_length() - 1)) // 4)
    return (*(size for size in sizes if size < most), most)


def checked(given: Iterable[int]) -> tuple[int, ...]:
    """Buckets as they were given, from small to large, each once.

    Raises:
        InvalidInput: There is none, or one of less than a token, or that is no integer.
    """
    try:
        sizes = tuple(sorted({operator.index(size) for size in given}))
    except TypeError:
        raise InvalidType(f"buckets are integers, in a list or the like, not {given!r}") from None
    if not sizes or sizes[0] < 1:
        raise InvalidInput(
            f"buckets are numbers of tokens, one at least and each positive: {sizes}"
        )
    return sizes
