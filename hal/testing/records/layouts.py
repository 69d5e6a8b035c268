"""Calls with one tensor laid out in memory in another way, made from the samples of a record."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import attrs
import torch
from torch import Tensor

from hal.op import OPS, Op
from hal.testing.record import Record, Sample

__all__ = ["with_layouts"]

ENOUGH = 64
"""Elements of a tensor that tell its layouts apart, also to a kernel that reads many at once."""


def _by_columns(x: Tensor) -> Tensor:
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def _apart(x: Tensor) -> Tensor:
    return torch.stack((x, torch.zeros_like(x)), dim=-1)[..., 0]


def _off_by_one(x: Tensor) -> Tensor:
    room = x.new_zeros(x.numel() + 1)
    room[1:] = x.reshape(-1)
    return room[1:].view(x.shape)


def _other_layouts(x: Tensor, may_expand: bool) -> Iterator[tuple[str, Tensor]]:
    """``x`` in other layouts, with the same elements unless its first row stands for all."""
    yield "off by one element", _off_by_one(x)
    if x.dim() > 0:
        yield "with gaps", _apart(x)
    if x.dim() > 1:
        yield "by columns", _by_columns(x)
    if may_expand and x.dim() > 0:
        yield "of one row", x[:1].expand(x.shape)


def _size(sample: Sample, op: Op, name: str) -> int:
    """How many elements tell the layouts of an argument apart; 0 if it is none to lay out."""
    x = op.signature.bind(*sample.args, **sample.kwargs).arguments.get(name)
    if not isinstance(x, Tensor) or (min(x.shape, default=1) < 2 and x.numel() != 1):
        return 0
    return min(x.numel(), ENOUGH)


def _laid_out(op: Op, name: str, given: Iterable[Sample]) -> Iterator[Sample]:
    """The first sample that has enough of an argument, in the layouts of that."""
    base = max(given, key=lambda sample: _size(sample, op, name))
    if not _size(base, op, name):
        return
    bound = op.signature.bind(*base.args, **base.kwargs)
    x = bound.arguments[name]
    # Indices say where something is, which has to stay.
    may_expand = x.dtype not in (torch.int32, torch.int64) and name not in op.mutates
    for layout, tensor in _other_layouts(x, may_expand):
        bound.arguments[name] = tensor
        yield Sample(f"{name} {layout}: {base.name}", bound.args, dict(bound.kwargs))


def _samples(record: Record) -> Iterator[Sample]:
    op, given = OPS[record.op], list(record.samples())
    yield from given
    for parameter in op.parameters:
        if parameter.tensor:
            yield from _laid_out(op, parameter.name, given)


def with_layouts(record: Record) -> Record:
    """The record with each tensor argument also off its place, with gaps, by columns, expanded."""
    return attrs.evolve(record, samples=functools.partial(_samples, record))
