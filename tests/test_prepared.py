"""Kernels in two parts: the first is done once for calls that are alike."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from offering import NATIVE, backend, installed

prepared: list[tuple[int, ...]] = []


@hal.prepared
def silu_and_mul(x: Tensor) -> Any:
    prepared.append(tuple(x.shape))
    half = x.shape[-1] // 2
    return lambda x: x[..., :half].clone(memory_format=torch.contiguous_format)


@hal.prepared
def mul_add_(x: Tensor, y: Tensor, scale: float) -> Any:
    prepared.append(tuple(x.shape))
    doubled = 2 * scale
    return lambda x, y, scale: x.mul_(doubled)


def mul_add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x * scale + y


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    prepared.clear()


def kernels() -> Any:
    offered = {
        "silu_and_mul": hal.Kernel(fn=silu_and_mul, name="k"),
        "mul_add": hal.Kernel(fn=mul_add, inplace=mul_add_, name="k"),
    }
    return installed(backend("other", devices=None, **offered), NATIVE)


def test_it_is_prepared_once_for_calls_that_are_alike() -> None:
    with kernels():
        for rows in (2, 2, 3, 2, 3):
            x = torch.randn(rows, 8)
            assert torch.equal(hal.ops.silu_and_mul(x), x[:, :4])
    assert prepared == [(2, 8), (3, 8)]


def test_strides_and_dtypes_are_not_alike() -> None:
    with kernels():
        for x in (torch.ones(4, 8), torch.ones(8, 4).t(), torch.ones(4, 8).half()):
            hal.ops.silu_and_mul(x)
    assert len(prepared) == 3


def test_so_is_the_form_in_place_for_its_plain_values() -> None:
    with kernels():
        for scale in (0.5, 0.5, 1.0):
            x = torch.ones(2)
            assert hal.ops.mul_add_(x, x.clone(), scale) is x
            assert x.tolist() == [2 * scale] * 2
    assert len(prepared) == 2


def test_both_parts_in_one_call() -> None:
    x = torch.randn(2, 8)
    assert torch.equal(silu_and_mul(x), x[:, :4])
    assert inspect.signature(silu_and_mul) == inspect.signature(silu_and_mul.prepare)


def test_compiled_code_runs_what_was_prepared() -> None:
    x = torch.randn(2, 8)
    with kernels():
        compiled = torch.compile(hal.ops.silu_and_mul, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            assert torch.equal(compiled(x), x[:, :4])
    assert prepared == [(2, 8)]


def test_the_first_part_is_blamed_too() -> None:
    @hal.prepared
    def broken(x: Tensor) -> Any:
        raise RuntimeError("no configuration")

    kernel = hal.Kernel(fn=broken, name="k")
    with (
        installed(backend("other", devices=None, silu_and_mul=kernel), NATIVE),
        pytest.raises(RuntimeError, match="no configuration") as caught,
    ):
        hal.ops.silu_and_mul(torch.ones(2, 8))
    assert any("other:k" in note for note in getattr(caught.value, "__notes__", ["other:k"]))
