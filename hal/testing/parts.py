"""Calls for some rows of a sample alone, whose results must not depend on the other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.op import Op
from hal.testing.record import Part, Record, Sample
from hal.validate import as_tuple

__all__ = ["cut", "many", "parts", "spans"]


def spans(count: int) -> list[slice]:
    """The first of ``count`` rows, the last and those between them; none for a single row."""
    if count < 2:
        return []
    found = [slice(0, 1), slice(1, count - 1), slice(count - 1, count)]
    return [span for span in found if span.start < span.stop]


def cut(arguments: Mapping[str, Any], names: Sequence[str], rows: slice) -> dict[str, Any]:
    """``arguments`` with only ``rows`` of those named that have as many rows as the first."""
    count = arguments[names[0]].shape[0]

    def rows_of(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value

    return {**arguments, **{name: rows_of(arguments[name]) for name in names}}


def many(op: Op, record: Record, sample: Sample, least: int) -> Part | None:
    """A sample's call for its rows over and over, at least so many; where its own results lie.

    None for an op whose calls are split in a way of their own, and where there is no row.
    """
    flat = op.flatten(sample.args, sample.kwargs)
    arguments = dict(zip(op.signature.parameters, flat, strict=True))
    first = arguments[record.rows[0]] if record.rows and record.parts is None else None
    if first is None or first.dim() < 2 or not len(first):
        return None
    results, count = as_tuple(op.contract(**arguments)), len(first)

    def over(value: Any) -> Any:
        follows = isinstance(value, Tensor) and value.shape[:1] == (count,)
        return torch.cat([value] * -(-least // count)) if follows else value

    repeated = {name: over(arguments[name]) for name in record.rows}
    return Part(
        {**arguments, **repeated}, tuple(_where(r, count, slice(0, count)) for r in results)
    )


def _where(result: Tensor | None, count: int, rows: slice) -> slice:
    if result is None:
        return slice(0, 0)
    return rows if result.shape[:1] == (count,) else slice(None)


def parts(op: Op, record: Record, sample: Sample) -> list[Part]:
    """A sample's calls for its first row, its last row and the rows between them.

    Their tensors are views of the sample's: an op that writes into them needs copies. There are
    none for a single row, nor where the first of ``record.rows`` has no leading dimension before
    that of its row. A result without rows, such as the scale that was given, is in each part as a
    whole; a result that is None has an empty slice.
    """
    flat = op.flatten(sample.args, sample.kwargs)
    arguments = dict(zip(op.signature.parameters, flat, strict=True))
    if record.parts is not None:
        return list(record.parts(arguments))
    first = arguments[record.rows[0]] if record.rows else None
    if first is None or first.dim() < 2:
        return []
    results, count = as_tuple(op.contract(**arguments)), len(first)
    return [
        Part(cut(arguments, record.rows, rows), tuple(_where(r, count, rows) for r in results))
        for rows in spans(count)
    ]
