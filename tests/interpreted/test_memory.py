"""Kernels touch their own memory only, and do not care in which order their programs run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hal
from hal.offers import offers
from hal.op import OPS
from hal.testing.checks.check import accepted, some
from hal.testing.checks.results import compare
from hal.testing.outcome import NotTried
from hal.testing.records import RECORDS
from hal.testing.subject import Subject, expected
from interpreted.children import in_child
from interpreted.fences import ORDERS, SIDES, Fenced, placed, programs

CPU = hal.device("cpu")
EVERY = 4
"""Which share of the samples is tried, and one of each dtype, in turn with each order and side."""
LARGE = 50_000
"""Elements; samples beyond are about sizes, not about edges."""


def subjects() -> list[Subject]:
    return [
        Subject(offer.backend, op, offer.kernel, CPU, RECORDS[op.name])
        for op in OPS.values()
        for offer in offers(op, CPU)
        if offer.backend == "triton" and offer.kernel is not None
    ]


SUBJECTS = subjects()


def fits(values: list[object]) -> bool:
    return all(v.numel() <= LARGE for v in values if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.op.name)
def test_memory_is_kept_to_in_any_order(subject: Subject) -> None:
    try:
        taken = accepted(subject)
    except NotTried as reason:
        pytest.skip(str(reason))
    every = some([s for s in taken if fits([*s.args, *s.kwargs.values()])], EVERY)
    for sample in every:
        expected(subject.record, sample)

    def body(tell: Callable[[str], None]) -> None:
        for i, sample in enumerate(every):
            order, side = ORDERS[i % 3], SIDES[i // 3 % 2]
            tell(f"{sample.name}, {order}, with a fence on the {side}")
            flat = placed(subject.op.flatten(sample.args, sample.kwargs), side)
            with programs(order), Fenced(side):
                returned = subject.op.call(subject.kernel.fn, flat)
            compare(subject, sample, returned)

    assert every
    if said := in_child(body):
        pytest.fail(said, pytrace=False)
