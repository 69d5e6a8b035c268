"""Every op on its share of the random cases, against float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import hal
from hal.op import OPS
from hal.testing.cases import CASES, SHARES, case
from hal.testing.compare import assert_close
from hal.testing.records import RECORDS
from hal.validate import as_tuple


def compare(op: str, seed: int) -> None:
    """Hold the case of ``seed`` against its oracle."""
    sample, record = case(op, seed), RECORDS[op]
    with np.errstate(all="ignore"):
        expected = as_tuple(record.oracle(*sample.args, **sample.kwargs))
    found = as_tuple(getattr(hal.ops, op)(*sample.args, **sample.kwargs))
    assert [got is None for got in found] == [want is None for want in expected]
    for got, want in zip(found, expected, strict=True):
        if got is not None:
            assert_close(got, want, record.gates.get(got.dtype, 0.0))


def test_every_op_has_random_cases() -> None:
    assert set(CASES) == set(SHARES) == set(OPS)


def test_a_run_has_100_000_cases() -> None:
    assert sum(SHARES.values()) >= 100_000


@pytest.mark.parametrize("op", CASES)
def test_random_cases(op: str) -> None:
    for seed in range(SHARES[op]):
        try:
            compare(op, seed)
        except Exception as error:
            raise AssertionError(f"hal.testing.cases.case({op!r}, {seed})") from error


def tensors(op: str, seed: int) -> list[Tensor]:
    sample = case(op, seed)
    values = (*sample.args, *sample.kwargs.values())
    return [value for value in values if isinstance(value, Tensor)]


@pytest.mark.parametrize("op", CASES)
def test_a_seed_is_a_case(op: str) -> None:
    torch.manual_seed(1)
    first = [tensors(op, seed) for seed in range(20)]
    torch.manual_seed(2)
    again = [tensors(op, seed) for seed in range(20)]
    for one, other in zip(first, again, strict=True):
        for x, y in zip(one, other, strict=True):
            assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())
            same = [t.double() for t in (x, y)]
            assert torch.equal(*[t.nan_to_num(77.5) for t in same])


@pytest.mark.parametrize("op", CASES)
def test_cases_differ_in_what_a_kernel_may_overlook(op: str) -> None:
    drawn = [tensors(op, seed) for seed in range(200)]
    assert len({tuple(x.shape for x in each) for each in drawn}) > 20
    assert any(not x.is_contiguous() for each in drawn for x in each)
    assert any(x.numel() == 0 for each in drawn for x in each)


def short_tail(x: Tensor) -> Tensor:
    """A kernel that forgets the last column of 8 n + 1."""
    result = hal.ops.relu_squared(x)
    if x.dim() and x.shape[-1] % 8 == 1:
        result[..., -1] = 0
    return result


def contiguous_only(x: Tensor) -> Tensor:
    """A kernel that takes every other column for all of them."""
    return hal.ops.relu_squared(x.as_strided(x.shape, x.contiguous().stride()))


def finite_only(x: Tensor) -> Tensor:
    return hal.ops.relu_squared(x.nan_to_num())


@pytest.mark.parametrize("kernel", [short_tail, contiguous_only, finite_only])
def test_a_fault_is_found(kernel: Callable[[Tensor], Tensor]) -> None:
    record = RECORDS["relu_squared"]
    given = [case("relu_squared", seed).args[0] for seed in range(SHARES["relu_squared"])]
    results = [(kernel(x), record.oracle(x), record.gates[x.dtype]) for x in given]
    with pytest.raises(AssertionError):
        all(assert_close(*one) is None for one in results)
