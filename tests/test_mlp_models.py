"""MLPs and mixtures of experts against those of models in transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    NemotronConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssTopKRouter
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.nemotron.modeling_nemotron import NemotronMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeSparseMoeBlock

import hal

# Measured 0 to 3e-7.
FLOAT32 = 1e-6
HIDDEN, INTER = 42, 19
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INTER, "moe_intermediate_size": INTER}
SIZES |= {"num_attention_heads": 1, "num_key_value_heads": 1}
Tensors = tuple[Tensor, Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> Any:
    """The module with random parameters, under which activations are of the order of 1."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = randn(*parameter.shape, seed=100 + i) * 2 * HIDDEN**-0.5
    return module.eval().requires_grad_(False)


def config_of(make: Any, **more: Any) -> Any:
    config = make(**SIZES | more)
    config._experts_implementation = "eager"
    return config


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got.double() - expected.double()).norm() <= FLOAT32 * expected.double().norm()


# Dense


silu, gelu, tanh = hal.ops.silu_and_mul, hal.ops.gelu_and_mul, hal.ops.gelu_tanh_and_mul
GATED: dict[str, tuple[Any, Any, Callable[[Tensor], Tensor], str]] = {
    "llama": (LlamaMLP, config_of(LlamaConfig), silu, "silu"),
    "llama, erf": (LlamaMLP, config_of(LlamaConfig, hidden_act="gelu"), gelu, "gelu"),
    "qwen3": (Qwen3MLP, config_of(Qwen3Config), silu, "silu"),
    "gemma": (GemmaMLP, config_of(GemmaConfig), tanh, "gelu_tanh"),
    "gemma2": (Gemma2MLP, config_of(Gemma2Config), tanh, "gelu_tanh"),
    "gemma3": (Gemma3MLP, config_of(Gemma3TextConfig), tanh, "gelu_tanh"),
}


def gate_up(mlp: Any) -> Tensor:
    return torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))


@pytest.mark.parametrize("name", GATED)
def test_gated_mlps(name: str) -> None:
    make, config, op, activation = GATED[name]
    mlp, x = filled(make(config)), randn(2, 11, HIDDEN)
    expected = mlp(x)
    assert_near(mlp.down_proj(op(x @ gate_up(mlp).T)), expected)
    # An MLP is a mixture of one expert.
    weights, ids = torch.ones(2, 11, 1), torch.zeros(2, 11, 1, dtype=torch.int32)
    mixture = x, gate_up(mlp)[None], mlp.down_proj.weight[None], weights, ids
    assert_near(hal.ops.fused_experts(*mixture, activation=activation), expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gated_mlp_of_two_products(rows: int) -> None:
    mlp, x = filled(LlamaMLP(config_of(LlamaConfig))), randn(rows, HIDDEN)
    inner = hal.ops.fused_gemv(x, gate_up(mlp), activation="swiglu")
    assert_near(hal.ops.fused_gemv(inner, mlp.down_proj.weight), mlp(x))


def test_plain_mlps() -> None:
    x = randn(2, 11, HIDDEN)
    nemotron = filled(NemotronMLP(config_of(NemotronConfig)))
    ours = nemotron.down_proj(hal.ops.relu_squared(nemotron.up_proj(x)))
    assert_near(ours, nemotron(x))
    clip = filled(CLIPMLP(config_of(CLIPTextConfig)))
    assert_near(clip.fc2(hal.ops.quick_gelu(clip.fc1(x))), clip(x))


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_activation_of_gpt_oss(scale: float) -> None:
    # With a scale of 20 most of the gates and ups are clamped.
    experts = GptOssExperts(config_of(GptOssConfig))
    x = randn(33, 2 * INTER) * scale
    expected = experts._apply_gate(x)
    assert_near(hal.ops.swigluoai_and_mul(x, experts.alpha, experts.limit), expected)
    assert_near(hal.ops.swigluoai_and_mul(x), expected)


# Mixtures


@pytest.mark.parametrize(("experts", "k"), [(5, 1), (7, 3), (16, 16)])
def test_experts(experts: int, k: int) -> None:
    config = config_of(Qwen3MoeConfig, num_experts=experts, num_experts_per_tok=k)
    module, x = filled(Qwen3MoeExperts(config)), randn(29, HIDDEN, seed=1)
    weights, ids = hal.ops.topk_softmax(randn(29, experts, seed=2), k)
    expected = module(x, ids.long(), weights)
    w13, w2 = module.gate_up_proj, module.down_proj
    assert_near(hal.ops.fused_experts(x, w13, w2, weights, ids), expected)
    inner = hal.ops.fused_moe_gemv(x, w13, None, ids, activation="swiglu")
    assert_near(hal.ops.moe_sum(hal.ops.fused_moe_gemv(inner, w2, weights, ids)), expected)


def test_an_id_past_the_experts_is_left_out() -> None:
    # transformers marks so what another device computes; older versions do not take the mark.
    module, x = filled(Qwen3MoeExperts(config_of(Qwen3MoeConfig, num_experts=4))), randn(3, HIDDEN)
    weights, ids = randn(3, 2, seed=1), torch.tensor([[4, 0], [1, 4], [4, 4]])
    ours = hal.ops.fused_experts(x, module.gate_up_proj, module.down_proj, weights, ids)
    assert_near(ours, module(x, ids.clamp(max=3), weights.masked_fill(ids == 4, 0.0)))


def test_the_router_of_gpt_oss_is_a_softmax_over_the_chosen() -> None:
    config = config_of(GptOssConfig, num_local_experts=13, num_experts_per_tok=4)
    router = filled(GptOssTopKRouter(config))
    logits, expected, chosen = router(randn(21, HIDDEN))
    weights, ids = hal.ops.topk_softmax(logits, 4, renormalize=True)
    assert torch.equal(ids.long(), chosen)
    assert_near(weights, expected)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_mixture_of_qwen3_moe(renormalize: bool) -> None:
    sizes = {"num_experts": 11, "num_experts_per_tok": 3, "norm_topk_prob": renormalize}
    config, x = config_of(Qwen3MoeConfig, **sizes), randn(2, 9, HIDDEN)
    block = filled(Qwen3MoeSparseMoeBlock(config))
    routing = hal.ops.topk_softmax(x @ block.gate.weight.T, 3, renormalize=renormalize)
    experts = block.experts
    ours = hal.ops.fused_experts(x, experts.gate_up_proj, experts.down_proj, *routing)
    assert_near(ours, block(x))


def with_shared(block: Any, shared: int) -> Tensors:
    """The weights of the experts, then those of the shared ones, which are one MLP in pieces."""
    mlp = block.shared_experts
    pieces = [p.weight.chunk(shared) for p in (mlp.gate_proj, mlp.up_proj)]
    w13 = torch.stack([torch.cat(pair) for pair in zip(*pieces, strict=True)])
    w2 = torch.stack(mlp.down_proj.weight.chunk(shared, dim=1))
    return torch.cat((block.experts.gate_up_proj, w13)), torch.cat((block.experts.down_proj, w2))


FACTOR = 2.5
DEEPSEEK = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": FACTOR,
}


def deepseek_v2(shared: int) -> tuple[Any, dict[str, Any]]:
    method = {"topk_method": "group_limited_greedy", "n_shared_experts": shared}
    return filled(DeepseekV2Moe(config_of(DeepseekV2Config, **DEEPSEEK | method))), {
        "renormalize": False
    }


def deepseek_v3(shared: int) -> tuple[Any, dict[str, Any]]:
    block = filled(DeepseekV3MoE(config_of(DeepseekV3Config, n_shared_experts=shared, **DEEPSEEK)))
    bias = block.gate.e_score_correction_bias.copy_(randn(12, seed=3) * 0.1)
    return block, {"scoring": "sigmoid", "correction_bias": bias}


@pytest.mark.parametrize("scale_on_output", [False, True])
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("made", [deepseek_v2, deepseek_v3])
def test_the_mixture_of_deepseek_with_its_shared_experts_among_the_routed(
    made: Callable[[int], tuple[Any, dict[str, Any]]], shared: int, scale_on_output: bool
) -> None:
    (block, options), x = made(shared), randn(2, 9, HIDDEN)
    routing = hal.ops.grouped_topk(
        x @ block.gate.weight.T,
        4 + shared,
        num_groups=4,
        topk_groups=2,
        num_fused_shared_experts=shared,
        routed_scaling_factor=FACTOR,
        scale_on_output=scale_on_output,
        **options,
    )
    ours = hal.ops.fused_experts(x, *with_shared(block, shared), *routing)
    assert_near(ours * (1.0 if scale_on_output else FACTOR), block(x))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_experts_with_other_activations(activation: str) -> None:
    config = config_of(Qwen3MoeConfig, num_experts=3, hidden_act=activation)
    module, x = filled(Qwen3MoeExperts(config)), randn(8, HIDDEN, seed=1)
    weights, ids = hal.ops.topk_softmax(randn(8, 3, seed=2), 2)
    args = x, module.gate_up_proj, module.down_proj, weights, ids
    ours = hal.ops.fused_experts(*args, activation=activation.replace("_pytorch", ""))
    assert_near(ours, module(x, ids.long(), weights))
