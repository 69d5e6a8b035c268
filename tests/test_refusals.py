"""What is refused before a call runs, and what is said when a kernel goes wrong."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal import dispatch
from hal.functions import FORMS
from offering import NATIVE, Noting, backend, installed

X, WEIGHT = torch.linspace(-2, 2, 32).view(4, 8), torch.linspace(0.5, 1.5, 8)


@pytest.fixture
def norm() -> Iterator[Noting]:
    noting = Noting("rms_norm")
    with installed(noting.backend, NATIVE):
        yield noting


def eps_seven(norm: Noting) -> None:
    """Have plans for 1 and 1.0 at hand, which ``==`` takes for others too."""
    for eps in (1, 1.0):
        hal.ops.rms_norm(X, WEIGHT, eps)


class Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


MISTYPED: dict[str, tuple[tuple[Any, ...], str]] = {
    "bool for float": ((X, WEIGHT, True), r"rms_norm: eps must be float, not True of type bool"),
    "tensor for float": ((X, WEIGHT, torch.tensor(1.0)), r"eps must be float, not \[\] float32 of"),
    "vector for float": ((X, WEIGHT, torch.ones(2)), r"eps must be float, not \[2\] float32 of"),
    "list for float": ((X, WEIGHT, [1.0]), r"eps must be float, not \[1.0\] of type list"),
    "dict for float": ((X, WEIGHT, {}), r"eps must be float, not {} of type dict"),
    "text for float": ((X, WEIGHT, "1"), r"eps must be float, not '1' of type str"),
    "none for float": ((X, WEIGHT, None), r"eps must be float, not None of type NoneType"),
    "equal to all": ((X, WEIGHT, Equal()), r"eps must be float, not .* of type Equal"),
    "complex for float": ((X, WEIGHT, 1 + 0j), r"eps must be float, not \(1\+0j\) of type complex"),
    "list for tensor": (([1.0], WEIGHT), r"x must be Tensor, not \[1.0\] of type list"),
    "none for tensor": ((None, WEIGHT), r"x must be Tensor, not None of type NoneType"),
    "number for weight": ((X, 1.0, 1.0), r"weight must be Tensor or NoneType, not 1.0 of type"),
    "dict for weight": ((X, {}, 1.0), r"weight must be Tensor or NoneType, not {} of type dict"),
}


@pytest.mark.parametrize("case", MISTYPED)
@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
def test_an_argument_of_a_wrong_type_is_named_whatever_ran_before(
    norm: Noting, case: str, grad: bool
) -> None:
    eps_seven(norm)
    ran, (args, message) = len(norm.ran), MISTYPED[case]
    if grad and isinstance(args[0], Tensor):
        args = (X.clone().requires_grad_(), *args[1:])
    with pytest.raises(hal.InvalidType, match=message):
        hal.ops.rms_norm(*args)
    assert len(norm.ran) == ran


STARTS = torch.tensor([0, 3])
ATTENTION = (*torch.zeros(3, 3, 2, 4), STARTS, STARTS, 3, 3)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((1.0, 2), "window"),
        ((True, 2), "window"),
        ((torch.tensor(1), 2), "window"),
        (([1], 2), "window"),
        ("12", "window must be Sequence of int, not '12' of type str"),
        ((1, 2, 3), "window must be"),
    ],
)
def test_a_sequence_of_anything_but_integers_is_refused(window: Any, message: str) -> None:
    hal.ops.varlen_attention(*ATTENTION, window=(1, 2))
    with pytest.raises(hal.InvalidInput, match=rf"varlen_attention: {message}"):
        hal.ops.varlen_attention(*ATTENTION, window=window)


def test_a_list_counts_by_what_it_holds_at_each_call() -> None:
    window = [-1, -1]
    wanted = {
        left: hal.ops.varlen_attention(*ATTENTION, window=(left, -1))[1] for left in (-1, 0, 1)
    }
    for left in (-1, 0, 1, 0, -1):
        window[0] = left
        lse = hal.ops.varlen_attention(*ATTENTION, window=window)[1]
        torch.testing.assert_close(lse, wanted[left], rtol=0, atol=0)


def test_arguments_that_do_not_fit_the_signature_are_a_type_error() -> None:
    for args, kwargs in [((), {}), ((X,), {}), ((X, WEIGHT, 1.0, 2), {}), ((X, WEIGHT), {"e": 1})]:
        with pytest.raises(TypeError, match=r"^rms_norm\(\)"):
            hal.ops.rms_norm(*args, **kwargs)


def test_a_shell_completes_what_is_public() -> None:
    assert dir(hal.ops) == sorted(hal.ops.__all__)
    assert set(FORMS) < set(dir(hal.ops))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rmsnorm", "; did you mean rms_norm or "), ("silu_and_mul_", "; did you mean silu_and_mul")],
)
def test_a_misspelt_operator_is_told_of_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"'hal.ops' has no attribute '{name}'{hint}"):
        getattr(hal.ops, name)


def test_nan_is_refused_each_time() -> None:
    for _ in range(3):
        with pytest.raises(hal.InvalidInput, match="eps must be finite and not negative"):
            hal.ops.rms_norm(X, WEIGHT, float("nan"))
    assert all("nan" not in str(key) for key in FORMS["rms_norm"].plans)


OUT: dict[str, tuple[Callable[[], Any], str]] = {
    "shape": (lambda: torch.empty(4, 4), r"out is \[4, 4\] float32"),
    "broadcast": (lambda: torch.empty(2, 4, 8), r"out is \[2, 4, 8\] float32"),
    "dtype": (lambda: torch.empty(4, 8, dtype=torch.float16), r"out is \[4, 8\] float16"),
    "device": (
        lambda: torch.empty(4, 8, device="meta"),
        r"on cpu; out is \[4, 8\] float32 on meta$",
    ),
    "list": (lambda: [torch.empty(4, 8)], r"float32 on cpu; out is a list of \[4, 8\] float32$"),
    "several": (lambda: (torch.empty(4, 8), torch.empty(4, 8)), r"out is \[4, 8\] float32, \["),
    "none": (lambda: (None,), r"out is None"),
    "number": (lambda: 1.0, r"out is 1.0"),
    "expanded": (lambda: torch.empty(1, 8).expand(4, 8), r"rms_norm: out .*must not be expanded"),
    "grad": (lambda: torch.empty(4, 8, requires_grad=True), r"rms_norm: .*has no gradient"),
}


@pytest.mark.parametrize("case", OUT)
def test_out_that_does_not_fit_is_refused_before_anything_runs(norm: Noting, case: str) -> None:
    make, message = OUT[case]
    with pytest.raises(hal.InvalidInput, match=message):
        hal.ops.rms_norm(X, WEIGHT, out=make())
    assert norm.ran == []


def test_out_does_not_hold_one_tensor_for_two_results() -> None:
    out = torch.empty(4, 8)
    with pytest.raises(hal.InvalidInput, match="fused_add_rms_norm: out holds one tensor twice"):
        hal.ops.fused_add_rms_norm(X, X, WEIGHT, out=(out, out))


def test_out_of_several_results_takes_none_where_a_result_is_none() -> None:
    query, cache = torch.randn(3, 2, 4), torch.randn(8, 4)
    out = torch.empty(3, 2, 4), None
    assert hal.ops.rotary_embedding(torch.arange(3), query, None, cache, out=out) is out
    wanted, _ = hal.ops.rotary_embedding(torch.arange(3), query, None, cache)
    torch.testing.assert_close(out[0], wanted, rtol=0, atol=0)
    for bad in ((out[0],), (out[0], out[0]), out[0], (None, None)):
        with pytest.raises(hal.InvalidInput, match="rotary_embedding: out must be"):
            hal.ops.rotary_embedding(torch.arange(3), query, None, cache, out=bad)


def test_out_may_be_an_argument() -> None:
    x, wanted = X.clone(), hal.ops.rms_norm(X, WEIGHT)
    assert hal.ops.rms_norm(x, WEIGHT, out=x) is x
    torch.testing.assert_close(x, wanted, rtol=0, atol=0)


def test_writing_is_refused_where_a_gradient_is_recorded() -> None:
    x = X.clone().requires_grad_()
    for call in (
        lambda: hal.ops.rms_norm(x, WEIGHT, out=torch.empty(4, 8)),
        lambda: hal.ops.fused_add_rms_norm_(x * 1, X.clone(), WEIGHT),
        lambda: hal.ops.fused_add_rms_norm_(X.clone(), X.clone(), WEIGHT.clone().requires_grad_()),
    ):
        with pytest.raises(hal.InvalidInput, match="has no gradient; call the op without out="):
            call()
    with torch.no_grad():
        hal.ops.rms_norm(x, WEIGHT, out=torch.empty(4, 8))
        hal.ops.fused_add_rms_norm_(X.clone(), X.clone(), WEIGHT.clone().requires_grad_())


def test_a_target_whose_elements_share_memory_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(hal.InvalidInput, match="x is written to and must not be expanded"):
            hal.ops.fused_add_rms_norm_(torch.ones(1, 8).expand(4, 8), X.clone(), WEIGHT)


# Python 3.10 has no notes.
NOTES = [
    "raised by acme:broken for hal.ops.silu_and_mul; "
    "HAL_DISABLE=acme:silu_and_mul takes that kernel out"
][: sys.version_info >= (3, 11)]


def test_an_error_of_a_kernel_says_which_kernel_and_how_to_do_without() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError("inside")

    made = hal.Kernel(fn=broken, name="broken")
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        for call in (hal.ops.silu_and_mul, hal.ops.silu_and_mul, torch.ops.hal.silu_and_mul):
            with pytest.raises(ZeroDivisionError) as caught:
                call(X)
            assert str(caught.value) == "inside"
            assert getattr(caught.value, "__notes__", []) == NOTES


def test_a_later_error_of_a_kernel_that_has_a_plan_has_the_note_once() -> None:
    fails: list[bool] = []

    def moody(x: Tensor) -> Tensor:
        if fails:
            raise ZeroDivisionError
        return x[..., :4].clone()

    made = hal.Kernel(fn=moody, name="broken")
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        hal.ops.silu_and_mul(X)
        fails.append(True)
        with pytest.raises(ZeroDivisionError) as caught:
            hal.ops.silu_and_mul(X)
    assert getattr(caught.value, "__notes__", []) == NOTES


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: x.new_empty(4, 5),
    "dtype": lambda x: x.new_empty(4, 4, dtype=torch.float64),
    "device": lambda x: torch.empty(4, 4, device="meta"),
    "strides": lambda x: x.new_empty(4, 4).t(),
    "none": lambda x: None,
    "tuple": lambda x: (x.new_empty(4, 4), x),
    "number": lambda x: 1.0,
}


@pytest.mark.parametrize("case", WRONG)
def test_results_that_are_not_as_declared_are_an_error_of_the_backend(case: str) -> None:
    def fn(x: Tensor) -> Tensor:
        return WRONG[case](x)

    made = hal.Kernel(fn=fn, name="wrong")
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        for _ in range(2):
            with pytest.raises(hal.BackendError, match=r"silu_and_mul: acme:wrong returned"):
                hal.ops.silu_and_mul(X)


def test_results_are_checked_once_for_each_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    genuine = dispatch.check_results
    monkeypatch.setattr(
        dispatch, "check_results", lambda op, *rest: (checked.append(op), genuine(op, *rest))
    )
    with installed(NATIVE):
        for _ in range(3):
            hal.ops.silu_and_mul(X)
            hal.ops.silu_and_mul(X[:2])
    assert len(checked) == 2


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(hal.InvalidInput, match="x on cpu, weight on meta"):
        hal.ops.rms_norm(X, WEIGHT.to("meta"))


def test_a_sparse_tensor_is_refused() -> None:
    refusal = pytest.raises(hal.InvalidInput, match="must be a dense tensor, not sparse_coo")
    for call in hal.ops.silu_and_mul, functools.partial(hal.explain, "silu_and_mul"):
        with refusal:
            call(torch.eye(4).to_sparse())
    with refusal:
        hal.ops.rms_norm(torch.eye(4), torch.eye(4).to_sparse())
