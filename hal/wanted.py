"""Where the results of a call are wanted, for kernels that can put them there."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextvars import ContextVar

from torch import Tensor

from hal.errors import InvalidInput

__all__ = ["brought", "wanted", "wanted_in"]

Places = tuple[Tensor | None, ...]

_places: ContextVar[list[Places] | None] = ContextVar("places", default=None)


@contextlib.contextmanager
def wanted_in(places: Sequence[Tensor | None]) -> Generator[None, None, None]:
    """Say where the results of the op that is called in a block are wanted; None is anywhere.

    They are contiguous, and nothing that the op reads lies there. A kernel need not care: then
    ``brought`` copies.
    """
    token = _places.set([tuple(places)])
    try:
        yield
    finally:
        _places.reset(token)


def wanted() -> Places:
    """Where the caller wants the first results, each contiguous, for a kernel to write and return.

    None, and whatever comes after, may be anywhere. Asked again it says (): what a kernel computes
    on the way must not take the place twice.
    """
    places = _places.get()
    return places.pop() if places else ()


def brought(results: Sequence[Tensor | None], places: Sequence[Tensor | None]) -> None:
    """Copy results to where they are wanted, but for those that a kernel has put there.

    Raises:
        InvalidInput: One has another shape than its place.
    """
    pairs = zip(results, places, strict=True)
    left = [(r, p) for r, p in pairs if r is not None and p is not None and not _same(r, p)]
    if not left:
        return
    taken = {_memory(place) for place in places if place is not None}
    # What a kernel has computed on the way to one result may be in its place, and be another.
    apart = [(r.clone() if _memory(r) in taken else r, p) for r, p in left]
    for result, place in apart:
        if result.shape != place.shape:  # A copy would repeat a row for all of them.
            raise InvalidInput(
                f"a result is {list(result.shape)} where {list(place.shape)} is wanted: what this "
                "call gives makes it another than was captured"
            )
        place.copy_(result)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
