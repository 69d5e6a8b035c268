"""The decided semantics and the laws of the activations, on their references."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal_native.activation import (
    gelu_and_mul,
    gelu_tanh_and_mul,
    mul_add,
    quick_gelu,
    relu_squared,
    silu_and_mul,
    swigluoai_and_mul,
)

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
INF, NAN = math.inf, math.nan
numbers = st.integers(-64, 64).map(lambda n: n / 4)
vectors = st.lists(numbers, min_size=1, max_size=40).map(torch.tensor)


def gated(gate: float, up: float, **limits: float) -> float:
    return swigluoai_and_mul(torch.tensor([gate, up]).double(), **limits).item()


# gelu_and_mul


def test_the_largest_gates_pass_whatever_the_layout() -> None:
    for gate in (INF, 3e38, 2e38):
        x = torch.cat((torch.full((2, 64), gate), torch.full((2, 64), 1.0)), dim=-1)
        for rows in (x, x[:1], x[0], x.t().contiguous().t()):
            assert (hal.ops.gelu_and_mul(rows) == gate).all()


# silu_and_mul, gelu_and_mul, gelu_tanh_and_mul


GATES = pytest.mark.parametrize("op", [silu_and_mul, gelu_and_mul, gelu_tanh_and_mul])


@GATES
def test_the_first_half_is_the_gate(op: Callable[[Tensor], Tensor]) -> None:
    # A gate of -50 closes, one of 50 passes what is beside it.
    assert op(torch.tensor([-50.0, 50.0, 2.0, 3.0])).tolist() == [pytest.approx(0), 150]
    assert op(torch.tensor([2.0, 3.0, -50.0, 50.0])).abs().min() > 80


def test_gelu_has_the_form_of_its_name() -> None:
    gate = torch.tensor([2.0, -2.0], dtype=torch.float64)
    x = torch.cat((gate, torch.ones_like(gate)))
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    torch.testing.assert_close(gelu_and_mul(x), gate / 2 * (1 + torch.erf(gate / math.sqrt(2))))
    torch.testing.assert_close(gelu_tanh_and_mul(x), gate / 2 * (1 + torch.tanh(inner)))
    assert not torch.allclose(gelu_and_mul(x), gelu_tanh_and_mul(x), rtol=1e-4)


@GATES
def test_nan_stays_in_its_place(op: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(2, 6)
    x[0, 1] = x[1, 5] = NAN
    assert op(x).isnan().tolist() == [[False, True, False], [False, False, True]]


# swigluoai_and_mul


def test_gate_and_up_take_turns() -> None:
    # Halves would have 0 and 5 for gates, up before gate 5 and 3.
    out = swigluoai_and_mul(torch.tensor([0.0, 5.0, 2.0, 3.0]))
    assert out.tolist() == [0, pytest.approx(4 * 2 / (1 + math.exp(-3.404)))]


def test_the_gate_is_clamped_from_above_only() -> None:
    assert gated(100, 0) == pytest.approx(7 / (1 + math.exp(-1.702 * 7)))
    assert gated(-20, 0, alpha=0.1, limit=1.0) == pytest.approx(-20 / (1 + math.exp(2)))


def test_the_other_half_is_clamped_on_both_sides() -> None:
    one = 1 / (1 + math.exp(-1.702))
    assert gated(1, 100) == pytest.approx(8 * one)
    assert gated(1, -100) == pytest.approx(-6 * one)


def test_one_is_added_after_the_clamp_and_alpha_scales_the_gate_inside_the_sigmoid() -> None:
    assert gated(2, 3, limit=3.0) == pytest.approx(4 * 2 / (1 + math.exp(-3.404)))
    assert gated(2, 3, alpha=0.0) == pytest.approx(4)


def test_a_clamp_keeps_nan() -> None:
    out = swigluoai_and_mul(torch.tensor([NAN, 1.0, 1.0, NAN, 1.0, 1.0]))
    assert out.isnan().tolist() == [True, True, False]


def test_an_infinite_limit_does_not_clamp() -> None:
    assert gated(50, 60, limit=INF) == pytest.approx(61 * 50)
    assert gated(INF, 1) == pytest.approx(14, rel=1e-4)


@given(x=vectors)
@LAWS
def test_without_clamp_and_scale_it_is_silu_and_mul_of_one_more(x: Tensor) -> None:
    gate, up = x, x.flip(0)
    halves = torch.cat([gate, up + 1])
    out = swigluoai_and_mul(torch.stack([gate, up], -1).flatten(), 1.0, INF)
    torch.testing.assert_close(out, hal.ops.silu_and_mul(halves))


# relu_squared, quick_gelu


def test_squared_relu_squares_after_the_cut_and_keeps_nan() -> None:
    out = relu_squared(torch.tensor([-3.0, -0.0, 0.5, NAN, INF, -INF]))
    assert torch.equal(out.nan_to_num(7.0, INF), torch.tensor([0, 0, 0.25, 7, INF, 0]))


def test_quick_gelu_has_the_factor_of_the_paper() -> None:
    x = torch.tensor([1.0, -2.0]).double()
    assert torch.allclose(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)), rtol=1e-14)
    assert quick_gelu(torch.tensor([-1e30, 1e30])).tolist() == [0, pytest.approx(1e30)]


@given(x=vectors)
@LAWS
def test_quick_gelu_of_both_signs_sums_to_x_and_squared_relus_to_its_square(x: Tensor) -> None:
    # sigmoid(a) + sigmoid(-a) = 1
    torch.testing.assert_close(quick_gelu(x) - quick_gelu(-x), x, rtol=1e-6, atol=1e-6)
    assert torch.equal(relu_squared(x) + relu_squared(-x), x * x)


@pytest.mark.parametrize(
    "function",
    [
        silu_and_mul,
        gelu_and_mul,
        gelu_tanh_and_mul,
        swigluoai_and_mul,
        relu_squared,
        quick_gelu,
        lambda x: mul_add(x, x, 0.3),
    ],
)
def test_no_rounding_but_the_last(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(function(x), function(x.float()).bfloat16())
    assert torch.equal(function(x.half()), function(x.half().float()).half())


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("relu_squared", lambda x: 2 * x.clamp(min=0)),
        ("quick_gelu", lambda x: (s := (1.702 * x).sigmoid()) * (1 + 1.702 * x * (1 - s))),
    ],
)
def test_gradients(name: str, slope: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[-3.0, -1.0, 0.0], [0.5, 1.0, 4.0]], dtype=torch.float64, requires_grad=True)
    op: Any = getattr(hal.ops, name)
    (grad,) = torch.autograd.grad(op(x).sum(), x)
    torch.testing.assert_close(grad, slope(x.detach()))


# mul_add


def test_y_is_added_and_never_written() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    assert mul_add(x, y, 2.0).tolist() == [12, 24, 36]
    assert hal.ops.mul_add_(x, y, 2.0) is x
    assert (x.tolist(), y.tolist()) == ([12, 24, 36], [10, 20, 30])


def test_scale_and_product_are_not_rounded_to_the_dtype() -> None:
    # 1.0029296875 is 1 in bfloat16; the product of two bfloat16 numbers needs 16 bits.
    x = torch.tensor([1.0, 1.0078125]).bfloat16()
    assert mul_add(x, -x, 1.0029296875).tolist()[0] == 0.0029296875
    assert mul_add(x, torch.full_like(x, -1.015625), 1.0078125).tolist()[1] == 2**-14


def test_a_float64_y_has_the_product_in_float64() -> None:
    # In float32 0.1 is more than 0.1 by 1.5e-9.
    x, y = torch.ones(1), torch.tensor([-0.1], dtype=torch.float64)
    assert mul_add(x, y, 0.1).tolist() == [0]
    assert mul_add(x.double(), y.float(), 0.1).item() == 0.1 + y.float().item()


def test_every_element_of_an_odd_size_is_computed_and_nothing_beyond_it() -> None:
    memory = torch.ones(20, dtype=torch.bfloat16)
    x = memory[1:12]
    hal.ops.mul_add_(x, torch.ones(11), 2.0)
    assert memory.tolist() == [1] + [3] * 11 + [1] * 8


def test_the_product_may_exceed_float16() -> None:
    x = torch.tensor([6e4]).half()
    assert mul_add(x, -x, 1.5).item() == 3e4


@given(x=vectors, scale=numbers)
@LAWS
def test_mul_add_is_linear_where_all_is_exact(x: Tensor, scale: float) -> None:
    y = x.flip(0)
    assert torch.equal(mul_add(x, y, scale), x * scale + y)
    assert torch.equal(mul_add(x, y, 1.0), mul_add(y, x, 1.0))
    assert torch.equal(mul_add(x, y, 0.0), y)


# The gated activations


@pytest.mark.parametrize("size", [1, 8, 63])
@pytest.mark.parametrize("op", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
def test_an_infinite_gate_passes_the_other_half(op: str, size: int) -> None:
    # torch's GELU of contiguous float32 says NaN.
    gate, up = torch.full((size,), INF), torch.full((size,), -2.0)
    assert getattr(hal.ops, op)(torch.cat((gate, up))).tolist() == [-INF] * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_limit_beyond_the_numbers_does_not_clamp(dtype: torch.dtype) -> None:
    x = torch.tensor([[9.0, 8.0, -3.0, -60.0]], dtype=dtype)
    assert torch.equal(swigluoai_and_mul(x, 1.7, 1e300), swigluoai_and_mul(x, 1.7, math.inf))
