"""What an op, a kernel and an error of hal are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import hal
from hal import errors
from hal.checks import check, check_dtype, check_floating, check_shape, describe
from hal.op import OPS, Op, op
from hal.validate import validate

X = torch.zeros(2, 4)


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """Forget what a test declares."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


def made(**traits: Any) -> Op:
    @op(**traits)
    def scaled(
        x: Tensor, by: Tensor | float, axes: Sequence[int] = (0,), *, rows: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        check_floating(x=x)
        return torch.empty_like(x), None

    assert list(OPS)[-1] == scaled.__name__
    return OPS["scaled"]


def test_a_declaration_is_read_from_its_signature() -> None:
    declaration = made()
    facts = [(p.name, p.types, p.keyword_only) for p in declaration.parameters]
    assert facts == [
        ("x", (Tensor,), False),
        ("by", (Tensor, float), False),
        ("axes", (Sequence,), False),
        ("rows", (int, type(None)), True),
    ]
    assert [p.tensor for p in declaration.parameters] == [True, True, False, False]
    assert [p.union for p in declaration.parameters] == [False, True, False, False]
    assert (declaration.positional, declaration.keywords) == (3, ("rows",))
    assert declaration.results == (Tensor, Tensor | None)
    assert repr(declaration).startswith("scaled(x: 'Tensor', by: ")


def test_a_single_result_is_not_a_tuple() -> None:
    @op
    def halved(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    assert OPS["halved"].results is None
    assert not OPS["halved"].grad
    assert halved(X).shape == X.shape


def test_traits_of_a_declaration() -> None:
    declaration = made(inplace=("by", "x"), grad=True)
    assert declaration.overwritten == (1, 0)
    assert declaration.grad
    assert made(mutates=("x",)).overwritten == (0,)


def test_arguments_become_flat_with_defaults_and_come_back_as_given() -> None:
    declaration = made()
    flat = declaration.flatten((X,), {"rows": 3, "by": 2.0})
    assert flat[1:] == [2.0, (0,), 3]
    assert flat[0] is X

    def call(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert declaration.call(call, flat) == ((X, 2.0, (0,)), {"rows": 3})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((X, 1.0, (0,), 3), {}, "too many positional arguments"),
        ((X, 1.0), {"row": 3}, "got an unexpected keyword argument 'row'"),
        ((X, 1.0), {"x": X}, "multiple values for argument 'x'"),
    ],
)
def test_arguments_that_do_not_fit(args: Any, kwargs: Any, message: str) -> None:
    declaration = made()
    with pytest.raises(hal.InvalidType) as caught:
        declaration.flatten(args, kwargs)
    assert str(caught.value) == f"scaled{declaration.signature}: {message}"


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ([None, 1.0, (), None], "scaled: x must be Tensor, not None of type NoneType"),
        ([X, "2", (), None], "scaled: by must be Tensor or float, not '2' of type str"),
        ([X, True, (), None], "scaled: by must be Tensor or float, not True of type bool"),
        ([X, 2, 0, None], "scaled: axes must be Sequence of int, not 0 of type int"),
        ([X, 2, "01", None], "scaled: axes must be Sequence of int, not '01' of type str"),
        ([X, 2, [0], 1.5], "scaled: rows must be int or NoneType, not 1.5 of type float"),
    ],
)
def test_arguments_of_other_types(flat: list[Any], message: str) -> None:
    with pytest.raises(hal.InvalidType) as caught:
        validate(made(), flat)
    assert str(caught.value) == message


def test_errors_of_a_declaration_open_with_its_name() -> None:
    declaration = made()
    with pytest.raises(hal.InvalidInput, match=r"^scaled: x must be floating point; x is"):
        declaration.contract(X.int(), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check(False, "k must be small", k=9), "k must be small; k is 9"),
        (lambda: check(False, "too much"), "too much"),
        (
            lambda: check(False, "x and y differ", x=X, y=X.half()),
            "x and y differ; x is [2, 4] float32, y is [2, 4] float16",
        ),
        (
            lambda: check_dtype([torch.int32, torch.int64], ids=X),
            "ids must be int32 or int64; ids is [2, 4] float32",
        ),
        (
            lambda: check_floating(x=X.to(torch.float8_e4m3fn)),
            "x must be floating point of 16 bits or more; x is [2, 4] float8_e4m3fn",
        ),
        (lambda: check_shape([4], w=X), "w must have shape [4]; w is [2, 4] float32"),
    ],
)
def test_checks_say_what_was_found(call: Any, message: str) -> None:
    with pytest.raises(hal.InvalidInput) as caught:
        call()
    assert str(caught.value) == message


def test_checks_let_pass_what_fits_and_what_is_not_given() -> None:
    check(True, "never said", x=X)
    check_dtype([torch.float32], x=X, y=None)
    check_floating(x=X, y=X.bfloat16(), z=None)
    check_shape((2, 4), x=X, y=None)
    assert (describe(X[0]), describe(3)) == ("[4] float32", "3")


def test_a_kernel_claims_nothing_by_itself() -> None:
    kernel = hal.Kernel(fn=len, name="len_2.0+cu-1")
    traits = "graph_safe", "deterministic", "batch_invariant", "pdl"
    assert [getattr(kernel, trait) for trait in traits] == [False] * 4
    assert (kernel.supports, kernel.inplace) == (None, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        kernel.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fn": "len"}, TypeError, "'fn' must be callable"),
        ({"fn": None}, TypeError, "'fn' must be callable"),
        ({"name": "two words"}, ValueError, "'name' must match"),
        ({"name": "a:b"}, ValueError, "'name' must match"),
        ({"name": ""}, ValueError, "'name' must match"),
        ({"name": 3}, TypeError, "expected string"),
        ({"supports": "float16"}, TypeError, "'supports' must be callable"),
        ({"inplace": True}, TypeError, "'inplace' must be callable"),
        *[
            ({trait: 1}, TypeError, f"'{trait}' must be <class 'bool'>")
            for trait in ("graph_safe", "deterministic", "batch_invariant", "pdl")
        ],
        ({"fast": True}, TypeError, "unexpected keyword argument 'fast'"),
    ],
)
def test_a_kernel_that_is_none(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hal.Kernel(**({"fn": len, "name": "len"} | changes))
    with pytest.raises(TypeError, match="positional"):
        hal.Kernel(len, "len")  # type: ignore[misc]


def test_the_tree_of_errors() -> None:
    tree = {
        hal.HalError: (Exception,),
        hal.InvalidInput: (hal.HalError, ValueError),
        hal.InvalidType: (hal.InvalidInput, TypeError),
        hal.NoKernel: (hal.HalError, RuntimeError),
        hal.BackendError: (hal.HalError, RuntimeError),
    }
    assert {error: error.__bases__ for error in tree} == tree
    assert {error.__name__ for error in tree} == set(errors.__all__)
    drawn = inspect.getdoc(errors) or ""
    for error, (*_, base) in tree.items():
        assert error is hal.HalError or f"{error.__name__}({base.__name__})" in drawn
