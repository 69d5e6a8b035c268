"""Where the scales of a product count, what a nibble means, and what is rounded when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native.matmul import block_scaled_mm, scaled_mm, w4a16_mm

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

few = settings(max_examples=100, deadline=None, derandomize=True)
sizes = st.integers(0, 7)
seeds = st.integers(0, 2**32)


def integers(seed: int, *shape: int, low: int = -8, high: int = 9) -> Tensor:
    """Small integers in float32: every sum of their products is exact in any order."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def powers(seed: int, *shape: int) -> Tensor:
    return integers(seed, *shape, low=-3, high=4).exp2()


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


# scaled_mm


@given(m=sizes, n=sizes, k=sizes, seed=seeds, dtype=st.sampled_from([E4M3, E5M2, INT8]))
@few
def test_a_row_has_its_scale_and_a_column_has_its_own(
    m: int, n: int, k: int, seed: int, dtype: torch.dtype
) -> None:
    a, b = integers(seed, m, k, low=-4, high=5), integers(seed + 1, n, k, low=-4, high=5)
    a_scale, b_scale, bias = powers(seed, m), powers(seed + 1, n), integers(seed, n)
    result = scaled_mm(a.to(dtype), b.to(dtype), a_scale, b_scale, out_dtype=F32, bias=bias)
    assert torch.equal(result, a_scale[:, None] * (a @ b.T) * b_scale + bias)


def test_the_bias_is_added_before_the_result_is_rounded() -> None:
    a, b = torch.tensor([[256.0, 1.0]]).to(E4M3), ones(1, 2).to(E4M3)
    kwargs: dict[str, Any] = {"out_dtype": BF16, "bias": ones(1)}
    # In bfloat16 257 is 256, and so is 256 + 1.
    assert scaled_mm(a, b, ones(1), ones(1), **kwargs).item() == 258


@pytest.mark.parametrize("k", [1041, 2001, 4097, 30001])
def test_sums_of_int8_are_exact(k: int) -> None:
    a, b = torch.full((1, k), 127, dtype=INT8), torch.full((3, k), 127, dtype=INT8)
    a[0, -1] = 126
    b[1] = -127
    b[2, : k // 2] = -127
    exact = [int(row) for row in (a.long() @ b.long().T)[0]]
    result = scaled_mm(a, b, ones(1), ones(3), out_dtype=F32)
    assert result[0].tolist() == torch.tensor(exact, dtype=torch.float64).float().tolist()


def test_int8_minus_128_is_a_number_like_any_other() -> None:
    a = torch.tensor([[-128, -128]], dtype=INT8)
    assert scaled_mm(a, a, ones(1), ones(1), out_dtype=F32).item() == 32768


def test_what_exceeds_the_result_is_an_infinity() -> None:
    a = torch.tensor([[448.0], [-448.0], [1.0]]).to(E4M3)
    result = scaled_mm(a, a[:1], ones(1), ones(1), out_dtype=F16)
    assert result[:, 0].tolist() == [math.inf, -math.inf, 448]


def test_scales_are_not_multiplied_with_each_other_first() -> None:
    a = torch.full((1, 128), 448.0).to(E4M3)
    tiny = torch.full((1,), 1e-23)
    result = scaled_mm(a, a, tiny, tiny, out_dtype=F32).item()
    # The product of the scales is 0 in float32 but for a few bits.
    assert result == pytest.approx(448 * 448 * 128 * 1e-46, rel=1e-5)


# block_scaled_mm


@given(
    m=sizes,
    n=sizes,
    k=sizes,
    seed=seeds,
    block=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
@few
def test_a_block_has_its_scale(m: int, n: int, k: int, seed: int, block: tuple[int, int]) -> None:
    a, b = integers(seed, m, k), integers(seed + 1, n, k)
    down, across = -(-n // block[0]), -(-k // block[1])
    a_scale, b_scale = powers(seed, m, across), powers(seed + 1, down, across)
    values = torch.zeros(m, n)
    for i in range(k):
        group = i // block[1]
        for row in range(n):
            scale = a_scale[:, group] * b_scale[row // block[0], group]
            values[:, row] += a[:, i] * b[row, i] * scale
    args = (a.to(E4M3), b.to(E4M3), a_scale, b_scale)
    assert torch.equal(block_scaled_mm(*args, block=block, out_dtype=F32), values)


def test_blocks_are_summed_before_the_result_is_rounded() -> None:
    a, b = torch.tensor([[256.0, 1.0, 1.0]]).to(E4M3), ones(1, 3).to(E4M3)
    result = block_scaled_mm(a, b, ones(1, 3), ones(1, 3), block=(1, 1), out_dtype=BF16)
    assert result.item() == 258


def test_the_sum_over_a_block_is_not_rounded() -> None:
    a, b = torch.tensor([[256.0, 1.0, -256.0]]).to(E4M3), ones(1, 3).to(E4M3)
    result = block_scaled_mm(a, b, ones(1, 2), ones(1, 2), block=(1, 2), out_dtype=BF16)
    assert result.item() == 1


def test_the_scales_count_after_the_sum_over_a_block() -> None:
    a = torch.full((1, 128), 448.0).to(E4M3)
    scale = torch.full((1, 1), 1 / 3)
    result = block_scaled_mm(a, a, scale, scale, out_dtype=F32)
    assert torch.equal(result, 448 * 448 * 128 * scale * scale)


def test_the_default_block_is_128_by_128() -> None:
    a, b = ones(1, 129).to(E4M3), ones(129, 129).to(E4M3)
    b_scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    result = block_scaled_mm(a, b, torch.tensor([[1.0, 2.0]]), b_scale, out_dtype=F32)
    assert result[0].tolist() == [128 + 20] * 128 + [12800 + 2000]


@given(m=sizes, n=sizes, k=st.integers(1, 9), seed=seeds)
@few
def test_one_block_is_a_scaled_product(m: int, n: int, k: int, seed: int) -> None:
    a, b = integers(seed, m, k).to(E4M3), integers(seed + 1, n, k).to(E4M3)
    a_scale, b_scale = powers(seed, m), powers(seed, 1)
    plain = scaled_mm(a, b, a_scale, b_scale, out_dtype=F32)
    block = (max(n, 1), k)
    blocks = b_scale[None, :] if n else b_scale[None, :0].reshape(0, 1)
    assert torch.equal(
        block_scaled_mm(a, b, a_scale[:, None], blocks, block=block, out_dtype=F32), plain
    )


# w4a16_mm


def unpacked(qweight: Tensor) -> Tensor:
    """Codes column by column, by arithmetic instead of bits."""
    codes = torch.zeros(qweight.shape[0], qweight.shape[1] * 2)
    codes[:, 0::2] = (qweight % 16).float()
    codes[:, 1::2] = (qweight // 16).float()
    return codes


@given(m=sizes, n=sizes, pairs=sizes, seed=seeds, size=st.integers(1, 16), shifted=st.booleans())
@few
def test_a_group_has_its_scale_and_zero(
    m: int, n: int, pairs: int, seed: int, size: int, shifted: bool
) -> None:
    x, k = integers(seed, m, 2 * pairs), 2 * pairs
    qweight = integers(seed, n, pairs, low=0, high=256).to(torch.uint8)
    scales = powers(seed, n, -(-k // size))
    zeros = integers(seed, *scales.shape, low=0, high=16)
    group = torch.arange(k) // size
    zero = zeros[:, group] if shifted else 8
    want = x @ ((unpacked(qweight) - zero) * scales[:, group]).T
    for dtype in (torch.uint8, F16):
        given_zeros = zeros.to(dtype) if shifted else None
        assert torch.equal(w4a16_mm(x, qweight, scales, group_size=size, zeros=given_zeros), want)


def test_the_low_nibble_is_the_even_column() -> None:
    qweight = torch.tensor([[0x9A, 0xBC]], dtype=torch.uint8)
    result = w4a16_mm(torch.eye(4), qweight, ones(1, 1), group_size=4)
    assert result.flatten().tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize("group_size", [2, 4, 100])
def test_the_zero_is_8_with_one_scale_for_each_row_too(group_size: int) -> None:
    qweight = torch.tensor([[0x8F, 0x80]], dtype=torch.uint8)
    scales = ones(1, -(-4 // group_size))
    result = w4a16_mm(torch.eye(4), qweight, scales, group_size=group_size)
    # As signed nibbles they would be -1, -8, 0 and -8.
    assert result[:, 0].tolist() == [7, 0, -8, 0]


def test_a_fractional_zero_is_not_rounded() -> None:
    qweight, zeros = torch.tensor([[0x77]], dtype=torch.uint8), torch.tensor([[7.25]])
    result = w4a16_mm(ones(1, 2), qweight, ones(1, 1), group_size=2, zeros=zeros)
    assert result.item() == -0.5


def test_weights_are_not_rounded_to_the_dtype_of_x() -> None:
    qweight = torch.tensor([[0x79]], dtype=torch.uint8)  # 1 and -1
    scales = torch.tensor([[1 + 2.0**-9, 1.0]])
    x = torch.full((1, 2), 512.0, dtype=BF16)
    assert w4a16_mm(x, qweight, scales, group_size=1).item() == 1


def test_sums_are_not_rounded_to_the_dtype_of_x() -> None:
    x = torch.tensor([[2048.0, 1, 1, 0]], dtype=F16)
    qweight = torch.tensor([[0x99, 0x99]], dtype=torch.uint8)
    assert w4a16_mm(x, qweight, ones(1, 1).half(), group_size=4).item() == 2050
