"""Rows: independent of one another, and as far apart as memory allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal.testing.checks.check import Effort, accepted, check, claimed, each
from hal.testing.checks.results import same_bits
from hal.testing.compare import assert_close
from hal.testing.outcome import NotApplicable, NotTried
from hal.testing.parts import parts
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, expected, placed, results
from hal.validate import as_tuple

__all__ = ["STRIDE"]

STRIDE = 2**30 + 7
"""Elements between rows: the third one lies beyond 31 bits, while the stride itself is below."""


def _alone(subject: Subject, sample: Sample) -> None:
    whole = as_tuple(subject.run(subject.flat(sample)))
    for part in parts(subject.op, subject.record, sample):
        flat = placed(list(part.arguments.values()), str(subject.device))
        for i, (got, where) in enumerate(zip(as_tuple(subject.run(flat)), part.where, strict=True)):
            want = None if whole[i] is None else whole[i][where]
            assert same_bits(got, want), f"result {i}: rows {where} have other bits alone"


@check("invariance")
def invariance(subject: Subject, effort: Effort) -> int:
    """The bits of a row do not depend on the other rows, where that is claimed."""
    del effort
    claimed(subject, "batch_invariant")
    split = [s for s in accepted(subject) if parts(subject.op, subject.record, s)]
    if not split:
        raise NotTried("no sample can be split by rows")
    return each(split, lambda sample: _alone(subject, sample), lambda sample: sample.name)


def _size(value: Tensor) -> int:
    """Bytes of memory that the rows of ``value`` span when they are far apart."""
    return ((value.shape[0] - 1) * STRIDE + value[0].numel()) * value.itemsize


def _spread(value: Tensor) -> Tensor:
    """The same rows far apart; on a host only the pages that are written exist."""
    inner = value[0].contiguous().stride()
    try:
        far = torch.empty_strided(
            value.shape, (STRIDE, *inner), dtype=value.dtype, device=value.device
        )
    except RuntimeError as error:
        wanted = f"{_size(value) / 2**30:.0f} GiB"
        raise NotTried(f"{wanted} could not be had: {error}".splitlines()[0]) from None
    return far.copy_(value)


def _fit(subject: Subject, name: str) -> Sample | None:
    """Of the samples with three rows or more of ``name`` and little memory the one that shows most.

    A row of one element may be 0 after all, as what lies elsewhere is.
    """
    position = [parameter.name for parameter in subject.op.parameters].index(name)

    def value(sample: Sample) -> Any:
        return subject.op.flatten(sample.args, sample.kwargs)[position]

    fit = [
        sample
        for sample in accepted(subject)
        if isinstance(value(sample), Tensor)
        and value(sample).ndim > 1
        and 3 <= value(sample).shape[0] <= 8
        and value(sample)[0].numel()
    ]

    def cost(sample: Sample) -> tuple[int, int]:
        rows = value(sample)
        return (len(rows) - 1) * rows.itemsize, -min(rows[0].numel(), 2**12)

    return min(fit, key=cost, default=None)


def _far_apart(subject: Subject, name: str) -> None:
    sample = _fit(subject, name)
    assert sample is not None
    flat = subject.flat(sample)
    position = [parameter.name for parameter in subject.op.parameters].index(name)
    flat[position] = _spread(flat[position])
    supports = subject.kernel.supports
    if supports is not None and subject.op.call(supports, flat):
        return
    want = expected(subject.record, sample)
    for got, wanted in zip(results(subject.run(flat)), want, strict=True):
        assert_close(got.to(HOST), wanted, subject.record.gates.get(got.dtype, 0.0))


@check("offsets", isolated=True)
def offsets(subject: Subject, effort: Effort) -> int:
    """Rows 2^30 + 7 elements apart are found: no offset is cut to 32 bits."""
    del effort
    far = subject.record.rows if subject.record.far is None else subject.record.far
    fit = [name for name in far if _fit(subject, name) is not None]
    if not fit:
        raise NotApplicable("no argument has rows that may lie apart")
    return each(fit, lambda name: _far_apart(subject, name), str)
