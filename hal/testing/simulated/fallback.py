"""Which operators a simulated device has no kernel of its own for, so that the host runs them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Iterable

from hal.testing.simulated.build import extension

__all__ = ["fallbacks", "strict"]


@contextlib.contextmanager
def strict(allow: Iterable[str] = ()) -> Generator[None, None, None]:
    """Let operators without a kernel of their own fail, as on a device that has no fallback.

    It holds for every thread of the process. Blocks in blocks take the innermost's word.

    Args:
        allow: Operators that may fall back, such as ``"aten::add"``, or ``"aten::add.Tensor"`` for
            one overload.

    Raises:
        NotImplementedError: In the block, of such an operator.
    """
    before = extension().set_strict(list(allow))
    try:
        yield
    finally:
        extension().set_strict(before)


@contextlib.contextmanager
def fallbacks() -> Generator[Counter[str], None, None]:
    """Count what falls back to the host, in any thread.

    Yields:
        How often each operator did, such as ``"aten::add.Tensor"``; filled when the block ends.
    """
    found: Counter[str] = Counter()
    before = Counter(extension().fallbacks())
    try:
        yield found
    finally:
        found.update(Counter(extension().fallbacks()) - before)
