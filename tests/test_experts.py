"""Which expert a token gets, how they are summed, and what is quantised when."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from hal_native.experts import fused_experts

E4M3, F32, BF16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16

few = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def double(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """One gated MLP in float64."""
    gate, up = (x.double() @ w13.double().T).chunk(2, dim=-1)
    return (gate * gate.sigmoid() * up) @ w2.double().T


def passing(experts: int, hidden: int, factors: list[float]) -> tuple[Tensor, Tensor]:
    """Experts whose output is exactly ``factor`` times 1 for a token of ones: silu(64) is 64."""
    w13 = torch.cat((torch.full((experts, hidden, hidden), 64 / hidden),) * 2, dim=1)
    w2 = torch.tensor(factors)[:, None, None].expand(experts, hidden, hidden) / (4096 * hidden)
    return w13, w2


@given(tokens=st.integers(0, 6), experts=st.integers(1, 5), topk=st.integers(0, 4), seed=seeds)
@few
def test_each_choice_adds_its_expert_times_its_weight(
    tokens: int, experts: int, topk: int, seed: int
) -> None:
    x, w13, w2 = randn(seed, tokens, 6), randn(seed, experts, 8, 6), randn(seed + 1, experts, 6, 4)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts + 1, (tokens, topk), generator=generator)
    weights = randn(seed, tokens, topk)
    want = torch.zeros(tokens, 6, dtype=torch.float64)
    for token in range(tokens):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            if 0 <= expert < experts:
                want[token] += weight * double(x[token], w13[expert], w2[expert])
    result = fused_experts(x, w13, w2, weights, ids)
    torch.testing.assert_close(result.double(), want, rtol=1e-4, atol=1e-4)


@given(seed=seeds, data=st.data())
@few
def test_the_order_of_the_choices_does_not_matter(seed: int, data: st.DataObject) -> None:
    x, w13, w2 = randn(seed, 3, 6), randn(seed, 4, 8, 6), randn(seed + 1, 4, 6, 4)
    ids = torch.randint(0, 4, (3, 3), generator=torch.Generator().manual_seed(seed))
    weights = randn(seed + 2, 3, 3)
    order = torch.tensor(data.draw(st.permutations(range(3))))
    straight = fused_experts(x, w13, w2, weights, ids)
    turned = fused_experts(x, w13, w2, weights[:, order], ids[:, order])
    torch.testing.assert_close(turned, straight)


def test_the_weight_counts_after_the_activation_and_once() -> None:
    w13, w2 = torch.tensor([[[1.0], [1.0]]]), torch.ones(1, 1, 1)
    result = fused_experts(torch.ones(1, 1), w13, w2, torch.tensor([[4.0]]), torch.tensor([[0]]))
    assert result.item() == pytest.approx(4 / (1 + math.exp(-1)))


def test_the_first_half_is_the_gate() -> None:
    w13, w2 = torch.tensor([[[-50.0], [2.0]]]), torch.ones(1, 1, 1)
    result = fused_experts(torch.ones(1, 1), w13, w2, torch.ones(1, 1), torch.tensor([[0]]))
    assert result.item() == pytest.approx(0, abs=1e-15)


def test_an_id_out_of_range_adds_nothing_and_one_that_comes_twice_counts_twice() -> None:
    w13, w2 = passing(2, 4, [1.0, 10.0])
    w13[0] = math.nan
    ids = torch.tensor([[1, 1], [-1, 1], [2, 2**40], [-2, 1]])
    weights = torch.tensor([[1.0, 2], [math.nan, 1], [math.inf, 5], [3, 0]])
    result = fused_experts(torch.ones(4, 4), w13, w2, weights, ids)
    assert result[:, 0].tolist() == [30, 10, 0, 0]


def test_nan_in_an_expert_stays_with_the_tokens_that_chose_it() -> None:
    w13, w2 = passing(2, 4, [1.0, 1.0])
    w2[0] = math.nan
    x = torch.ones(3, 4)
    x[2] = math.nan
    ids = torch.tensor([[1], [0], [1]])
    result = fused_experts(x, w13, w2, torch.ones(3, 1), ids)
    assert result.isnan().all(dim=-1).tolist() == [False, True, True]


@pytest.mark.parametrize(("dtype", "small"), [(torch.float16, 0.125), (BF16, 0.75)])
def test_the_experts_are_summed_before_the_result_is_rounded(
    dtype: torch.dtype, small: float
) -> None:
    w13, w2 = passing(3, 4, [256.0, small, small])
    args = (torch.ones(1, 4, dtype=dtype), w13.to(dtype), (w2 * 2**12).to(dtype))
    weights = torch.full((1, 3), 8 / 2**12)
    result = fused_experts(*args, weights, torch.tensor([[0, 1, 2]]))
    # From 2048 on float16 has even numbers only, and bfloat16 multiples of 16.
    assert result[0, 0].item() == torch.tensor(8 * (256 + 2 * small)).to(dtype).item() > 2048


def test_the_inner_result_is_not_rounded() -> None:
    w13 = torch.tensor([[[64.0, 0.0], [64.0, 0.0], [1.0, 2.0**-9], [1.0, 0.0]]], dtype=BF16)
    w2 = torch.tensor([[[8.0, -8.0], [0.0, 0.0]]], dtype=BF16)
    x = torch.ones(1, 2, dtype=BF16)
    result = fused_experts(x, w13, w2, torch.ones(1, 1), torch.tensor([[0]]))
    # 64 * (1 + 2**-9) rounds to 64 in bfloat16.
    assert result[0, 0].item() == 1


@pytest.mark.parametrize(
    ("name", "gated"),
    [("silu", silu_and_mul), ("gelu", gelu_and_mul), ("gelu_tanh", gelu_tanh_and_mul)],
)
def test_activations_have_the_names_of_the_ops(name: str, gated: object) -> None:
    x, w13, w2 = randn(0, 3, 4), randn(1, 1, 4, 4), torch.eye(4)[None, :, :2]
    one, zero = torch.ones(3, 1), torch.zeros(3, 1).int()
    result = fused_experts(x, w13, w2, one, zero, activation=name)
    want = gated(x @ w13[0].T)  # type: ignore[operator]
    torch.testing.assert_close(result[:, :2], want)


# 8 bits


def eight(x: Tensor, w13: Tensor, w2: Tensor, code: torch.dtype = E4M3) -> Tensor:
    """One expert with scales of 1."""
    ones = torch.ones(x.shape[0], 1)
    scales = [torch.ones(1, -(-w.shape[1] // 128), -(-w.shape[2] // 128)) for w in (w13, w2)]
    return fused_experts(
        x, w13.to(code), w2.to(code), ones, ones.int() * 0, w13_scale=scales[0], w2_scale=scales[1]
    )


def first_up(hidden: int, column: int) -> tuple[Tensor, Tensor]:
    """An expert that gives 64 times one column of its token, in exact arithmetic."""
    w13 = torch.zeros(1, 2, hidden)
    w13[0, 0, 0] = 64
    w13[0, 1, column] = 1
    w2 = torch.zeros(1, hidden, 1)
    w2[0, 0] = 1
    return w13, w2


def test_tokens_are_quantised_to_8_bits_in_groups_of_128() -> None:
    x = torch.zeros(2, 256)
    x[:, 0] = x[:, 255] = 1 + 2.0**-6
    x[1, 200] = 448.0  # Its group has a scale of 1, in which 1 + 1/64 is 1.
    result = eight(x, *first_up(256, 255))[:, 0]
    assert result.tolist() == pytest.approx([65 * (1 + 2.0**-6), 65], rel=1e-6)


def test_tokens_of_zeros_give_zeros() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert eight(x, *first_up(2, 1))[:, 0].tolist() == [0, 0]


def test_no_scale_is_below_that_of_1e_10() -> None:
    tiny = torch.tensor([[1e-14]])
    result = fused_experts(
        tiny,
        torch.full((1, 2, 1), 1.0).to(E4M3),
        torch.ones(1, 1, 1).to(E4M3),
        torch.full((1, 1), 1e28),
        torch.zeros(1, 1).int(),
        w13_scale=torch.full((1, 1, 1), 1e14),
        w2_scale=torch.full((1, 1, 1), 1e-14),
    )
    code = torch.tensor(1e-14 / (1e-10 / 448)).to(E4M3).item()
    inner = code * (1e-10 / 448) * 1e14
    want = inner / (1 + math.exp(-inner)) * inner
    assert result.item() == pytest.approx(1e14 * want, rel=1e-5)


def test_the_inner_result_is_quantised_too() -> None:
    w13 = torch.zeros(1, 4, 2)
    w13[0, :2, 0] = 64
    w13[0, 2, 0] = 448
    w13[0, 3] = torch.tensor([16.0, 1.0])
    w2 = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    result = eight(torch.ones(1, 2), w13, w2)[0, 0].item()
    # 448 * 64 and 17 * 64 share a scale of 64; 17 is halfway from 16 to 18 and goes to the even.
    assert result == pytest.approx(16 * 64, rel=1e-6)


def test_the_inner_result_is_not_rounded_before_it_is_quantised() -> None:
    w13 = torch.zeros(1, 4, 3)
    w13[0, :2, 0] = 64
    w13[0, 2, 0] = 448
    w13[0, 3] = torch.tensor([16.0, 1.0, 2.0**-6])
    w2 = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    result = eight(torch.ones(1, 3, dtype=BF16), w13, w2)[0, 0].item()
    # 17 + 1/64 goes to 18; in bfloat16 it would be 17, and so 16.
    assert result == 18 * 64


def test_scales_of_8_bit_weights_go_by_blocks_from_the_first_row() -> None:
    inter, hidden = 96, 130
    w13 = torch.zeros(1, 2 * inter, hidden)
    w13[0, :inter, 0] = 64
    w13[0, inter:, 0] = 1
    w2 = torch.zeros(1, hidden, inter)
    w2[0, 0, 0], w2[0, 1, inter - 1], w2[0, 129, 0] = 1, 1, 1
    x = torch.zeros(1, hidden)
    x[0, 0] = 1
    one = torch.ones(1, 1)
    result = fused_experts(
        x,
        w13.to(E4M3),
        w2.to(E4M3),
        one,
        one.int() * 0,
        w13_scale=torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]),
        w2_scale=torch.tensor([[[1.0], [10.0]]]),
    )
    # Rows 96 to 127 of the up projection are in the first block, the others in the second.
    assert result[0, [0, 1, 129]].tolist() == pytest.approx([64, 128, 640], rel=1e-6)
