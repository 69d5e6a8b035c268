"""Integers that torch has no room for are refused in every op, however it is called."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import hal
from hal.functions import FORMS
from hal.op import OPS, Parameter
from hal.testing.records import RECORDS
from hal.testing.subject import placed, samples
from hal.validate import check_types

BEYOND = (2**63, -(2**63) - 1, 2**64, -(10**30), 10**5000)
WITHIN = (2**63 - 1, -(2**63), 2**62, 2**53 + 1, 2**31)


def plain(parameter: Parameter) -> bool:
    return bool({int, float, Sequence} & set(parameter.types))


CASES = [
    pytest.param(name, i, id=f"{name}-{parameter.name}")
    for name, form in FORMS.items()
    for i, parameter in enumerate(form.op.parameters)
    if plain(parameter)
]


def eager(name: str, flat: list[Any]) -> None:
    FORMS[name].op.call(getattr(hal.ops, name), placed(flat, "cpu"))


def recorded(name: str, flat: list[Any]) -> None:
    """Through torch, as with a gradient that is asked for."""
    given = placed(flat, "cpu")
    if isinstance(given[0], Tensor) and given[0].is_floating_point():
        given[0].requires_grad_(not FORMS[name].inplace)
    FORMS[name].op.call(getattr(hal.ops, name), given)


def without_data(name: str, flat: list[Any]) -> None:
    FORMS[name].op.call(getattr(hal.ops, name), placed(flat, "meta"))


def fake(name: str, flat: list[Any]) -> None:
    with FakeTensorMode() as mode:
        made = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in flat]
        FORMS[name].op.call(getattr(hal.ops, name), made)


@functools.cache
def shortest(op: str) -> tuple[Any, ...]:
    """The arguments of the smallest sample that has elements in every tensor."""
    flats = [OPS[op].flatten(s.args, s.kwargs) for s in samples(RECORDS[op])]
    sizes = [[v.numel() for v in flat if isinstance(v, Tensor)] for flat in flats]
    return tuple(flats[min(range(len(flats)), key=lambda i: (0 in sizes[i], sum(sizes[i])))])


def given(name: str, i: int, value: int) -> list[Any]:
    flat = list(shortest(FORMS[name].op.name))
    flat[i] = (value,) * len(flat[i]) if isinstance(flat[i], (tuple, list)) else value
    return flat


WAYS = (eager, recorded, without_data, fake)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("name", "i"), CASES)
def test_beyond_64_bits_is_refused(
    name: str, i: int, way: Callable[[str, list[Any]], None]
) -> None:
    op = FORMS[name].op
    wide = "be a float or fit" if float in op.parameters[i].types else "fit"
    message = rf"{op.name}: \w+ must {wide} in a signed 64-bit integer; found "
    for value in BEYOND:
        with pytest.raises(hal.InvalidInput, match=message) as caught:
            way(name, given(name, i, value))
        assert f" {op.parameters[i].name} must" in str(caught.value)


@pytest.mark.parametrize("way", [without_data, fake], ids=lambda way: way.__name__)
@pytest.mark.parametrize(("name", "i"), CASES)
def test_within_64_bits_the_declaration_decides(
    name: str, i: int, way: Callable[[str, list[Any]], None]
) -> None:
    for value in WITHIN:
        flat = given(name, i, value)
        check_types(FORMS[name].op, flat)
        with contextlib.suppress(hal.InvalidInput):
            way(name, flat)


def test_an_integer_of_many_digits_is_told_by_its_bits() -> None:
    with pytest.raises(hal.InvalidInput, match="found an integer of 16610 bits"):
        hal.ops.topk_softmax(torch.zeros(2, 4), 10**5000)
