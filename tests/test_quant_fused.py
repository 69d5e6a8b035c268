"""The decided semantics and the laws of the fused quantisers, on their references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native.activation import silu_and_mul
from hal_native.norm import fused_add_rms_norm, rms_norm
from hal_native.quant import dequantize, per_tensor_quant, per_token_group_quant, per_token_quant
from hal_native.quant_fused import fused_add_rms_norm_quant, rms_norm_quant, silu_and_mul_quant

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
INT8 = torch.int8
STATIC = torch.tensor([0.03])
HALF = torch.float16

ways = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2, INT8]),
        "group_size": st.sampled_from([16, 32, 64, 128]),
        "scale_layout": st.sampled_from(["row", "column", "tma"]),
        "ue8m0": st.booleans(),
    }
)


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), 2 * draw(st.integers(1, 150))
    return torch.randn(shape, generator=generator) * draw(st.sampled_from([1e-2, 1.0, 30.0]))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert got.stride() == want.stride()
        assert torch.equal(
            *(x.view(torch.uint8) if x.element_size() == 1 else x for x in (got, want))
        )


def unfused(x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The quantiser that the parameters of a fused op stand for."""
    if "scale" in kwargs:
        return per_tensor_quant(x, **kwargs)
    if "group_size" in kwargs:
        return per_token_group_quant(x, **kwargs)
    return per_token_quant(x, **kwargs)


@LAWS
@given(rows(), ways)
def test_in_float32_the_fused_forms_are_the_pairs(x: Tensor, kwargs: dict[str, Any]) -> None:
    weight = torch.linspace(0.5, 1.5, x.shape[-1])
    for way in (kwargs, {"scale": STATIC, "dtype": kwargs["dtype"]}, {"dtype": kwargs["dtype"]}):
        assert_same(silu_and_mul_quant(x, **way), unfused(silu_and_mul(x), way))
        assert_same(rms_norm_quant(x, weight, **way), unfused(rms_norm(x, weight), way))
        normed, total = fused_add_rms_norm(x, x.flip(0), weight)
        found = fused_add_rms_norm_quant(x, x.flip(0), weight, **way)
        assert_same(found, (*unfused(normed, way), total))


@LAWS
@given(rows(), ways)
def test_rows_do_not_depend_on_each_other(x: Tensor, kwargs: dict[str, Any]) -> None:
    kwargs = kwargs | {"scale_layout": "row"}
    q, scale = rms_norm_quant(x, None, **kwargs)
    for i, row in enumerate(x):
        assert_same(rms_norm_quant(row, None, **kwargs), (q[i], scale[i]))


def test_the_product_is_not_rounded_before_it_is_quantised() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = silu_and_mul_quant(x, dtype=INT8)
    assert_same(found, per_token_quant(silu_and_mul(x.float()), dtype=INT8))
    assert not torch.equal(found[0], per_token_quant(silu_and_mul(x), dtype=INT8)[0])


def test_the_norm_is_not_rounded_before_it_is_quantised() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = rms_norm_quant(x, None, dtype=INT8)
    assert_same(found, per_token_quant(rms_norm(x.float(), None), dtype=INT8))
    assert not torch.equal(found[0], per_token_quant(rms_norm(x, None), dtype=INT8)[0])


def test_the_norm_after_an_addition_is_not_rounded_before_it_is_quantised() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    zeros, weight = torch.zeros_like(x), torch.ones(256)
    found = fused_add_rms_norm_quant(x, zeros, weight, dtype=INT8)
    assert_same(found[:2], per_token_quant(rms_norm(x.float(), None), dtype=INT8))
    rounded = fused_add_rms_norm(x, zeros, weight)[0]
    assert not torch.equal(found[0], per_token_quant(rounded, dtype=INT8)[0])


def test_the_gate_is_the_first_half() -> None:
    x = torch.cat((torch.full((1, 16), -100.0), torch.ones(1, 16)), dim=-1)
    assert silu_and_mul_quant(x, scale=STATIC)[0].float().abs().max() == 0
    assert silu_and_mul_quant(x.flip(-1), scale=STATIC)[0].float().abs().max() > 0


@pytest.mark.parametrize("layout", ["row", "column", "tma"])
@pytest.mark.parametrize("ue8m0", [False, True])
def test_every_layout_quantises_the_product(layout: str, ue8m0: bool) -> None:
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    kwargs = {"scale_layout": layout, "ue8m0": ue8m0}
    back = dequantize(*silu_and_mul_quant(x, group_size=16, **kwargs), 16)
    torch.testing.assert_close(back, silu_and_mul(x), rtol=0.07, atol=0.02)


def test_products_beyond_float16_stay_finite() -> None:
    x = torch.full((1, 32), 400.0, dtype=HALF)
    q, scale = silu_and_mul_quant(x)
    assert (q.float() == 448).all()
    torch.testing.assert_close(scale, torch.full((1, 1), 160000.0 / 448))


def test_the_norm_sees_the_sum_before_its_rounding() -> None:
    large = torch.full((1, 32), 6e4, dtype=HALF)
    q, scale, total = fused_add_rms_norm_quant(large, large, torch.ones(32))
    assert (total == math.inf).all()
    assert (dequantize(q, scale) == 1).all()


def test_the_residual_is_the_sum_in_its_own_dtype() -> None:
    x = torch.ones(2, 16).bfloat16()
    residual = torch.full((2, 16), 1e-4)
    total = fused_add_rms_norm_quant(x, residual, torch.ones(16))[2]
    assert total.dtype == torch.float32
    assert torch.equal(total, 1 + residual)
    assert residual.data_ptr() != total.data_ptr()


def test_a_weight_is_not_rounded_to_the_dtype_of_x() -> None:
    x, weight = torch.ones(1, 16).bfloat16(), torch.full((16,), 1 + 2.0**-9)
    _, scale = rms_norm_quant(x, weight, 0.0)
    assert (scale == weight[0] / 448).all()


def test_nan_stays_in_its_row() -> None:
    x = torch.ones(3, 32)
    x[1, 3] = math.nan
    for found in (
        silu_and_mul_quant(x),
        rms_norm_quant(x, None),
        fused_add_rms_norm_quant(x, x, torch.ones(32))[:2],
    ):
        assert found[1].isnan().flatten().tolist() == [False, True, False]
        assert dequantize(*found).isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float8_e4m3fn, 448), (torch.float8_e5m2, 57344), (INT8, 127)]
)
def test_zeros_have_a_scale_to_divide_by(
    dtype: torch.dtype, limit: int, group_size: int | None
) -> None:
    zeros, ways = torch.zeros(2, 32), {"dtype": dtype, "group_size": group_size}
    for q, scale, *_ in (
        silu_and_mul_quant(zeros, **ways),
        rms_norm_quant(zeros, None, **ways),
        fused_add_rms_norm_quant(zeros, zeros, torch.ones(32), **ways),
    ):
        assert not q.float().any()
        assert torch.equal(scale, torch.full_like(scale, 1e-10) / limit)
        assert (scale > 0).all()
