"""Laws of the routing to experts."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

SCORINGS = st.sampled_from(["softmax", "sigmoid"])
ROUTE: dict[str, Any] = {
    "rows": ROWS,
    "experts": st.integers(1, 65),
    "k": st.integers(1, 8),
    "scoring": SCORINGS,
    "seed": SEEDS,
}


def _logits(values: Values, rows: int, experts: int) -> Tensor:
    """Eighths, of which some are equal and no two are told apart by a rounding."""
    return values.integers(rows, experts, low=-24, high=25) / 8


def _topk(scoring: str, gating: Tensor, k: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    function = hal.ops.topk_softmax if scoring == "softmax" else hal.ops.topk_sigmoid
    return function(gating, k, **kwargs)


def ids_are_the_first_in_order(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    gating, k = _logits(Values(seed), rows, experts), min(k, experts)
    weights, ids = _topk(scoring, gating, k)
    chosen = gating.gather(1, ids.long())
    ahead = (chosen[:, :-1] > chosen[:, 1:]) | (
        (chosen[:, :-1] == chosen[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    )
    assert bool(ahead.all()), "not in descending order, equal ones by index"
    assert bool(((ids >= 0) & (ids < experts)).all())
    left = gating.scatter(1, ids.long(), -torch.inf)
    assert bool((left.amax(1) <= chosen[:, -1]).all()), "a better one is left out"
    assert bool((weights[:, :-1] >= weights[:, 1:]).all())


def a_shift_of_the_logits(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    del scoring
    gating, k = _logits(Values(seed), rows, experts), min(k, experts)
    weights, ids = hal.ops.topk_softmax(gating, k)
    shifted, also = hal.ops.topk_softmax(gating + 4.5, k)
    equal(also, ids)
    near(shifted, weights, 8)


def renormalised_weights_sum_to_1(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    gating, k = _logits(Values(seed), rows, experts), min(k, experts)
    plain, _ = _topk(scoring, gating, k)
    weights, _ = _topk(scoring, gating, k, renormalize=True)
    near(weights.sum(1), weights.new_ones(rows), 8)
    near(weights, plain / plain.sum(1, keepdim=True), 8)


def experts_in_another_order(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    values, k = Values(seed), min(k, experts)
    order = values.order(experts)
    # Logits of which no two are equal, since the rule for those goes by index.
    gating = torch.stack([values.order(experts) for _ in range(rows)]) / 8
    weights, ids = _topk(scoring, gating, k)
    moved, places = _topk(scoring, gating[:, order], k)
    equal(order[places.long()].int(), ids)
    near(moved, weights, 8)


def a_bias_for_all_changes_no_choice(
    rows: int, experts: int, k: int, scoring: str, seed: int
) -> None:
    gating, k = _logits(Values(seed), rows, experts), min(k, experts)
    weights, ids = _topk(scoring, gating, k)
    bias = gating.new_full((experts,), 0.5)
    biased, also = _topk(scoring, gating, k, correction_bias=bias)
    equal(also, ids)
    near(biased, weights, 8)


def one_group_is_topk(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    gating, k = _logits(Values(seed), rows, experts), min(k, experts)
    groups: dict[str, Any] = {"num_groups": 1, "topk_groups": 1, "scoring": scoring}
    for renormalize in (True, False):
        weights, ids = hal.ops.grouped_topk(gating, k, renormalize=renormalize, **groups)
        want, also = _topk(scoring, gating, k, renormalize=renormalize)
        equal(ids, also)
        near(weights, want, 8)


def groups_are_kept_whole(
    rows: int, groups: int, size: int, k: int, scoring: str, seed: int
) -> None:
    gating = _logits(Values(seed), rows, groups * size)
    kept = 1 + seed % groups
    k = min(k, kept * size)
    _, ids = hal.ops.grouped_topk(gating, k, num_groups=groups, topk_groups=kept, scoring=scoring)
    for row, chosen in zip(gating, (ids // size).tolist(), strict=True):
        best = row.view(groups, size).amax(1)
        order = sorted(range(groups), key=lambda group: (-float(best[group]), group))
        assert set(chosen) <= set(order[:kept])
    assert all(len(set(row)) == k for row in ids.tolist())


def shared_experts_come_last(
    rows: int, groups: int, size: int, k: int, scoring: str, seed: int
) -> None:
    gating, factor = _logits(Values(seed), rows, groups * size), 2.5
    k = min(k, groups * size)
    given: dict[str, Any] = {"num_groups": groups, "topk_groups": groups, "scoring": scoring}
    weights, ids = hal.ops.grouped_topk(gating, k, **given)
    given |= {"num_fused_shared_experts": 2, "routed_scaling_factor": factor}
    for scaled in (False, True):
        all_weights, all_ids = hal.ops.grouped_topk(gating, k + 2, scale_on_output=scaled, **given)
        equal(all_ids[:, :k], ids)
        assert all_ids[:, k:].tolist() == [[groups * size, groups * size + 1]] * rows
        total = all_weights * (1 if scaled else factor)
        near(total[:, k:], torch.ones_like(total[:, k:]), 8)
        near(total[:, :k], weights * factor, 8)
        near(total[:, :k].sum(1), total.new_full((rows,), factor), 8)


def pairs_fill_blocks(pairs: int, experts: int, block_size: int, seed: int) -> None:
    topk_ids = Values(seed).integers(pairs, low=-1, high=experts)
    sorted_ids, owners, used = hal.ops.moe_align_block_size(topk_ids, experts, block_size)
    blocks = sorted_ids.view(-1, block_size).tolist()
    ids, placed = topk_ids.tolist(), []
    for owner, block in zip(owners.tolist(), blocks, strict=True):
        own = [pair for pair in block if pair != pairs]
        assert all(ids[pair] == owner for pair in own), "a pair in the block of another expert"
        assert block == own + [pairs] * (block_size - len(own)), "padding before a pair"
        placed += own
    assert sorted(placed) == [pair for pair, expert in enumerate(ids) if expert >= 0]
    in_use = int(used.item()) // block_size
    assert used.item() == in_use * block_size
    known = owners[:in_use].tolist()
    assert known == sorted(known)
    assert owners[in_use:].eq(-1).all()
    assert all(block[0] != pairs for block in blocks[:in_use])


def a_sum_in_any_order(rows: int, experts: int, k: int, scoring: str, seed: int) -> None:
    del scoring
    values = Values(seed)
    x = values(rows, k, experts)
    total = hal.ops.moe_sum(x)
    # Up to eight multiples of 2**-14 below 2 add up without rounding.
    equal(hal.ops.moe_sum(x[:, values.order(k)]), total)
    equal(hal.ops.moe_sum(x, scale=4.0), 4 * total)
    equal(hal.ops.moe_sum(x[:, :1]), x[:, 0])
    equal(total, hal.ops.moe_sum(x[:, : k // 2]) + hal.ops.moe_sum(x[:, k // 2 :]))


GROUPED: dict[str, Any] = {
    "rows": ROWS,
    "groups": st.integers(1, 8),
    "size": st.integers(1, 9),
    "k": st.integers(1, 8),
    "scoring": SCORINGS,
    "seed": SEEDS,
}
ALIGN: dict[str, Any] = {
    "pairs": st.integers(1, 40),
    "experts": st.integers(1, 9),
    "block_size": st.integers(1, 9),
    "seed": SEEDS,
}
TOPK = ("topk_softmax", "topk_sigmoid")

LAWS = [
    Law("ids are the first in order", TOPK, ROUTE, ids_are_the_first_in_order),
    Law("a shift of the logits changes nothing", TOPK[:1], ROUTE, a_shift_of_the_logits),
    Law("renormalised weights sum to 1", TOPK, ROUTE, renormalised_weights_sum_to_1),
    Law("experts in another order have other ids", TOPK, ROUTE, experts_in_another_order),
    Law("one bias for all changes nothing", TOPK, ROUTE, a_bias_for_all_changes_no_choice),
    Law("one group is no group", ("grouped_topk", *TOPK), ROUTE, one_group_is_topk),
    Law("experts are of the best groups", ("grouped_topk",), GROUPED, groups_are_kept_whole),
    Law(
        "shared experts come last, and weights sum to the factor",
        ("grouped_topk",),
        GROUPED,
        shared_experts_come_last,
    ),
    Law(
        "moe_align_block_size puts every pair once, and padding behind",
        ("moe_align_block_size",),
        ALIGN,
        pairs_fill_blocks,
    ),
    Law("moe_sum is a sum", ("moe_sum",), ROUTE, a_sum_in_any_order),
]
