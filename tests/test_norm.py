"""The decided semantics and the laws of the normalisations, on their references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native import norm

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
LARGE = torch.finfo(torch.float16).max
BF16_ULP = torch.finfo(torch.bfloat16).eps


def by_rows(x: Tensor) -> dict[str, Tensor]:
    """Every op of the family as ``x -> rows``, with weights of 1 and residuals of 0."""
    ones, zeros = torch.ones(x.shape[-1]), torch.zeros(x.shape[-1])
    return {
        "rms_norm": norm.rms_norm(x, ones),
        "fused_add_rms_norm": norm.fused_add_rms_norm(x, torch.zeros_like(x), ones)[0],
        "gemma_rms_norm": norm.gemma_rms_norm(x, zeros),
        "gemma_fused_add_rms_norm": norm.gemma_fused_add_rms_norm(x, torch.zeros_like(x), zeros)[0],
        "layer_norm": norm.layer_norm(x, ones, zeros),
    }


OPS = list(by_rows(torch.ones(1, 1)))


@st.composite
def rows(draw: st.DrawFn, dtype: torch.dtype = torch.float32, fewest: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(fewest, 70))
    scale = draw(st.sampled_from([1e-2, 1.0, 30.0]))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def test_eps_is_inside_the_root() -> None:
    out = norm.rms_norm(torch.tensor([[1.0, 1.0]]), None, 3.0)
    assert torch.equal(out, torch.tensor([[0.5, 0.5]]))
    assert not torch.isclose(out[0, 0], torch.tensor(1 / (1 + math.sqrt(3.0))))


def test_layer_norm_eps_is_inside_the_root() -> None:
    out = norm.layer_norm(torch.tensor([[-1.0, 1.0]]), None, None, 3.0)
    assert torch.equal(out, torch.tensor([[-0.5, 0.5]]))


def test_weight_is_multiplied_before_the_rounding() -> None:
    x, weight = torch.tensor([[7.0, 1.0]]).bfloat16(), torch.tensor([1.0078125, 1.0]).bfloat16()
    out = norm.rms_norm(x, weight, 0.0)[0, 0]
    assert out == (1.4 * weight.float()).bfloat16()[0]
    assert out != (torch.tensor(1.4).bfloat16() * weight)[0]


def test_weight_is_not_rounded_to_the_dtype_of_x() -> None:
    x, weight = torch.tensor([[7.0, 1.0]]).bfloat16(), torch.tensor([1 + 2.0**-9, 1.0])
    out = norm.rms_norm(x, weight, 0.0)[0, 0]
    assert out == (1.4 * weight).bfloat16()[0]
    assert out != (1.4 * weight.bfloat16().float()).bfloat16()[0]


def test_result_has_the_dtype_of_x_whatever_the_weight() -> None:
    x, weight = torch.ones(2, 8, dtype=torch.float16), torch.ones(8, dtype=torch.float64)
    assert norm.rms_norm(x, weight).dtype == torch.float16
    assert norm.layer_norm(x, weight, weight).dtype == torch.float16
    assert norm.gemma_rms_norm(x, weight).dtype == torch.float16


@pytest.mark.parametrize("name", OPS)
def test_squares_do_not_overflow_float16(name: str) -> None:
    x = torch.tensor([[LARGE, -LARGE] * 8], dtype=torch.float16)
    assert torch.equal(by_rows(x)[name], x.sign())


@pytest.mark.parametrize("name", OPS)
def test_sums_are_not_kept_in_bfloat16(name: str) -> None:
    # A bfloat16 sum of squares stays at 256 once it gets there: the norm would be 2.8 instead of 1.
    out = by_rows(torch.tensor([[1.0, -1.0] * 1024]).bfloat16())[name]
    assert torch.equal(out.abs(), torch.ones_like(out))


def test_no_weight_is_ones() -> None:
    x = torch.randn(3, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm.rms_norm(x, None), norm.rms_norm(x, torch.ones(17)))
    ones, zeros = torch.ones(17), torch.zeros(17)
    assert torch.equal(norm.layer_norm(x, None, zeros), norm.layer_norm(x, ones, None))


@pytest.mark.parametrize("gemma", [False, True])
def test_norm_sees_the_sum_before_its_rounding(gemma: bool) -> None:
    # 256 + 1 rounds to 256 in bfloat16, which moves the second element by more than a half ulp.
    x, residual = torch.tensor([[256.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    add = norm.gemma_fused_add_rms_norm if gemma else norm.fused_add_rms_norm
    out, total = add(x.bfloat16(), residual.bfloat16(), torch.full((2,), 1.0 - gemma), 0.0)
    unrounded, rounded = (2**0.5 / math.hypot(first, 1) for first in (257, 256))
    assert out[0, 1] == torch.tensor(unrounded).bfloat16()
    assert out[0, 1] != torch.tensor(rounded).bfloat16()
    assert torch.equal(total, x.bfloat16())


def test_float32_residual_keeps_what_bfloat16_would_lose() -> None:
    x, residual = torch.tensor([[2.0**-9, 1.0]]).bfloat16(), torch.tensor([[1.0, 1.0]])
    out, total = norm.fused_add_rms_norm(x, residual, torch.ones(2))
    assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, torch.tensor([[1 + 2.0**-9, 2.0]]))


def test_float64_residual_is_added_in_float64() -> None:
    x, residual = torch.ones(1, 1), torch.full((1, 1), 2.0**-40, dtype=torch.float64)
    assert norm.fused_add_rms_norm(x, residual, torch.ones(1))[1].item() == 1 + 2.0**-40


def test_residual_beyond_float16_leaves_the_norm_finite() -> None:
    x = torch.full((1, 8), 6e4, dtype=torch.float16)
    out, total = norm.fused_add_rms_norm(x, x, torch.ones(8))
    assert torch.equal(out, torch.ones_like(out))
    assert torch.equal(total, torch.full_like(total, math.inf))


def test_gemma_adds_one_in_float32() -> None:
    x, weight = torch.tensor([[4.0, 4.0]]), torch.tensor([2.0**-10, -1.0]).bfloat16()
    assert weight[0] + 1 == 1
    expected = torch.tensor([[1 + 2.0**-10, 0.0]])
    assert torch.equal(norm.gemma_rms_norm(x, weight, 0.0), expected)
    fused, _ = norm.gemma_fused_add_rms_norm(x, torch.zeros_like(x), weight, 0.0)
    assert torch.equal(fused, expected)


def test_gemma_adds_one_in_float64_where_the_norm_is() -> None:
    weight = torch.tensor([2.0**-30])
    x = torch.full((1, 1), 4.0, dtype=torch.float64)
    assert norm.gemma_rms_norm(x, weight, 0.0).item() == 1 + 2.0**-30
    for a, b in ((x, torch.zeros(1, 1)), (torch.zeros(1, 1), x)):
        fused, _ = norm.gemma_fused_add_rms_norm(a.double(), b, weight, 0.0)
        assert fused.item() == 1 + 2.0**-30


def test_layer_norm_divides_the_variance_by_d() -> None:
    out = norm.layer_norm(torch.tensor([[-1.0, 1.0]]), None, None, 0.0)
    assert torch.equal(out, torch.tensor([[-1.0, 1.0]]))


def test_layer_norm_adds_the_bias_before_the_rounding() -> None:
    x, weight = torch.tensor([[-1.0, 1.0]]).bfloat16(), torch.tensor([1 + 2.0**-9] * 2)
    out = norm.layer_norm(x, weight, torch.tensor([1.0, -1.0]), 0.0)
    assert torch.equal(out.float(), torch.tensor([[-(2.0**-9), 2.0**-9]]))


def test_layer_norm_far_from_zero() -> None:
    # mean(x**2) - mean(x)**2 is off by more than the variance here, and a float32 mean by 1e-4.
    noise = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    x = noise + 1e4
    exact = x.double() - x.double().mean(-1, keepdim=True)
    exact = exact / exact.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(norm.layer_norm(x, None, None, 0.0).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1e4, -1 / 3])
def test_layer_norm_of_a_constant_row_is_the_bias(value: float) -> None:
    bias = torch.linspace(-1, 1, 77)
    out = norm.layer_norm(torch.full((2, 77), value), torch.ones(77), bias)
    assert torch.allclose(out, bias.expand(2, 77), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_rows_of_zeros_give_zeros(name: str) -> None:
    assert torch.equal(by_rows(torch.zeros(2, 9))[name], torch.zeros(2, 9))


def test_rows_of_zeros_without_eps_give_nan() -> None:
    assert norm.rms_norm(torch.zeros(1, 3), None, 0.0).isnan().all()
    assert norm.layer_norm(torch.zeros(1, 4), None, None, 0.0).isnan().all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_fills_its_row_and_no_other(name: str, dtype: torch.dtype) -> None:
    x = torch.ones(5, 33, dtype=dtype).cumsum(-1)
    clean = by_rows(x)[name]
    x[2, 7] = math.nan
    out = by_rows(x)[name]
    assert out[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(out[others], clean[others])


def test_infinity_gives_nan_in_its_place_and_zeros_in_its_row() -> None:
    x = torch.tensor([[1.0, math.inf, -2.0], [1.0, 1.0, 1.0]])
    out = norm.rms_norm(x, None, 0.0)
    assert torch.equal(out.isnan(), x.isinf())
    assert torch.equal(out.nan_to_num(7.0), torch.tensor([[0.0, 7.0, 0.0], [1.0, 1.0, 1.0]]))


def test_infinity_makes_a_layer_norm_row_nan() -> None:
    out = norm.layer_norm(torch.tensor([[1.0, -math.inf], [-1.0, 1.0]]), None, None, 0.0)
    assert out[0].isnan().all()
    assert torch.equal(out[1], torch.tensor([-1.0, 1.0]))


def test_a_mean_square_beyond_float32_counts_as_infinite() -> None:
    assert torch.equal(norm.rms_norm(torch.full((1, 4), 1e20), None), torch.zeros(1, 4))
    wide = norm.rms_norm(torch.full((1, 4), 1e20, dtype=torch.float64), None)
    assert torch.allclose(wide, torch.ones_like(wide))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0), (2, 0, 8), (0,)])
def test_empty_gives_empty(name: str, shape: tuple[int, ...]) -> None:
    assert by_rows(torch.zeros(shape))[name].shape == shape


@pytest.mark.parametrize("name", OPS)
def test_leading_dimensions_are_rows(name: str) -> None:
    x = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0))
    flat = by_rows(x.view(24, 9))[name]
    assert torch.equal(by_rows(x)[name], flat.view(x.shape))
    assert torch.equal(by_rows(x.view(24, 9)[5])[name], flat[5])


@pytest.mark.parametrize("name", OPS)
@LAWS
@given(data=st.data())
def test_rows_do_not_depend_on_each_other(name: str, data: st.DataObject) -> None:
    x = data.draw(rows(torch.bfloat16))
    order = data.draw(st.permutations(range(len(x))))
    whole = by_rows(x)[name]
    assert torch.equal(by_rows(x[order])[name], whole[order])
    for i in range(len(x)):
        assert torch.equal(by_rows(x[i : i + 1])[name], whole[i : i + 1])


@pytest.mark.parametrize("name", OPS)
@LAWS
@given(data=st.data())
def test_views_give_what_copies_give(name: str, data: st.DataObject) -> None:
    x = data.draw(rows())
    for view in (x.t(), x[:, ::2], x[::2], x.expand(2, *x.shape)):
        out = by_rows(view)[name]
        assert out.is_contiguous()
        copied = by_rows(view.clone(memory_format=torch.contiguous_format))[name]
        assert torch.allclose(out, copied, rtol=1e-6, atol=1e-6)


@LAWS
@given(x=rows(), exponent=st.integers(-8, 8))
def test_without_eps_powers_of_two_cancel(x: Tensor, exponent: int) -> None:
    def same(op: Callable[[Tensor], Tensor]) -> bool:
        return torch.equal(op(x * 2.0**exponent), op(x))

    assert same(lambda x: norm.rms_norm(x, None, 0.0))
    assert x.shape[-1] == 1 or same(lambda x: norm.layer_norm(x, None, None, 0.0))


@LAWS
@given(x=rows())
def test_rms_norm_is_odd(x: Tensor) -> None:
    assert torch.equal(norm.rms_norm(-x, None), -norm.rms_norm(x, None))


@LAWS
@given(x=rows())
def test_mean_square_of_the_norm_is_one(x: Tensor) -> None:
    mean_square = norm.rms_norm(x, None, 0.0).square().mean(-1)
    assert torch.allclose(mean_square, torch.ones_like(mean_square), rtol=1e-5)


@LAWS
@given(x=rows(fewest=2))
def test_layer_norm_has_mean_0_and_variance_1(x: Tensor) -> None:
    out = norm.layer_norm(x, None, None, 0.0).double()
    assert out.mean(-1).abs().max() < 1e-5
    assert (out.var(-1, correction=0) - 1).abs().max() < 1e-5


@LAWS
@given(x=rows(), shift=st.integers(-64, 64))
def test_layer_norm_does_not_see_a_shift(x: Tensor, shift: int) -> None:
    x = x.half().float()
    shifted = norm.layer_norm(x.double() + shift, None, None)
    assert torch.allclose(shifted, norm.layer_norm(x.double(), None, None), rtol=1e-9, atol=1e-9)


@LAWS
@given(x=rows())
def test_layer_norm_of_a_centred_row_is_its_rms_norm(x: Tensor) -> None:
    x = torch.cat((x, -x), dim=-1)
    out = norm.layer_norm(x, None, None, 1e-6)
    assert torch.allclose(out, norm.rms_norm(x, None, 1e-6), rtol=1e-5, atol=1e-6)


@LAWS
@given(x=rows(torch.float16), seed=st.integers(0, 2**32))
def test_fused_is_the_pair_where_the_sum_is_exact(x: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(x.shape, generator=generator).half().float()
    weight = torch.randn(x.shape[-1], generator=generator)
    for add, alone in (
        (norm.fused_add_rms_norm, norm.rms_norm),
        (norm.gemma_fused_add_rms_norm, norm.gemma_rms_norm),
    ):
        out, total = add(x.float(), residual, weight)
        assert torch.equal(total, x + residual)
        assert torch.equal(out, alone(total, weight))


@LAWS
@given(x=rows(torch.bfloat16), seed=st.integers(0, 2**32))
def test_gemma_counts_the_weight_from_one(x: Tensor, seed: int) -> None:
    weight = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(seed)).bfloat16()
    expected = norm.rms_norm(x, weight.float() + 1)
    assert torch.equal(norm.gemma_rms_norm(x, weight), expected)


@LAWS
@given(x=rows(torch.bfloat16))
def test_one_rounding(x: Tensor) -> None:
    exact = norm.rms_norm(x.double(), None)
    out = norm.rms_norm(x, None).double()
    # Half an ulp, and what float32 arithmetic adds to it near a tie.
    assert ((out - exact).abs() <= exact.abs() * BF16_ULP * 0.501).all()
