"""Rows: independent of one another, and as far apart as memory allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.checks.check import Effort, accepted, check, claimed, each
from hal.testing.checks.results import same_bits
from hal.testing.compare import assert_close
from hal.testing.outcome import NotApplicable, NotTried
from hal.testing.parts import many, parts
from hal.testing.record import Codes, Part, Sample
from hal.testing.subject import HOST, Subject, expected, placed, results
from hal.validate import as_tuple

__all__ = ["STRIDE"]

STRIDE = 2**30 + 7
"""Elements between rows: the third one lies beyond 31 bits, while the stride itself is below."""


# Beyond the sizes at which kernels go over to other tiles, or another order of sums.
_BATCH = 300

# Elements of a sample that may be repeated so often; with more it would take seconds.
_IN_BATCH, _IN_ROWS = 5_000, 100


def _ran(subject: Subject, part: Part) -> tuple[Tensor | None, ...]:
    return as_tuple(subject.run(placed(list(part.arguments.values()), str(subject.device))))


def _of(result: Tensor | None, rows: slice) -> Tensor | None:
    return None if result is None else result[rows]


def _small(sample: Sample, most: int) -> bool:
    """Whether it may be repeated, in the layout that it has."""
    given = [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, Tensor)]
    plain = all(value.is_contiguous() for value in given)
    return plain and sum(value.numel() for value in given) <= most


def _alone(subject: Subject, sample: Sample) -> None:
    whole = as_tuple(subject.run(subject.flat(sample)))
    for part in parts(subject.op, subject.record, sample):
        for i, (got, rows) in enumerate(zip(_ran(subject, part), part.where, strict=True)):
            same = same_bits(got, _of(whole[i], rows))
            assert same, f"result {i}: rows {rows.start}:{rows.stop} have other bits alone"
    batch = many(subject.op, subject.record, sample, _BATCH) if _small(sample, _IN_BATCH) else None
    if batch is not None and not _refuses(subject, batch):
        for i, (got, rows) in enumerate(zip(_ran(subject, batch), batch.where, strict=True)):
            same = same_bits(_of(got, rows), whole[i])
            assert same, f"result {i}: the rows have other bits in a batch of {_BATCH} or more"


def _refuses(subject: Subject, part: Part) -> bool:
    supports = subject.kernel.supports
    return supports is not None and supports(**part.arguments) is not None


@check("invariance")
def invariance(subject: Subject, effort: Effort) -> int:
    """The bits of a row do not depend on the other rows, where that is claimed."""
    claimed(subject, "batch_invariant")
    given = accepted(subject, effort.samples)
    split = [s for s in given if parts(subject.op, subject.record, s)]
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


def _fit(subject: Subject, given: list[Sample], position: int) -> Sample | None:
    """Of the samples with some rows of an argument and little memory the one that shows most.

    A row of one element may be 0 after all, as what lies elsewhere is.
    """

    def value(sample: Sample) -> Any:
        return subject.op.flatten(sample.args, sample.kwargs)[position]

    fit = [
        sample
        for sample in given
        if isinstance(value(sample), Tensor)
        and value(sample).ndim > 1
        and 3 <= value(sample).shape[0] <= 8
        and value(sample)[0].numel()
    ]

    def cost(sample: Sample) -> tuple[int, int]:
        rows = value(sample)
        return (len(rows) - 1) * rows.itemsize, -min(rows[0].numel(), 2**12)

    return min(fit, key=cost, default=None)


def _far_apart(subject: Subject, sample: Sample, position: int) -> None:
    flat = subject.flat(sample)
    flat[position] = _spread(flat[position])
    supports = subject.kernel.supports
    if supports is not None and subject.op.call(supports, flat):
        return
    want = expected(subject.record, sample)
    for got, wanted in zip(results(subject.run(flat)), want, strict=True):
        assert_close(got.to(HOST), wanted, subject.record.gates.get(got.dtype, 0.0))


def _repeated(want: Any, times: int) -> Any:
    if isinstance(want, Codes):
        return Codes(torch.cat([want.values] * times))
    return torch.cat([want] * times)


def _crowded(subject: Subject, sample: Sample, count: int) -> None:
    crowd = many(subject.op, subject.record, sample, count)
    assert crowd is not None
    if _refuses(subject, crowd):
        return
    given = zip(_ran(subject, crowd), crowd.where, strict=True)
    found = [(got, rows) for got, rows in given if got is not None]
    for (got, rows), want in zip(found, expected(subject.record, sample), strict=True):
        wanted = want if rows.stop is None else _repeated(want, len(got) // rows.stop)
        assert_close(got.to(HOST), wanted, subject.record.gates.get(got.dtype, 0.0))


def _crowds(subject: Subject, given: list[Sample]) -> list[Sample]:
    """The sample that shows most of those whose rows may be repeated so often."""
    fit = [s for s in given if _small(s, _IN_ROWS) and many(subject.op, subject.record, s, 1)]
    return sorted(fit, key=lambda s: s.args[0].numel())[-1:]


@check("offsets", isolated=True)
def offsets(subject: Subject, effort: Effort) -> int:
    """Rows 2^30 + 7 elements apart are found, and all of 70,000: no offset or grid is cut off."""
    given, names = accepted(subject), [parameter.name for parameter in subject.op.parameters]
    cases: dict[str, Callable[[], None]] = {}
    for name in subject.record.rows if subject.record.far is None else subject.record.far:
        sample = _fit(subject, given, names.index(name))
        if sample is not None:
            cases[name] = functools.partial(_far_apart, subject, sample, names.index(name))
    for sample in _crowds(subject, given) if effort.rows else []:
        cases[f"{effort.rows} rows"] = functools.partial(_crowded, subject, sample, effort.rows)
    if not cases:
        raise NotApplicable("no argument has rows that may lie apart")
    return each(cases, lambda name: cases[name](), str)
