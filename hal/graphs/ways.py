"""Two ways to capture a function: whole, or broken at some operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hal.graphs.captured import Captured
from hal.graphs.pads import Fill, Pad
from hal.graphs.task import Options, captured
from hal.policy import op_names

__all__ = ["breakable", "capture"]


def capture(
    fn: Callable[..., Any],
    *example: Any,
    pad: Mapping[str, Fill | Pad] | None = None,
    buckets: Sequence[int] | None = None,
    copy: bool = True,
    pool: Any = None,
    progress: bool | None = None,
    group: Any = None,
) -> Captured:
    """Capture a whole function, which then runs from graphs.

    Its arguments are tensors, which each call copies to where the graphs read them, and plain
    values, which must not change. What the function changes, such as a cache, it closes over.
    Graphs go on reading that where it was: a weight is changed in place, and not replaced.
    Before a capture it runs for real, four times for the smallest bucket and twice for each other,
    so that nothing is compiled, tuned or imported in a capture: with padding alone in what ``pad``
    names, and with the example's values otherwise, also where it writes them.

    Args:
        fn: The function. In it, selection takes kernels only that may be captured. What it draws
            at random is drawn anew in each replay.
        example: Its arguments.
        pad: The arguments with a dimension that counts tokens, the first or that of a ``Pad``, and
            what fills the rest of a bucket: a number, or ``"last"`` to repeat the last element.
            It has to make the rows harmless: a slot of -1 is not stored by
            ``hal.ops.store_kv_cache_``, and a sequence of length 0 attends to nothing. One that has
            more elements than there are tokens, such as the offsets of sequences, may have as many
            more in each call. Results have no padding: of each the first dimension with the size
            of the bucket, whichever it is, is cut. Without it, calls have the example's shapes.
        buckets: The numbers of tokens to capture for; without them those of ``ladder`` up to the
            example's. A call takes the next larger one.
        copy: Whether results are new tensors. If not, they are in the memory of the graphs: valid
            until the next replay of anything that shares the pool, and never after ``close``.
        pool: The ``pool`` of another ``Captured``, to share its memory; what is not copied of one's
            results is lost by calling the other.
        progress: Whether to show a bar on stderr; without it, on a terminal if it takes long.
        group: The process group of ``torch.distributed`` whose ranks capture the same, such as one
            of tensor parallelism; without it, all ranks do.

    Raises:
        InvalidInput: Arguments that cannot be captured, or are written to; results that change
            with the bucket in more than one dimension, or not as it does; a group without this
            rank.
        NoKernel: An op has no kernel that may be captured; ``breakable`` keeps it out.
        HalError: The device has no graphs, or not as many as this takes; or ranks differ in what
            they capture, or one of them is refused.

    Example:
        >>> def gate(x):
        ...     return hal.ops.silu_and_mul(x)
        >>> x = torch.ones(8, 64, device="cuda")  # doctest: +SKIP
        >>> fast = hal.graphs.capture(gate, x, pad={"x": 0})  # doctest: +SKIP
        >>> fast(x[:5]).shape  # doctest: +SKIP
        torch.Size([5, 32])
    """
    options = Options((), (), pad or {}, buckets, copy, pool, progress, group)
    return captured(fn, example, options)


def breakable(
    fn: Callable[..., Any],
    *example: Any,
    at: Any,
    eager: Sequence[str] = (),
    pad: Mapping[str, Fill | Pad] | None = None,
    buckets: Sequence[int] | None = None,
    copy: bool = True,
    pool: Any = None,
    progress: bool | None = None,
    group: Any = None,
) -> Captured:
    """Capture a function but for some operators: before each a graph ends, after it one begins.

    These run as they are called, each time, with what the graph before computed; where their
    results go, the graph after reads them. No compiler takes part: the operators are found because
    they are called by their names in ``hal.ops``.

    Args:
        fn: As for ``capture``.
        example: Its arguments.
        at: The operators, functions of ``hal.ops`` or names, or one.
        eager: The arguments that only these operators take, and as they are. They are handed on as
            each call has them, of any shape and value, such as a block table and the longest of the
            sequences. A number that is computed with elsewhere too stays what it was.
        pad: As for ``capture``. The operators get the padded tensors.
        buckets: As for ``capture``.
        copy: As for ``capture``.
        pool: As for ``capture``.
        progress: As for ``capture``.
        group: As for ``capture``.

    Raises:
        InvalidInput: Also if an argument in ``eager`` goes elsewhere, or no operator takes it.
        NoKernel: Another op has no kernel that may be captured.
        HalError: As for ``capture``, with as many graphs for each bucket as there are parts.

    Example:
        >>> def norms(x, weight):
        ...     return hal.ops.rms_norm(hal.ops.silu_and_mul(x), weight) * 2
        >>> x, weight = torch.ones(8, 64, device="cuda"), torch.ones(32)  # doctest: +SKIP
        >>> fast = hal.graphs.breakable(  # doctest: +SKIP
        ...     norms, x, weight.to(x.device), at=hal.ops.rms_norm, eager=["weight"], pad={"x": 0}
        ... )
        >>> fast(x[:5], weight.to(x.device)).shape  # doctest: +SKIP
        torch.Size([5, 32])
    """
    options = Options(tuple(op_names(at)), eager, pad or {}, buckets, copy, pool, progress, group)
    return captured(fn, example, options)
