"""Calls larger than one block, tile or grid dimension of a usual kernel."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs

from hal.testing.record import Record, Sample
from hal.testing.records import large_products, large_rows

__all__ = ["with_large"]

LARGE = {**large_rows.LARGE, **large_products.LARGE}


def _samples(record: Record) -> Iterator[Sample]:
    yield from record.samples()
    for name, (args, kwargs) in LARGE[record.op]():
        yield Sample(f"large: {name}", args, kwargs)


def with_large(record: Record) -> Record:
    """The record with its large samples at the end."""
    return attrs.evolve(record, samples=functools.partial(_samples, record))
