"""What follows the product, in which order, and which rows an expert serves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal_native.activation import silu_and_mul
from hal_native.experts import fused_experts
from hal_native.gemv import fused_gemv, fused_moe_gemv
from hal_native.matmul import block_scaled_mm, w4a16_mm
from hal_native.norm import rms_norm

E4M3, F32, F16, BF16 = torch.float8_e4m3fn, torch.float32, torch.float16, torch.bfloat16

few = settings(max_examples=60, deadline=None, derandomize=True)
sizes = st.integers(0, 6)
seeds = st.integers(0, 2**32)


def integers(seed: int, *shape: int, low: int = -8, high: int = 9) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def powers(seed: int, *shape: int) -> Tensor:
    return integers(seed, *shape, low=-3, high=4).exp2()


def eight(seed: int, m: int, n: int, k: int) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    across = -(-k // 128)
    scales = {
        "x_scale": powers(seed, m, across),
        "weight_scale": powers(seed, -(-n // 128), across),
    }
    return (integers(seed, m, k).to(E4M3), integers(seed + 1, n, k).to(E4M3)), scales


@given(m=sizes, n=sizes, k=st.sampled_from([0, 1, 5, 128, 130]), seed=seeds)
@few
def test_8_bit_weights_are_those_of_block_scaled_mm(m: int, n: int, k: int, seed: int) -> None:
    (x, weight), scales = eight(seed, m, n, k)
    want = block_scaled_mm(x, weight, scales["x_scale"], scales["weight_scale"], out_dtype=BF16)
    assert torch.equal(fused_gemv(x, weight, **scales), want)


@given(m=sizes, n=sizes, groups=st.integers(1, 4), pairs=st.integers(1, 4), seed=seeds)
@few
def test_4_bit_weights_are_those_of_w4a16_mm(
    m: int, n: int, groups: int, pairs: int, seed: int
) -> None:
    size = 2 * pairs
    x, scale = integers(seed, m, groups * size), powers(seed, n, groups)
    weight = integers(seed, n, groups * pairs, low=0, high=256).to(torch.uint8)
    want = w4a16_mm(x, weight, scale, group_size=size)
    assert torch.equal(fused_gemv(x, weight, weight_scale=scale), want)


@given(m=sizes, n=sizes, k=sizes, seed=seeds)
@few
def test_a_floating_point_weight_is_linear(m: int, n: int, k: int, seed: int) -> None:
    x, y, weight = integers(seed, m, k), integers(seed + 1, m, k), integers(seed + 2, n, k)
    both = fused_gemv(x, weight) + 3 * fused_gemv(y, weight)
    assert torch.equal(fused_gemv(x + 3 * y, weight), both)
    assert torch.equal(fused_gemv(x, weight), x @ weight.T)


@given(m=sizes, n=st.integers(0, 3), k=sizes, seed=seeds)
@few
def test_what_follows_is_the_op_of_its_own_on_the_unrounded_product(
    m: int, n: int, k: int, seed: int
) -> None:
    x, weight, norm = integers(seed, m, k), integers(seed, 2 * n, k), integers(seed, 2 * n)
    gated = fused_gemv(x.half(), weight.half(), activation="swiglu")
    assert torch.equal(gated, silu_and_mul(x @ weight.T).half())
    normed = fused_gemv(x.half(), weight.half(), norm_weight=norm.half(), eps=0.5)
    assert torch.equal(normed, rms_norm(x @ weight.T, norm, 0.5).half())


def test_the_product_is_not_rounded_before_what_follows() -> None:
    # In bfloat16 257 is 256.
    x, weight = torch.tensor([[256.0, 1.0]], dtype=BF16), torch.ones(2, 2, dtype=BF16)
    weight[1] = torch.tensor([1.0, 0.0])
    result = fused_gemv(x * 2**-8, weight * 2**8, norm_weight=torch.tensor([512.0, 512.0]))
    ratio = 257 / math.sqrt((257**2 + 256**2) / 2)
    assert result[0, 0].item() == torch.tensor(512 * ratio).to(BF16).item()
    # It may be beyond the largest number of float16.
    big = torch.full((1, 4), 1000.0, dtype=F16)
    assert fused_gemv(big, big.expand(2, 4), norm_weight=torch.ones(2)).tolist() == [[1, 1]]


def test_the_first_half_is_the_gate() -> None:
    weight = torch.tensor([[-100.0], [1.0]])
    assert fused_gemv(torch.ones(1, 1), weight, activation="swiglu").abs().item() < 1e-30


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_the_norm_is_that_of_each_row(rows: int) -> None:
    x = torch.arange(1, rows + 1)[:, None] * torch.ones(rows, 3)
    result = fused_gemv(x, torch.tensor([[1.0] * 3, [7.0] * 3]), norm_weight=torch.ones(2), eps=0.0)
    torch.testing.assert_close(result, torch.tensor([[0.2, 1.4]]).expand(rows, 2))


def test_the_norm_weight_keeps_its_precision_and_eps_is_inside_the_root() -> None:
    x, weight = torch.ones(1, 1, dtype=BF16), torch.full((1, 1), 3.0, dtype=BF16)
    norm = torch.tensor([1 + 2.0**-8])  # In bfloat16 it is 1, and 3 / sqrt(9 + 7) is 3 / 4.
    assert fused_gemv(x, weight, norm_weight=norm, eps=7.0).item() == 0.75 + 2.0**-8


@pytest.mark.parametrize("eps", [-1.0, math.inf, math.nan])
def test_an_eps_that_is_no_eps_is_refused(eps: float) -> None:
    with pytest.raises(hal.InvalidInput, match="eps must be finite and not negative"):
        hal.ops.fused_gemv(torch.ones(1, 2), torch.ones(2, 2), norm_weight=torch.ones(2), eps=eps)


@pytest.mark.parametrize("after", [{}, {"activation": "swiglu"}, {"norm_weight": torch.ones(2)}])
def test_nan_stays_in_its_row(after: dict[str, Any]) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = math.nan
    result = fused_gemv(x, torch.ones(2, 4), **after)
    assert result.isnan().all(dim=-1).tolist() == [False, True, False]
    assert not result[[0, 2]].isnan().any()


# fused_moe_gemv


@given(
    tokens=sizes,
    experts=st.integers(1, 4),
    topk=st.integers(0, 3),
    seed=seeds,
    each=st.booleans(),
    activation=st.sampled_from([None, "swiglu"]),
)
@few
def test_each_choice_is_a_gemv_with_the_weights_of_its_expert(
    tokens: int, experts: int, topk: int, seed: int, each: bool, activation: str | None
) -> None:
    x = integers(seed, tokens, topk, 5) if each else integers(seed, tokens, 5)
    weight, weights = integers(seed, experts, 4, 5), integers(seed, tokens, topk)
    ids = integers(seed, tokens, topk, low=-1, high=experts + 1).int()
    result = fused_moe_gemv(x, weight, weights, ids, activation=activation)
    for token in range(tokens):
        for j, expert in enumerate(ids[token].tolist()):
            row = x[token, j] if each else x[token]
            want = torch.zeros(2 if activation else 4)
            if 0 <= expert < experts:
                want = fused_gemv(row, weight[expert], activation=activation) * weights[token, j]
            torch.testing.assert_close(result[token, j], want)


def test_the_routed_weight_counts_after_the_activation() -> None:
    weight = torch.ones(1, 2, 1)
    result = fused_moe_gemv(
        torch.ones(1, 1), weight, torch.tensor([[4.0]]), torch.tensor([[0]]), activation="swiglu"
    )
    assert result.item() == pytest.approx(4 / (1 + math.exp(-1)))


def test_the_routed_weight_counts_before_the_result_is_rounded() -> None:
    x, weight = torch.tensor([[256.0, 1.0]], dtype=BF16), torch.ones(1, 1, 2, dtype=BF16)
    routed = torch.tensor([[2 / 257]])
    result = fused_moe_gemv(x, weight, routed, torch.tensor([[0]]))
    assert result.item() == 2
    kept = fused_moe_gemv(x, weight, torch.tensor([[1 + 2.0**-8]]), torch.tensor([[0]]))
    assert kept.item() == 258


def test_an_id_out_of_range_gives_zeros_whatever_the_rest() -> None:
    nan = math.nan
    x, weight = torch.full((2, 3), nan), torch.full((2, 4, 3), nan)
    ids = torch.tensor([[-1, 2], [2**40, -(2**40)]])
    result = fused_moe_gemv(x, weight, torch.full((2, 2), nan), ids)
    assert torch.equal(result, torch.zeros(2, 2, 4))


def test_two_of_them_are_the_experts() -> None:
    x, w13, w2 = integers(0, 3, 8) / 8, integers(1, 4, 12, 8) / 8, integers(2, 4, 8, 6) / 8
    ids, weights = integers(3, 3, 2, low=-1, high=5).int(), powers(4, 3, 2)
    inner = fused_moe_gemv(x, w13, None, ids, activation="swiglu")
    outer = fused_moe_gemv(inner, w2, weights, ids)
    torch.testing.assert_close(outer.sum(1), fused_experts(x, w13, w2, weights, ids))
