"""Rows of a sample alone: the calls that ``hal.testing.parts`` makes give the rows of the whole."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal.op import OPS
from hal.testing.compare import assert_close
from hal.testing.parts import parts
from hal.testing.record import Codes, Part, Sample
from hal.testing.records import RECORDS
from hal.testing.subject import expected, samples
from hal.validate import as_tuple

WITHOUT_PARTS = {"moe_align_block_size": "it sorts the ids of all rows into one list"}


@functools.cache
def divided(op: str) -> list[tuple[Sample, list[Part]]]:
    """The samples of an op that have parts."""
    pairs = [(sample, parts(OPS[op], RECORDS[op], sample)) for sample in samples(RECORDS[op])]
    return [(sample, found) for sample, found in pairs if found]


def chosen(op: str) -> Iterator[Any]:
    """Two samples of each combination of dtypes, and every sixth."""
    seen: collections.Counter[tuple[torch.dtype, ...]] = collections.Counter()
    for i, (sample, _) in enumerate(divided(op)):
        given = OPS[op].flatten(sample.args, sample.kwargs)
        kinds = (value.dtype if isinstance(value, Tensor) else value for value in given)
        dtypes = tuple(kind for kind in kinds if isinstance(kind, torch.dtype))
        seen[dtypes] += 1
        if seen[dtypes] <= 2 or i % 6 == 0:
            yield pytest.param(op, i, id=f"{op}-{sample.name}".replace("[", "(").replace("]", ")"))


def cases() -> list[Any]:
    return [case for op in RECORDS for case in chosen(op)]


def assert_rows_alone(function: Callable[..., Any], op: str, index: int) -> None:
    """Codes and their neighbours are known to the oracle alone; all else is held to the whole."""
    (sample, found), record = divided(op)[index], RECORDS[op]
    whole = as_tuple(function(*copy.deepcopy(sample.args), **copy.deepcopy(sample.kwargs)))
    for part in found:
        results = as_tuple(function(**copy.deepcopy(part.arguments)))
        exact = iter(expected(record, sample))
        assert len(results) == len(whole) == len(part.where)
        for got, all_rows, where in zip(results, whole, part.where, strict=True):
            if all_rows is None:
                assert got is None
                assert where == slice(0, 0)
                continue
            wanted = next(exact)
            codes = isinstance(wanted, Codes)
            want = Codes(wanted.values[where]) if codes else all_rows[where].double()
            # Both lie within the gate of the exact result.
            assert_close(got, want, 2 * record.gates.get(got.dtype, 0.0))


@pytest.mark.parametrize(("op", "index"), cases())
def test_rows_alone_give_what_they_give_among_others(op: str, index: int) -> None:
    assert_rows_alone(getattr(hal.ops, op), op, index)


@pytest.mark.parametrize("op", sorted(set(RECORDS) - set(WITHOUT_PARTS)))
def test_an_op_has_samples_with_parts(op: str) -> None:
    assert len(divided(op)) >= 3


@pytest.mark.parametrize("op", sorted(WITHOUT_PARTS))
def test_an_op_whose_results_need_all_rows_has_no_parts(op: str) -> None:
    assert divided(op) == []


@pytest.mark.parametrize("op", sorted(set(RECORDS) - set(WITHOUT_PARTS)))
def test_parts_follow_each_other_without_a_gap(op: str) -> None:
    for _, found in divided(op):
        for places in zip(*(part.where for part in found), strict=True):
            if places[0] not in (slice(None), slice(0, 0)):
                assert [p.start for p in places] == [0, *(p.stop for p in places[:-1])]


def test_a_function_that_mixes_rows_is_seen() -> None:
    (index, *_) = (i for i, (s, _) in enumerate(divided("relu_squared")) if s.name == "float64")
    assert_rows_alone(lambda x: x.square(), "relu_squared", index)
    with pytest.raises(AssertionError):
        assert_rows_alone(lambda x: x.square() / x.norm(), "relu_squared", index)


@pytest.mark.parametrize("op", sorted(RECORDS))
def test_rows_and_far_name_tensors_of_the_op(op: str) -> None:
    record = RECORDS[op]
    named = {*record.rows, *(record.far or ())}
    assert named <= {p.name for p in OPS[op].parameters if p.tensor}
    assert record.far or record.rows


def test_a_single_row_and_an_input_without_rows_have_no_parts() -> None:
    record, op = RECORDS["silu_and_mul"], OPS["silu_and_mul"]
    for shape in [(8,), (0, 8), (1, 8)]:
        assert parts(op, record, Sample("", (torch.ones(shape),))) == []
    assert [part.where for part in parts(op, record, Sample("", (torch.ones(2, 8),)))] == [
        (slice(0, 1),),
        (slice(1, 2),),
    ]


def test_a_seed_that_is_a_number_stays_that_of_the_row() -> None:
    call = Sample("", (torch.ones(3, 5),), {"seed": 2**63 - 1, "offset": 0})
    found = parts(OPS["sample"], RECORDS["sample"], call)
    assert [part.arguments["seed"] for part in found] == [2**63 - 1, -(2**63), -(2**63) + 1]
