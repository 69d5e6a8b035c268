"""Every op on every sample: numerics, purity, forms, shapes without data, torch's own checks."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import hal
from hal.functions import FORMS
from hal.op import OPS
from hal.testing.compare import assert_close
from hal.testing.record import Refusal, Sample
from hal.testing.records import RECORDS
from hal.validate import as_tuple


@functools.cache
def samples(op: str) -> list[Sample]:
    return list(RECORDS[op].samples())


def cases() -> list[Any]:
    return [
        pytest.param(op, i, id=f"{op}-{i}-{sample.name}".replace("[", "(").replace("]", ")"))
        for op in RECORDS
        for i, sample in enumerate(samples(op))
    ]


# Families whose forms and registrations are tried on every sixth sample, unless all are asked for:
# numerics, which depend on values, are tried on each.
THINNED = {"experts", "gemv", "int4", "matmul", "mla", "moe", "quant", "quant_fused"}


def thinned() -> list[Any]:
    every = bool(os.environ.get("EVERY_SAMPLE"))

    def kept(op: str, index: int) -> bool:
        family = OPS[op].contract.__module__.rpartition(".")[2]
        return every or family not in THINNED or index % 6 == 0

    return [case for case in cases() if kept(*case.values)]


def fresh(sample: Sample) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a sample that a test may overwrite, with strides and sharing kept."""
    return copy.deepcopy(list(sample.args)), copy.deepcopy(sample.kwargs)


def tensors(results: Any) -> list[Tensor]:
    return [result for result in as_tuple(results) if result is not None]


def flat(op: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    return OPS[op].flatten(args, kwargs)


def test_every_op_has_a_record_with_enough_samples() -> None:
    assert set(RECORDS) == set(OPS)
    assert all(len(samples(op)) >= 30 for op in OPS), {op: len(samples(op)) for op in OPS}


@pytest.mark.parametrize(("op", "index"), cases())
def test_numerics_and_purity(op: str, index: int) -> None:
    sample, record = samples(op)[index], RECORDS[op]
    args, kwargs = fresh(sample)
    before = [value.clone() for value in flat(op, args, kwargs) if isinstance(value, Tensor)]
    results = tensors(getattr(hal.ops, op)(*args, **kwargs))
    expected = tensors(record.oracle(*sample.args, **sample.kwargs))
    assert len(results) == len(expected)
    for result, want in zip(results, expected, strict=True):
        assert_close(result, want, record.gates.get(result.dtype, 0.0))
    written = [args_name in OPS[op].mutates for args_name in OPS[op].signature.parameters]
    names = [
        not w
        for w, value in zip(written, flat(op, args, kwargs), strict=True)
        if isinstance(value, Tensor)
    ]
    after = [value for value in flat(op, args, kwargs) if isinstance(value, Tensor)]
    for kept, old, new in zip(names, before, after, strict=True):
        if kept:
            torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("op", "index"), thinned())
def test_results_are_as_declared_on_fake_and_meta_tensors(op: str, index: int) -> None:
    args, kwargs = fresh(samples(op)[index])
    real = tensors(getattr(hal.ops, op)(*args, **kwargs))
    with FakeTensorMode() as mode:
        fake_args = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        fake_kwargs = {
            k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()
        }
        fakes = tensors(getattr(hal.ops, op)(*fake_args, **fake_kwargs))
    for fake, result in zip(fakes, real, strict=True):
        assert (fake.shape, fake.dtype, fake.device) == (result.shape, result.dtype, result.device)
        if result.numel():
            assert fake.stride() == result.stride()


def shares_memory(target: Any) -> bool:
    """Whether several elements have one place, as in an expanded tensor."""
    sizes = target.shape if isinstance(target, Tensor) else ()
    return (
        any(size > 1 and stride == 0 for size, stride in zip(sizes, target.stride(), strict=True))
        if sizes
        else False
    )


def functional() -> list[Any]:
    return [case for case in thinned() if not OPS[case.values[0]].mutates]


@pytest.mark.parametrize(("op", "index"), functional())
def test_out_equals_functional_and_is_fully_written(op: str, index: int) -> None:
    args, kwargs = fresh(samples(op)[index])
    function = getattr(hal.ops, op)
    want = function(*args, **kwargs)
    poison = [None if w is None else torch.full_like(w, 77) for w in as_tuple(want)]
    out = poison[0] if isinstance(want, Tensor) else tuple(poison)
    assert function(*args, **kwargs, out=out) is out
    for got, expected in zip(tensors(out), tensors(want), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("op", "index"), [case for case in thinned() if OPS[case.values[0]].inplace]
)
def test_inplace_equals_functional(op: str, index: int) -> None:
    want = getattr(hal.ops, op)(*fresh(samples(op)[index])[0], **fresh(samples(op)[index])[1])
    args, kwargs = fresh(samples(op)[index])
    targets = [flat(op, args, kwargs)[i] for i in OPS[op].overwritten]
    if any(shares_memory(target) for target in targets):
        with pytest.raises(hal.InvalidInput, match="must not be expanded"):
            getattr(hal.ops, f"{op}_")(*args, **kwargs)
        return
    results = as_tuple(getattr(hal.ops, f"{op}_")(*args, **kwargs))
    assert all(result is target for result, target in zip(results, targets, strict=True))
    for got, expected in zip(tensors(results), tensors(want), strict=True):
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=0, equal_nan=True)


def finite(value: Any) -> Any:
    """Opcheck compares without regard for NaN; what it looks at does not depend on values."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return value
    if value.dtype.itemsize == 1:  # It has no arithmetic of its own.
        return value if shares_memory(value) else value.copy_(value.float().nan_to_num(1, 1, 1))
    broken = ~value.isfinite()
    return value.masked_fill_(broken, 1) if not shares_memory(value) else value.nan_to_num(1, 1, 1)


CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def checks(arguments: list[Any]) -> tuple[str, ...]:
    """The check of the schema compares clones of all arguments, which torch cannot for 8 bits.

    What it looks for, a mutation that is not declared, ``test_numerics_and_purity`` looks for too.
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    eight = any(t.dtype.is_floating_point and t.dtype.itemsize == 1 for t in tensors)
    return CHECKS[1:] if eight else CHECKS


@pytest.mark.parametrize(("op", "index"), thinned())
def test_opcheck(op: str, index: int) -> None:
    args, kwargs = fresh(samples(op)[index])
    for form in FORMS.values():
        if form.op.name != op:
            continue
        if form.inplace and any(
            shares_memory(flat(op, args, kwargs)[i]) for i in form.op.overwritten
        ):
            continue
        arguments = hal.schema.split(form.op, flat(op, args, kwargs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            overload = getattr(torch.ops.hal, form.name).default
            opcheck(overload, tuple(map(finite, arguments)), test_utils=checks(arguments))


def refusals() -> list[Any]:
    return [
        pytest.param(op, refusal, id=f"{op}-{i}")
        for op, record in RECORDS.items()
        for i, refusal in enumerate(record.refusals())
    ]


@pytest.mark.parametrize(("op", "refusal"), refusals())
def test_bad_input_is_refused_before_anything_runs(op: str, refusal: Refusal) -> None:
    with hal.trace() as records, pytest.raises(hal.InvalidInput, match=refusal.message) as caught:
        getattr(hal.ops, op)(*refusal.args, **refusal.kwargs)
    assert str(caught.value).startswith(op)
    assert records == []


def test_a_sparse_tensor_is_refused() -> None:
    refusal = pytest.raises(hal.InvalidInput, match="must be a dense tensor, not sparse_coo")
    for call in hal.ops.silu_and_mul, functools.partial(hal.explain, "silu_and_mul"):
        with refusal:
            call(torch.eye(4).to_sparse())
    with refusal:
        hal.ops.rms_norm(torch.eye(4), torch.eye(4).to_sparse())
