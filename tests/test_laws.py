"""The laws hold of the reference, and a kernel that breaks one is found by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.op import OPS
from hal.testing.laws import LAWS, Law, check_law
from hal.testing.laws.law import Values, near
from hal.testing.subject import memory
from hal.validate import as_tuple
from offering import NATIVE, backend, installed, kernel
from thinned import thinned

# More examples, and other ones each time, for the asking.
EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "100"))
FREE = bool(os.environ.get("LAW_FREE"))


@pytest.mark.long  # The kit asks for the laws too, with fewer examples.
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_reference_keeps(law: Law) -> None:
    assert check_law(law, examples=EXAMPLES, derandomize=not FREE) == EXAMPLES


def test_names_tell_laws_apart_and_say_what_they_are_about() -> None:
    assert len({law.name for law in LAWS}) == len(LAWS)
    assert all(set(law.ops) <= set(OPS) for law in LAWS)


def test_every_op_is_under_a_law() -> None:
    assert {op for law in LAWS for op in law.ops} == set(OPS)


# What may be wrong with the tensors that a kernel has computed.


def leaking(results: list[Tensor], calls: int) -> None:
    """The first row shows in the last one."""
    del calls
    for x in numbers(results):
        if x.dim() and len(x) > 1:
            x[-1] += x[0] / 8 + 1


def sloppy(results: list[Tensor], calls: int) -> None:
    """The last element is off."""
    del calls
    for x in numbers(results):
        if x.numel():
            x[(-1,) * x.dim()] += x[(-1,) * x.dim()].abs() / 4 + 0.5


def biased(results: list[Tensor], calls: int) -> None:
    """Everything is a little too large."""
    del calls
    for x in numbers(results):
        x.mul_(1.03)


def miscounting(results: list[Tensor], calls: int) -> None:
    """Integers are one too large at the end, codes and bytes have a bit flipped."""
    del calls
    for x in results:
        if x.numel() and (not x.dtype.is_floating_point or x.dtype.itemsize == 1):
            whole = x if x.dtype.itemsize > 1 else x.view(torch.uint8)
            whole[(-1,) * x.dim()] ^= 8


def fickle(results: list[Tensor], calls: int) -> None:
    """Every call gives something else."""
    for x in results:
        if x.dtype.is_floating_point and x.dtype.itemsize > 1:
            x += calls % 7
        elif x.dtype.itemsize > 1:
            x.add_(calls % 3)


def forgetful(results: list[Tensor], calls: int) -> None:
    """The first column stays empty."""
    del calls
    for x in numbers(results):
        x[..., :1] = 0


def untidy(results: list[Tensor], calls: int) -> None:
    """What lies between the elements holds anything."""
    del calls
    for x in results:
        kept = x.clone()
        memory(x).fill_(7)
        x.copy_(kept)


def numbers(results: list[Tensor]) -> list[Tensor]:
    return [x for x in results if x.dtype.is_floating_point and x.dtype.itemsize > 1]


FAULTS = (leaking, sloppy, biased, miscounting, forgetful, fickle, untidy)


def faulty(op: str, fault: Callable[[list[Tensor], int], None]) -> hal.Kernel:
    """The reference's kernel of ``op`` with that fault."""
    plain, calls = kernel(op).fn, 0

    def fn(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        results = plain(*args, **kwargs)
        fault([one for one in as_tuple(results) if one is not None], calls)
        return results

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return hal.Kernel(fn=fn, name="faulty")


def broken_by(law: Law, op: str, fault: Callable[[list[Tensor], int], None]) -> bool:
    with installed(NATIVE, backend("wrong", devices=None, **{op: faulty(op, fault)})):
        try:
            check_law(law, examples=60, shrink=False)
        except AssertionError as error:
            return str(error).startswith(f"{law.name}: not with ")
    return False


GRADIENTS = [law for law in LAWS if "gradient" in law.name]
VALUES = [law for law in LAWS if law not in GRADIENTS]


@pytest.mark.parametrize("law", thinned(VALUES, 2), ids=lambda law: law.name)
def test_a_fault_breaks(law: Law) -> None:
    # Whichever op has the fault: each has a part in the law.
    for op in law.ops:
        assert any(broken_by(law, op, fault) for fault in FAULTS), op


class Bent(torch.autograd.Function):
    """Passes a tensor on, and the magnitude of its gradient back."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.abs()


def bent(op: str) -> hal.Kernel:
    """A reference whose gradient is not linear: that of every kernel of the op."""
    plain = kernel(op).fn

    def fn(*args: Any, **kwargs: Any) -> Any:
        return Bent.apply(plain(*args, **kwargs))

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return hal.Kernel(fn=fn, name="bent")


@pytest.mark.parametrize("law", GRADIENTS, ids=lambda law: law.name)
def test_a_gradient_that_is_not_linear_breaks(law: Law) -> None:
    (op,) = law.ops
    offered = bent(op)
    reference = attrs.evolve(NATIVE, hooks={**NATIVE.hooks, op: lambda _: offered})
    with installed(reference), pytest.raises(AssertionError, match=f"{law.name}: not with "):
        check_law(law, examples=60, shrink=False)


def never(**drawn: Any) -> None:
    del drawn
    raise hal.NoKernel("refused")


def odd_ones_are_refused(number: int) -> None:
    if number % 2:
        raise hal.NoKernel("refused")


NUMBERS = {"number": st.integers(0, 1000)}


def test_an_example_that_is_refused_does_not_count() -> None:
    assert check_law(Law("never", (), NUMBERS, never), examples=20) == 0
    some = Law("some", (), NUMBERS, odd_ones_are_refused)
    assert check_law(some, examples=20) == 20


def small(number: int) -> None:
    assert number < 77, f"{number} is not small"


def test_the_smallest_example_that_breaks_a_law_is_told() -> None:
    with pytest.raises(AssertionError, match="small: not with number=77: 77 is not small"):
        check_law(Law("small", (), NUMBERS, small), examples=100)


def test_another_error_breaks_a_law_too() -> None:
    law = Law("divides", (), NUMBERS, lambda number: 1 / number)
    with pytest.raises(AssertionError, match="divides: not with number=0: division by zero"):
        check_law(law, examples=100)


def test_the_examples_are_the_same_each_time() -> None:
    seen: list[int] = []
    law = Law("seen", (), NUMBERS, lambda number: seen.append(number))
    assert check_law(law, examples=20) == check_law(law, examples=20)
    assert seen[:20] == seen[20:]


def test_tensors_are_made_where_a_law_is_tested() -> None:
    found: list[torch.device] = []
    law = Law("where", (), NUMBERS, lambda number: found.append(Values(number)(3).device))
    check_law(law, examples=1, device=torch.device("meta"))
    check_law(law, examples=1)
    assert [device.type for device in found] == ["meta", "cpu"]


def test_near_counts_roundings_of_the_largest() -> None:
    want = torch.tensor([1.0, 2.0**-10])
    near(want + 2.0**-24, want, 1)
    with pytest.raises(AssertionError):
        near(want + 2.0**-22, want, 1)
    near(want + 2.0**-22, want, 1, like=torch.tensor(8.0))
