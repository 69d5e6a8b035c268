"""The decided semantics and the laws of the 8-bit quantisers, on their references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import hal
from hal_native.quant import dequantize, per_tensor_quant, per_token_group_quant, per_token_quant

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LIMITS = {E4M3: 448.0, E5M2: 57344.0, INT8: 127.0}
# Half the distance between neighbouring codes: relative, and the largest over the limit.
HALF_STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3, INT8: 0.0}
LEAST_STEP = {E4M3: 2.0**-10, E5M2: 2.0**-17, INT8: 0.5}

codes = pytest.mark.parametrize("dtype", LIMITS, ids=str)
groups = st.sampled_from([16, 32, 64, 128])
dtypes = st.sampled_from(list(LIMITS))
layouts = st.sampled_from(["row", "column", "tma"])


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 300))
    scale = 2.0 ** torch.randint(-20, 20, (shape[0], 1), generator=generator)
    return torch.randn(shape, generator=generator) * scale


def bits(x: Tensor) -> Tensor:
    """Codes that torch can compare, signs of zero and NaN included."""
    return x.view(torch.uint8)


def beside(peak: float, *values: float) -> Tensor:
    """A group whose largest magnitude is ``peak``."""
    return torch.tensor([[peak, *values] + [0.0] * (15 - len(values))])


@codes
def test_zeros_have_code_zero_and_a_scale_to_divide_by(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 16)
    quantised = per_token_group_quant(x, dtype=dtype), per_token_quant(x, dtype=dtype)
    for q, scale in (*quantised, per_tensor_quant(x, dtype=dtype)):
        assert torch.equal(q.float(), x)
        expected = torch.tensor(1e-10) / LIMITS[dtype]
        assert torch.equal(scale.reshape(()), expected)
        assert expected > 0


def test_one_row_of_zeros_is_zeros_however_many_rows() -> None:
    for count in (1, 2, 3000):
        assert not bits(per_token_quant(torch.zeros(count, 8))[0]).any()


def test_the_maximum_is_floored_not_the_scale() -> None:
    x = beside(1e-8)
    q, scale = per_token_group_quant(x)
    assert scale == torch.tensor(1e-8) / 448
    assert q.float().max() == 448
    assert scale != torch.tensor(1e-10)


def test_int8_rounds_to_nearest_and_not_towards_zero() -> None:
    q, _ = per_token_group_quant(beside(127.0, 2.7, -2.7, 0.9), dtype=INT8)
    assert q[0, :4].tolist() == [127, 3, -3, 1]


def test_ties_round_to_even() -> None:
    q, _ = per_token_group_quant(beside(127.0, 2.5, 3.5, -0.5, -1.5), dtype=INT8)
    assert q[0, :5].tolist() == [127, 2, 4, 0, -2]
    q, _ = per_token_group_quant(beside(448.0, 17.0, 19.0, -17.0, 2.0**-10, 3 * 2.0**-10))
    assert q[0, :6].tolist() == [448.0, 16.0, 20.0, -16.0, 0.0, 2.0**-8]
    q, _ = per_token_group_quant(beside(57344.0, 9.0, 11.0), dtype=E5M2)
    assert q[0, :3].tolist() == [57344.0, 8.0, 12.0]


def test_int8_is_symmetric() -> None:
    q, scale = per_token_group_quant(beside(-128.0, 127.0), dtype=INT8)
    assert q.min() == -127
    assert scale == torch.tensor(128.0) / 127
    assert per_tensor_quant(torch.tensor([-500.0]), torch.tensor([1.0]), dtype=INT8)[0] == -127


@codes
def test_a_given_scale_saturates(dtype: torch.dtype) -> None:
    x = torch.tensor([1e6, -1e6, math.inf, -math.inf])
    q, _ = per_tensor_quant(x, torch.tensor([1.0]), dtype=dtype)
    assert q.double().tolist() == [LIMITS[dtype], -LIMITS[dtype]] * 2


def test_a_given_scale_divides_once() -> None:
    # The inverse of 0.7 is rounded, which breaks ties that the division keeps.
    scale = torch.tensor([0.7])
    values = torch.arange(0.5, 127.0) * scale
    divided = (values / scale).round()
    inverted = (values * (1 / scale)).round()
    assert not torch.equal(divided, inverted)
    q, kept = per_tensor_quant(values, scale, dtype=INT8)
    assert torch.equal(q.float(), divided)
    assert torch.equal(kept, scale)
    assert kept.data_ptr() != scale.data_ptr()


def test_the_scale_is_a_quotient_and_not_a_product_with_the_inverse() -> None:
    peak = torch.arange(1.0, 500.0).unsqueeze(-1)
    _, scale = per_token_quant(peak)
    inverse = torch.tensor(1.0) / 448
    assert torch.equal(scale, (peak.double() / 448).float())
    assert not torch.equal(scale, peak * inverse)


def test_codes_are_relative_to_the_scale_that_is_returned() -> None:
    # In float64 these are halfway between two codes, but not over the scale before its rounding.
    halves = torch.arange(0.5, 120, dtype=torch.float64)
    rounded = torch.tensor(1 / 127).double()
    x = torch.cat((torch.ones(1), halves * rounded)).double()
    q, scale = per_token_quant(x, dtype=INT8)
    assert scale.double() == rounded
    assert torch.equal(q[1:].double(), halves.round())


def test_a_scale_of_its_own_divides_once() -> None:
    peak = torch.arange(1.0, 200.0).unsqueeze(-1)
    step = peak / 127
    x = torch.cat((peak, step * torch.arange(0.5, 120)), dim=-1)
    divided, inverted = (x / step).round(), (x * (1 / step)).round()
    assert not torch.equal(divided, inverted)
    assert torch.equal(per_token_quant(x, dtype=INT8)[0].float(), divided)
    q, _ = per_token_group_quant(x[:, :16], 16, dtype=INT8)
    assert torch.equal(q.float(), divided[:, :16])


@codes
def test_nan_stays_in_its_group(dtype: torch.dtype) -> None:
    x = torch.ones(2, 40)
    x[0, 17] = math.nan
    q, scale = per_token_group_quant(x, 16, dtype=dtype)
    assert scale.isnan().tolist() == [[False, True, False], [False] * 3]
    back = dequantize(q, scale, 16)
    assert back.isnan().tolist() == [[16 <= i < 32 for i in range(40)], [False] * 40]
    if dtype == INT8:
        assert not q[0, 16:32].any()


@codes
def test_an_infinity_makes_its_group_nan_when_read_back(dtype: torch.dtype) -> None:
    x = torch.ones(1, 32)
    x[0, 3] = -math.inf
    q, scale = per_token_group_quant(x, 16, dtype=dtype)
    assert scale[0, 0] == math.inf
    assert q[0, 4].float() == 0
    assert dequantize(q, scale, 16).isnan().tolist() == [[True] * 16 + [False] * 16]


def test_a_shorter_last_group_has_a_scale_of_its_own() -> None:
    x = torch.cat((torch.full((1, 128), 448.0), torch.full((1, 3), 4.48)), dim=-1)
    q, scale = per_token_group_quant(x)
    torch.testing.assert_close(scale, torch.tensor([[1.0, 0.01]]))
    assert (q.float() == 448).all()


def test_layouts_are_strides_and_nothing_else() -> None:
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    strides = {"row": (15, 3, 1), "column": (15, 1, 5), "tma": (24, 1, 8)}
    for layout, expected in strides.items():
        _, scale = per_token_group_quant(x, 16, scale_layout=layout)
        assert scale.stride() == expected
        assert torch.equal(scale, per_token_group_quant(x, 16)[1])


def test_columns_are_sixteen_bytes_apart_and_padded_with_zeros() -> None:
    for ue8m0 in (False, True):
        x = torch.ones(5, 80)
        _, scale = per_token_group_quant(x, 16, scale_layout="tma", ue8m0=ue8m0)
        assert scale.stride() == (1, 8)
        whole = scale.as_strided((scale.shape[1], 8), (8, 1))
        assert whole[:, :5].all()
        assert not whole[:, 5:].any()


def test_powers_of_two_stay_and_what_is_past_them_goes_up() -> None:
    one = torch.tensor([[448.0]])
    past, short = one.nextafter(one + 1) + 2.0**-14, one.nextafter(one - 1) - 2.0**-14
    found = [
        per_token_group_quant(x, ue8m0=True)[1].item() for x in (one, past, short, one / 2**30)
    ]
    assert found == [1.0, 2.0, 1.0, 2.0**-30]


def test_codes_do_not_depend_on_how_scales_are_packed() -> None:
    x = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    x[2, 40] = math.inf
    row = per_token_group_quant(x, 32, ue8m0=True)
    tma = per_token_group_quant(x, 32, ue8m0=True, scale_layout="tma")
    assert torch.equal(bits(row[0]), bits(tma[0]))
    assert torch.equal(
        dequantize(*row, 32).nan_to_num(nan=-7.0), dequantize(*tma, 32).nan_to_num(nan=-7.0)
    )


def test_exponents_are_packed_from_the_lowest_byte() -> None:
    peaks = 448 * 2.0 ** torch.tensor([0.0, 1.0, -1.0, 5.0, -20.0])
    x = peaks.repeat_interleave(16).unsqueeze(0)
    _, scale = per_token_group_quant(x, 16, ue8m0=True, scale_layout="tma")
    bytes_ = [word >> shift & 255 for word in scale[0].tolist() for shift in (0, 8, 16, 24)]
    assert bytes_ == [127, 128, 126, 132, 107, 0, 0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_packed_scale_that_is_not_finite_is_the_nan_of_its_format(value: float) -> None:
    q, scale = per_token_group_quant(beside(value), 16, ue8m0=True, scale_layout="tma")
    assert scale.tolist() == [[255]]
    assert dequantize(q, scale, 16).isnan().all()
    words = torch.tensor([[-1]], dtype=torch.int32)
    assert dequantize(torch.ones(1, 64, dtype=INT8), words, 16).isnan().all()


def test_a_product_is_rounded_once() -> None:
    q, scale = torch.tensor([[127]], dtype=INT8), torch.tensor([[1 + 2.0**-8]])
    found = dequantize(q, scale, dtype=torch.bfloat16)
    assert found == (127 * scale).bfloat16()
    assert found != 127 * scale.bfloat16()


def test_float64_scales_are_not_rounded() -> None:
    scale = torch.tensor(1 / 3, dtype=torch.float64)
    for given_scale in (scale, scale.reshape(1), scale.reshape(1, 1)):
        q = torch.tensor([[3]], dtype=INT8)
        assert dequantize(q, given_scale, dtype=torch.float64) == 1.0


def test_weights_of_four_bits_are_read_by_group() -> None:
    q = torch.arange(-8, 8, dtype=INT8).expand(2, 16)
    scale = torch.tensor([[0.5, 2.0], [1.0, 4.0]], dtype=torch.bfloat16)
    expected = q.float() * scale.float().repeat_interleave(8, -1)
    assert torch.equal(dequantize(q, scale, 8), expected)


@pytest.mark.parametrize(("layout", "ue8m0"), [("row", False), ("column", True), ("tma", True)])
def test_one_compilation_serves_every_number_of_rows(layout: str, ue8m0: bool) -> None:
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def compiled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, scale = hal.ops.per_token_group_quant(x, 16, scale_layout=layout, ue8m0=ue8m0)
        return q, scale, hal.ops.dequantize(q, scale, 16)

    for count in (5, 8, 9):
        x = torch.randn(count, 72, generator=torch.Generator().manual_seed(count))
        q, scale, back = compiled(x)
        expected = per_token_group_quant(x, 16, scale_layout=layout, ue8m0=ue8m0)
        assert torch.equal(bits(q), bits(expected[0]))
        assert torch.equal(scale, expected[1])
        assert scale.stride() == expected[1].stride()
        assert torch.equal(back, dequantize(*expected, 16))
    # Columns with and without padding are two cases.
    assert counter.frame_count == (2 if layout == "tma" else 1)


@LAWS
@given(rows(), groups, dtypes, layouts, st.booleans())
def test_what_is_read_back_is_within_half_a_step(
    x: Tensor, group: int, dtype: torch.dtype, layout: str, ue8m0: bool
) -> None:
    q, scale = per_token_group_quant(x, group, dtype=dtype, scale_layout=layout, ue8m0=ue8m0)
    error = (dequantize(q, scale, group) - x).abs()
    each = dequantize(torch.ones_like(q, dtype=INT8), scale, group)
    step = torch.maximum(HALF_STEP[dtype] * x.abs(), LEAST_STEP[dtype] * each)
    assert (error <= step * (1 + 1e-5) + 1e-6 * x.abs()).all()


@LAWS
@given(rows(), groups, dtypes)
def test_every_group_uses_the_largest_code(x: Tensor, group: int, dtype: torch.dtype) -> None:
    q, _ = per_token_group_quant(x, group, dtype=dtype)
    for start in range(0, x.shape[-1], group):
        peaks = q[:, start : start + group].float().abs().amax(-1)
        assert (peaks == LIMITS[dtype]).all()


@LAWS
@given(rows(), groups, dtypes, st.integers(-20, 20))
def test_a_power_of_two_scales_the_scale(
    x: Tensor, group: int, dtype: torch.dtype, power: int
) -> None:
    x = x.clamp(min=2.0**-30) if x.abs().max() == 0 else x
    q, scale = per_token_group_quant(x, group, dtype=dtype)
    scaled_q, scaled = per_token_group_quant(x * 2.0**power, group, dtype=dtype)
    large = dequantize(torch.ones_like(q, dtype=INT8), scale, group) * LIMITS[dtype] > 1e-3
    assert torch.equal(bits(q)[large], bits(scaled_q)[large])
    assert torch.equal(
        scaled[scale * LIMITS[dtype] > 1e-3], (scale * 2.0**power)[scale * LIMITS[dtype] > 1e-3]
    )


@LAWS
@given(rows(), groups, dtypes, st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_each_other(
    x: Tensor, group: int, dtype: torch.dtype, random: object
) -> None:
    order = torch.tensor(sorted(range(len(x)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    q, scale = per_token_group_quant(x, group, dtype=dtype)
    other_q, other_scale = per_token_group_quant(x[order], group, dtype=dtype)
    assert torch.equal(bits(q)[order], bits(other_q))
    assert torch.equal(scale[order], other_scale)
    alone = [per_token_quant(row, dtype=dtype)[0] for row in x]
    assert torch.equal(bits(torch.stack(alone)), bits(per_token_quant(x, dtype=dtype)[0]))


@LAWS
@given(rows(), groups, dtypes)
def test_groups_are_the_rows_of_the_group(x: Tensor, group: int, dtype: torch.dtype) -> None:
    x = x.repeat(1, group)[:, : x.shape[-1] // group * group + group]
    q, scale = per_token_group_quant(x, group, dtype=dtype)
    token_q, token_scale = per_token_quant(x.reshape(-1, group), dtype=dtype)
    assert torch.equal(bits(q.reshape(-1, group)), bits(token_q))
    assert torch.equal(scale.reshape(-1, 1), token_scale)


@LAWS
@given(rows(), dtypes)
def test_one_scale_for_the_tensor_is_that_of_one_row(x: Tensor, dtype: torch.dtype) -> None:
    q, scale = per_tensor_quant(x, dtype=dtype)
    token_q, token_scale = per_token_quant(x.flatten(), dtype=dtype)
    assert torch.equal(bits(q.flatten()), bits(token_q))
    assert torch.equal(scale, token_scale)
    static_q, static_scale = per_tensor_quant(x, scale, dtype=dtype)
    assert torch.equal(bits(static_q), bits(q))
    assert torch.equal(static_scale, scale)


@LAWS
@given(rows(), groups, dtypes)
def test_a_second_time_changes_nothing(x: Tensor, group: int, dtype: torch.dtype) -> None:
    q, scale = per_token_group_quant(x, group, dtype=dtype, ue8m0=True)
    back = dequantize(q, scale, group)
    again, _ = per_tensor_quant(back[:1, :group], scale[:1, :1].reshape(1), dtype=dtype)
    assert torch.equal(again.float(), q[:1, :group].float())
