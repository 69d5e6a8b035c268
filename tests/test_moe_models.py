"""Routing against that of models in transformers, which orders ties and the chosen as it likes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from hal_native.moe import grouped_topk, topk_softmax


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def by_id(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    ids, order = ids.sort(dim=-1)
    return ids.long(), weights.gather(-1, order)


def assert_alike(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    ids, weights = by_id(*ours)
    other_ids, other_weights = by_id(*theirs)
    assert torch.equal(ids, other_ids)
    torch.testing.assert_close(weights, other_weights)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("experts", "k"), [(128, 8), (60, 4), (8, 2)])
def test_softmax_routing_is_that_of_qwen3_moe(experts: int, k: int, renormalize: bool) -> None:
    config = Qwen3MoeConfig(
        hidden_size=32, num_experts=experts, num_experts_per_tok=k, norm_topk_prob=renormalize
    )
    router = Qwen3MoeTopKRouter(config)
    router.weight.data = logits(experts, 32, scale=0.3)
    gating, *theirs = router(logits(64, 32, seed=1))
    assert_alike(topk_softmax(gating, k, renormalize=renormalize), tuple(theirs))


@pytest.mark.parametrize(
    ("experts", "k", "groups", "kept"), [(160, 6, 8, 3), (64, 6, 1, 1), (60, 4, 5, 2)]
)
def test_grouped_softmax_routing_is_that_of_deepseek_v2(
    experts: int, k: int, groups: int, kept: int
) -> None:
    config = DeepseekV2Config(
        hidden_size=32,
        n_routed_experts=experts,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=kept,
        topk_method="group_limited_greedy",
        routed_scaling_factor=16.0,
    )
    router = DeepseekV2TopkRouter(config)
    router.weight.data = logits(experts, 32, scale=0.3)
    gating, *theirs = router(logits(64, 32, seed=1))
    kwargs = {"num_groups": groups, "topk_groups": kept, "routed_scaling_factor": 16.0}
    ours = grouped_topk(gating, k, renormalize=False, scale_on_output=True, **kwargs)
    assert_alike(ours, tuple(theirs))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("experts", "k", "groups", "kept"), [(256, 8, 8, 4), (384, 8, 1, 1), (60, 4, 5, 2)]
)
def test_grouped_sigmoid_routing_is_that_of_deepseek_v3(
    experts: int, k: int, groups: int, kept: int, renormalize: bool
) -> None:
    config = DeepseekV3Config(
        hidden_size=32,
        n_routed_experts=experts,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=renormalize,
        routed_scaling_factor=2.5,
    )
    router = DeepseekV3TopkRouter(config)
    router.weight.data = logits(experts, 32, scale=0.3)
    bias = router.e_score_correction_bias.copy_(logits(experts, seed=2, scale=0.1))
    gating, *theirs = router(logits(64, 32, seed=1))
    kwargs: dict[str, Any] = {"num_groups": groups, "topk_groups": kept, "scoring": "sigmoid"}
    kwargs |= {"correction_bias": bias, "renormalize": renormalize, "scale_on_output": True}
    assert_alike(grouped_topk(gating, k, routed_scaling_factor=2.5, **kwargs), tuple(theirs))
