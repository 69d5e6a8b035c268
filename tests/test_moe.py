"""The decided semantics and the laws of the operators around a mixture of experts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal_native.moe import grouped_topk, moe_align_block_size, moe_sum, topk_sigmoid, topk_softmax

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
INF, NAN = math.inf, math.nan
ROUTERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "softmax": (topk_softmax, {}),
    "sigmoid": (topk_sigmoid, {}),
    "groups, softmax": (grouped_topk, {"num_groups": 2, "topk_groups": 1, "renormalize": False}),
    "groups, sigmoid": (
        grouped_topk,
        {"num_groups": 2, "topk_groups": 2, "scoring": "sigmoid", "renormalize": False},
    ),
}
routers = pytest.mark.parametrize("name", ROUTERS)


def routed(name: str, gating: Tensor, k: int, **more: Any) -> tuple[Tensor, Tensor]:
    router, kwargs = ROUTERS[name]
    return router(gating, k, **kwargs | more)


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


# Halves and few of them: ties are frequent, and nearly equal scores do not occur.
rows = st.lists(st.integers(-6, 6), min_size=8, max_size=8).map(lambda n: torch.tensor(n) / 2)
biases = st.none() | rows


# topk_softmax


def test_the_cap_comes_before_the_bias() -> None:
    gating, bias = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([0.0, 3.0, 0.0])
    weights, ids = topk_softmax(gating, 2, correction_bias=bias, softcap=1.0)
    p = torch.tensor([1.0, 3.0, 0.0]).softmax(-1)
    assert ids.tolist() == [[1, 0]]
    torch.testing.assert_close(weights, p[[1, 0]][None])


def test_a_softmax_weight_includes_the_bias() -> None:
    weights, ids = topk_softmax(torch.zeros(1, 2), 1, correction_bias=torch.tensor([0.0, 1.0]))
    assert ids.item() == 1
    assert weights.item() == pytest.approx(math.e / (1 + math.e))


def test_the_softmax_is_over_all_experts_before_the_choice() -> None:
    weights, _ = topk_softmax(torch.zeros(1, 5), 2)
    assert weights.tolist() == [[pytest.approx(0.2)] * 2]
    assert topk_softmax(torch.zeros(1, 5), 2, renormalize=True)[0].tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("experts", [3, 7, 60, 257])
def test_a_cap_counts_no_expert_that_is_not_there(experts: int) -> None:
    # Padding to a power of two that is capped afterwards weighs exp(-cap) each.
    weights, _ = topk_softmax(torch.full((1, experts), -20.0), experts, softcap=1.0)
    torch.testing.assert_close(weights, torch.full((1, experts), 1 / experts))


def test_logits_far_below_any_sentinel_are_chosen_and_weighed_as_any() -> None:
    weights, ids = topk_softmax(torch.tensor([[-2e4, -2e4 - 8, -3e38]]), 2, renormalize=True)
    assert ids.tolist() == [[0, 1]]
    assert weights[0, 0].item() == pytest.approx(1 / (1 + math.exp(-8)))


def test_a_row_without_any_probability_has_zeros() -> None:
    for renormalize in (False, True):
        weights, ids = topk_softmax(torch.full((1, 4), -INF), 3, renormalize=renormalize)
        assert (weights.tolist(), ids.tolist()) == ([[0, 0, 0]], [[0, 1, 2]])


def test_a_cap_brings_infinities_back() -> None:
    weights, ids = topk_softmax(torch.tensor([[INF, -INF, 0.0]]), 3, softcap=1.0)
    assert ids.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, -1.0]]).softmax(-1))
    assert topk_softmax(torch.tensor([[INF, -INF, 0.0]]), 2)[0].isnan().all()


# topk_sigmoid


def test_a_sigmoid_weight_is_exactly_the_score_before_the_bias() -> None:
    gating, bias = torch.tensor([[-12.0, -14.0]]), torch.tensor([1000.0, 1001.0])
    weights, ids = topk_sigmoid(gating, 2, correction_bias=bias)
    # (s + bias) - bias is 0 for both.
    assert ids.tolist() == [[1, 0]]
    assert torch.equal(weights, gating.sigmoid().flip(-1))


@pytest.mark.parametrize("low", [-1.5, -2.0, -1e4, -2e4, -1e38])
def test_scores_below_any_sentinel_still_rank(low: float) -> None:
    bias = torch.tensor([low * 4, low * 3, low, low * 2])
    _, ids = topk_sigmoid(torch.zeros(1, 4), 3, correction_bias=bias)
    assert ids.tolist() == [[2, 3, 1]]


def test_a_bias_of_minus_infinity_puts_an_expert_last() -> None:
    bias = torch.tensor([-INF, 0.0, -INF, 0.0])
    _, ids = topk_sigmoid(torch.zeros(1, 4), 4, correction_bias=bias)
    assert ids.tolist() == [[1, 3, 0, 2]]


def test_a_zero_sum_of_sigmoids_gives_zeros() -> None:
    weights, ids = topk_sigmoid(torch.full((1, 3), -200.0), 2, renormalize=True)
    assert (weights.tolist(), ids.tolist()) == ([[0, 0]], [[0, 1]])


# grouped_topk


def in_groups(scores: list[float], k: int, biased: bool, groups: int = 1) -> list[int]:
    """Experts chosen by these scores, which a bias carries, or a sigmoid; groups of three."""
    wanted = torch.tensor([scores])
    kwargs: dict[str, Any] = {"num_groups": len(scores) // 3, "topk_groups": groups}
    if biased:
        kwargs["correction_bias"] = wanted[0]
    gating = torch.zeros_like(wanted) if biased else wanted.logit()
    return grouped_topk(gating, k, scoring="sigmoid", **kwargs)[1][0].tolist()


def test_a_group_scores_its_two_largest_with_a_bias_and_its_largest_without() -> None:
    scores = [0.9, 0.1, 0.1, 0.6, 0.6, 0.1]
    assert in_groups(scores, 2, biased=True) == [3, 4]
    assert in_groups(scores, 1, biased=False) == [0]


def test_two_equal_maxima_of_a_group_both_count() -> None:
    # If equal ones counted once, the first group would score 0.75 + 0.125.
    assert in_groups([0.75, 0.75, 0.125, 1.0, 0.25, 0.125], 2, biased=True) == [0, 1]


@pytest.mark.parametrize("biased", [False, True])
def test_of_equal_groups_the_first_are_kept(biased: bool) -> None:
    scores = [0.25, 0.5, 0.5] * 4
    assert in_groups(scores, 4, biased, groups=2) == [1, 2, 4, 5]


def test_no_expert_comes_from_a_group_that_was_dropped() -> None:
    # Scores below 0 rank under a mask of zeros.
    for low in (-1.0, -1e4, -1e30):
        scores = [low * 9, low * 8, low * 9, low, low, low * 10]
        assert in_groups(scores, 3, biased=True) == [3, 4, 5]
    # Underflowed probabilities tie at 0 with a mask of zeros.
    gating = torch.tensor([[-500.0, -500.0, -500.0, 0.0, -500.0, -500.0]])
    assert grouped_topk(gating, 3, num_groups=2, topk_groups=1)[1].tolist() == [[3, 4, 5]]


def test_an_expert_of_a_kept_group_with_minus_infinity_beats_all_of_a_dropped_one() -> None:
    bias = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0, -INF])
    kwargs = {"num_groups": 2, "topk_groups": 1, "correction_bias": bias}
    assert grouped_topk(torch.zeros(1, 6), 3, **kwargs)[1].tolist() == [[3, 4, 5]]


def test_a_group_of_one_scores_its_only_expert() -> None:
    bias = torch.tensor([0.0, 3.0, 1.0, 2.0])
    kwargs = {"num_groups": 4, "topk_groups": 2, "correction_bias": bias}
    assert grouped_topk(torch.zeros(1, 4), 2, **kwargs)[1].tolist() == [[1, 3]]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("shared", [1, 2, 3])
def test_every_shared_expert_has_a_place_and_counts_once(shared: int, renormalize: bool) -> None:
    gating = logits(5, 8)
    kwargs: dict[str, Any] = {"num_groups": 2, "topk_groups": 1, "renormalize": renormalize}
    kwargs["routed_scaling_factor"] = 2.5
    alone, ids = grouped_topk(gating, 3, **kwargs)
    for scaled in (False, True):
        more = {"num_fused_shared_experts": shared, "scale_on_output": scaled}
        weights, all_ids = grouped_topk(gating, 3 + shared, **kwargs, **more)
        assert torch.equal(all_ids[:, :3], ids)
        assert all_ids[:, 3:].tolist() == [[8 + i for i in range(shared)]] * 5
        torch.testing.assert_close(weights[:, :3], alone * (2.5 if scaled else 1))
        # After the factor, which is applied here or later, a shared expert counts once.
        torch.testing.assert_close(weights[:, 3:], torch.full((5, shared), 1.0 if scaled else 0.4))


def test_without_renormalising_the_weights_are_scaled_all_the_same() -> None:
    kwargs = {"num_groups": 2, "topk_groups": 1, "renormalize": False}
    once, _ = grouped_topk(logits(5, 8), 3, **kwargs)
    scaled = {"routed_scaling_factor": 16, "scale_on_output": True}
    assert torch.equal(grouped_topk(logits(5, 8), 3, **kwargs, **scaled)[0], once * 16)


def test_a_zero_sum_leaves_the_shared_expert() -> None:
    kwargs: dict[str, Any] = {"num_groups": 1, "topk_groups": 1, "scoring": "sigmoid"}
    kwargs |= {"num_fused_shared_experts": 1, "routed_scaling_factor": 2.0}
    weights, ids = grouped_topk(torch.full((1, 4), -200.0), 3, **kwargs)
    assert (weights.tolist(), ids.tolist()) == ([[0, 0, 0.5]], [[0, 1, 4]])


# All routers


@routers
def test_of_equal_experts_the_lowest_ids_are_chosen(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        gating = torch.tensor([[1.0, 2.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0]], dtype=dtype)
        wanted = [1, 2, 0, 3] if name == "groups, softmax" else [1, 2, 6, 0]
        assert routed(name, gating, 4)[1].tolist() == [wanted]
    many = torch.zeros(1, 2048)
    assert routed(name, many, 8)[1].tolist() == [list(range(8))]


@routers
def test_scores_are_not_rounded_to_the_dtype_of_the_logits(name: str) -> None:
    gating, bias = logits(64, 32).bfloat16(), logits(32, seed=1, scale=0.01)
    half = routed(name, gating, 6, correction_bias=bias)
    for got, want in zip(half, routed(name, gating.float(), 6, correction_bias=bias), strict=True):
        assert torch.equal(got, want)


@routers
def test_a_float64_bias_has_the_scores_in_float64(name: str) -> None:
    gating, bias = logits(64, 32), logits(32, seed=1, scale=0.01).double()
    single = routed(name, gating, 6, correction_bias=bias)
    for got, want in zip(
        single, routed(name, gating.double(), 6, correction_bias=bias), strict=True
    ):
        assert torch.equal(got, want)


@routers
@pytest.mark.parametrize("renormalize", [False, True])
def test_nan_fills_the_weights_of_its_row_and_ids_stay_in_range(
    name: str, renormalize: bool
) -> None:
    gating = logits(5, 8)
    clean = routed(name, gating, 4, renormalize=renormalize)
    gating[2, 6] = NAN
    weights, ids = routed(name, gating, 4, renormalize=renormalize)
    assert weights[2].isnan().all()
    assert ids[2].tolist() == [0, 1, 2, 3]
    for got, want in zip((weights, ids), clean, strict=True):
        others = [0, 1, 3, 4]
        assert torch.equal(got[others], want[others])


@routers
def test_nan_in_the_bias_reaches_every_row(name: str) -> None:
    bias = torch.zeros(8)
    bias[7] = NAN
    weights, ids = routed(name, logits(3, 8), 2, correction_bias=bias)
    assert weights.isnan().all()
    assert ids.tolist() == [[0, 1]] * 3


anything = st.sampled_from([0.0, 1.0, -1.0, -2e4, -1e38, 3e38, INF, -INF, NAN])
wild = st.lists(anything, min_size=8, max_size=8).map(torch.tensor)


@routers
@given(row=wild, bias=st.none() | wild, k=st.integers(1, 4))
@LAWS
def test_ids_are_always_in_range_and_distinct(
    name: str, row: Tensor, bias: Tensor | None, k: int
) -> None:
    weights, ids = routed(name, row, k, correction_bias=bias, renormalize=True)
    chosen = ids.tolist()
    assert len(set(chosen)) == k
    assert all(0 <= expert < 8 for expert in chosen)
    assert weights.isnan().any() == weights.isnan().all()


@routers
@given(row=rows, k=st.integers(1, 4), bias=biases)
@LAWS
def test_renormalised_weights_sum_to_one_and_keep_their_ratios(
    name: str, row: Tensor, k: int, bias: Tensor | None
) -> None:
    weights, ids = routed(name, row, k, correction_bias=bias)
    normed, same = routed(name, row, k, correction_bias=bias, renormalize=True)
    assert torch.equal(ids, same)
    torch.testing.assert_close(normed, weights / weights.sum())


# With a bias another group may be kept.
@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"groups, softmax"}))
@given(row=rows, k=st.integers(1, 3))
@LAWS
def test_a_bias_of_zeros_is_none_where_all_groups_are_kept(name: str, row: Tensor, k: int) -> None:
    with_zeros = routed(name, row, k, correction_bias=torch.zeros(8))
    for got, want in zip(with_zeros, routed(name, row, k), strict=True):
        assert torch.equal(got, want)


@given(row=rows, k=st.integers(1, 7), shift=st.integers(-8, 8))
@LAWS
def test_softmax_routing_does_not_change_when_logits_shift(row: Tensor, k: int, shift: int) -> None:
    for got, want in zip(topk_softmax(row + shift, k), topk_softmax(row, k), strict=True):
        assert torch.equal(got, want)


@given(row=rows, k=st.integers(1, 7), bias=biases)
@LAWS
def test_one_more_expert_leaves_the_first_as_they_are(
    row: Tensor, k: int, bias: Tensor | None
) -> None:
    for router in (topk_softmax, topk_sigmoid):
        fewer = router(row, k, correction_bias=bias)
        more = router(row, k + 1, correction_bias=bias)
        for few, many in zip(fewer, more, strict=True):
            assert torch.equal(few, many[:k])


@given(row=rows, k=st.integers(1, 8), bias=biases, renormalize=st.booleans())
@LAWS
def test_when_all_groups_are_kept_groups_do_not_matter(
    row: Tensor, k: int, bias: Tensor | None, renormalize: bool
) -> None:
    want = topk_sigmoid(row, k, renormalize=renormalize, correction_bias=bias)
    kwargs: dict[str, Any] = {"scoring": "sigmoid", "correction_bias": bias}
    for groups in (1, 2, 4, 8):
        kwargs |= {"num_groups": groups, "topk_groups": groups, "renormalize": renormalize}
        for got, expected in zip(grouped_topk(row, k, **kwargs), want, strict=True):
            assert torch.equal(got, expected)


# moe_align_block_size


def test_blocks_are_of_one_expert_padded_with_the_number_of_pairs() -> None:
    ids = torch.tensor([[2, 0], [2, 2], [0, 2]])
    pairs, experts, used = moe_align_block_size(ids, 4, 3)
    assert pairs.tolist() == [1, 4, 6, 0, 2, 3, 5, 6, 6, 6, 6, 6]
    assert experts.tolist() == [0, 2, 2, -1]
    assert used.tolist() == [9]


def test_a_pair_without_an_expert_is_in_no_block() -> None:
    ids = torch.tensor([-1, 1, 4, -(2**31), 2**31 - 1, 1], dtype=torch.int32)
    pairs, experts, used = moe_align_block_size(ids, 4, 4)
    assert pairs[:4].tolist() == [1, 5, 6, 6]
    assert (experts.tolist()[0], used.tolist()) == (1, [4])
    assert (pairs[4:] == 6).all()
    assert (experts[1:] == -1).all()


@given(
    ids=st.lists(st.integers(-1, 6), max_size=40),
    experts=st.integers(1, 6),
    block=st.sampled_from([1, 2, 3, 4, 7, 64]),
)
@LAWS
def test_every_pair_is_in_a_block_of_its_expert_once(
    ids: list[int], experts: int, block: int
) -> None:
    pairs, owners, used = moe_align_block_size(torch.tensor(ids, dtype=torch.int64), experts, block)
    found = [
        (pair, owner)
        for row, owner in zip(pairs.view(-1, block).tolist(), owners.tolist(), strict=True)
        for pair in row
        if pair < len(ids)
    ]
    wanted = [(pair, e) for pair, e in enumerate(ids) if 0 <= e < experts]
    assert sorted(found) == wanted
    assert found == sorted(found, key=lambda each: (each[1], each[0]))
    assert used.item() == block * int((owners >= 0).sum())
    assert (owners[: used // block] >= 0).all()


@pytest.mark.parametrize("tokens", range(12))
def test_there_are_exactly_as_many_blocks_as_the_worst_case_needs(tokens: int) -> None:
    experts, block = 3, 4
    worst = max(
        sum(-(-n // block) for n in (a, b, tokens - a - b))
        for a in range(tokens + 1)
        for b in range(tokens + 1 - a)
    )
    ids = torch.zeros(tokens, dtype=torch.int32)
    pairs, owners, _ = moe_align_block_size(ids, experts, block)
    assert (len(pairs), len(owners)) == (worst * block, worst)


def test_the_blocks_of_compiled_code_follow_the_number_of_tokens() -> None:
    def align(ids: Tensor) -> Any:
        return hal.ops.moe_align_block_size(ids, 8, 4)

    compiled = torch.compile(align, backend="eager", dynamic=True, fullgraph=True)
    for tokens in (1, 3, 8, 9, 40):
        ids = torch.arange(2 * tokens).view(tokens, 2) % 8
        for got, want in zip(compiled(ids), align(ids), strict=True):
            assert torch.equal(got, want)


# moe_sum


def test_the_sum_is_kept_in_float32_and_scaled_before_the_rounding() -> None:
    # A bfloat16 sum of ones stays at 256; 257 / 257 is 1, 256 / 257 is not, nor 258 / 257.
    x = torch.ones(1, 257, 3, dtype=torch.bfloat16)
    assert torch.equal(moe_sum(x, scale=1 / 257), torch.ones(1, 3).bfloat16())
    large = torch.full((1, 9, 2), 6e4).half()
    assert torch.isclose(moe_sum(large, scale=0.1), torch.full((1, 2), 5.4e4).half()).all()


def test_the_default_scale_is_one() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert moe_sum(x).tolist() == [[6, 9], [24, 27]]


def test_nan_stays_in_its_column_and_no_experts_sum_to_zero() -> None:
    x = torch.ones(2, 3, 4)
    x[1, 2, 3] = NAN
    assert moe_sum(x).isnan().nonzero().tolist() == [[1, 3]]
    assert torch.equal(moe_sum(x[:, :0]), torch.zeros(2, 4))


def test_the_steps_of_a_layer_give_the_experts_of_each_token() -> None:
    gating, x, experts = logits(9, 6), logits(9, 5, seed=1), logits(6, 5, 5, seed=2)
    weights, ids = topk_softmax(gating, 2, renormalize=True)
    pairs, owners, _ = moe_align_block_size(ids, 6, 4)
    out = torch.zeros(19, 5)  # The last row takes the padding.
    for block, owner in zip(pairs.view(-1, 4).long(), owners.tolist(), strict=True):
        if owner >= 0:
            out[block] = x[(block // 2).clamp(max=8)] @ experts[owner]
    summed = moe_sum(out[:18].view(9, 2, 5) * weights.unsqueeze(-1))
    want = torch.einsum("th,tkho,tk->to", x, experts[ids.long()], weights)
    torch.testing.assert_close(summed, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_tie_wherever_they_are(dtype: torch.dtype) -> None:
    # torch's sigmoid of the last elements of a tensor differs in the last bit.
    groups = {"num_groups": 1, "topk_groups": 1, "scoring": "sigmoid"}
    for value in torch.linspace(-4, 4, 129).tolist():
        gating = torch.full((3, 7), value, dtype=dtype)
        in_order = [list(range(7))] * 3
        assert hal.ops.topk_sigmoid(gating, 7)[1].tolist() == in_order
        assert hal.ops.grouped_topk(gating, 7, **groups)[1].tolist() == in_order
