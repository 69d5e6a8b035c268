"""The ops against the modules of transformers, with random weights and odd sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    Glm4vTextConfig,
    GlmConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen2VLTextConfig,
    Qwen3Config,
    Qwen3VLTextConfig,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.gemma import modeling_gemma as gemma
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.glm import modeling_glm as glm
from transformers.models.glm4v import modeling_glm4v as glm4v
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama import modeling_llama as llama
from transformers.models.nemotron import modeling_nemotron as nemotron
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

import hal

# Measured 0 to 3e-7, and 7e-7 behind two projections.
FLOAT32 = 2e-6
HALVES = [torch.float16, torch.bfloat16]
LENGTHS = (1, 7, 33, 2)
HIDDEN = 42
ROPE = {"rope_type": "default", "rope_theta": 5000.0}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    """The module with random parameters, those of norms too."""
    for i, parameter in enumerate(module.parameters()):
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        parameter.data = randn(*parameter.shape, seed=100 + i) * scale
    return module.eval().requires_grad_(False)


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).norm() / expected.double().norm())


SIZES = [1, 7, 65, 111, 257]
NORMS = {
    "llama": (llama.LlamaRMSNorm, hal.ops.rms_norm),
    "qwen3": (qwen3.Qwen3RMSNorm, hal.ops.rms_norm),
    "gemma": (gemma.GemmaRMSNorm, hal.ops.gemma_rms_norm),
    "gemma2": (gemma2.Gemma2RMSNorm, hal.ops.gemma_rms_norm),
    "gemma3": (gemma3.Gemma3RMSNorm, hal.ops.gemma_rms_norm),
}


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NORMS)
def test_rms_norms(name: str, size: int, eps: float) -> None:
    module, op = NORMS[name]
    theirs, x = filled(module(size, eps=eps)), randn(2, 5, size) * 3
    assert error(op(x, theirs.weight, eps), theirs(x)) <= FLOAT32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_rms_norms_in_half_precision_are_as_close_to_float64(name: str, dtype: torch.dtype) -> None:
    module, op = NORMS[name]
    theirs, x = filled(module(257)).to(dtype), (randn(64, 257) * 3).to(dtype)
    exact = op(x.double(), theirs.weight.double())
    # Llama's rounds the norm before it multiplies, Gemma's only after, as hal does.
    assert error(op(x, theirs.weight), exact) <= error(theirs(x), exact) * (1 + 1e-3)


@pytest.mark.parametrize("size", SIZES[1:])
def test_layer_norms(size: int) -> None:
    # Nemotron counts the weight from one.
    theirs, x = filled(nemotron.NemotronLayerNorm1P(size)), randn(2, 5, size) * 3 + 7
    got = hal.ops.layer_norm(x, theirs.weight + 1, theirs.bias, theirs.eps)
    assert error(got, theirs(x)) <= FLOAT32


def table_of(rotary: nn.Module, positions: int = 64) -> Tensor:
    """The cosines and sines of a module as a cache of hal's."""
    places = torch.arange(positions)[None]
    cos, sin = rotary(torch.zeros(1), places)
    half = rotary.inv_freq.shape[0]
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


def config_of(make: Any, head_dim: int, **more: Any) -> Any:
    """A configuration of one layer of few heads."""
    small = {"hidden_size": HIDDEN, "num_attention_heads": 6, "num_key_value_heads": 3}
    small |= {"num_hidden_layers": 2, "vocab_size": 64, "rope_parameters": ROPE}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        small[name] = None
    config = make(**{**small, "head_dim": head_dim, **more})
    config._attn_implementation = "eager"
    return config


PARTIAL = {**ROPE, "partial_rotary_factor": 0.5}
ROTARIES = {
    "llama": (llama.LlamaRotaryEmbedding, llama, LlamaConfig, ROPE, True),
    "qwen3": (qwen3.Qwen3RotaryEmbedding, qwen3, Qwen3Config, ROPE, True),
    "glm": (glm.GlmRotaryEmbedding, glm, GlmConfig, PARTIAL, False),
}


@pytest.mark.parametrize("head_dim", [4, 12, 24, 80, 128])
@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_embeddings(name: str, head_dim: int) -> None:
    module, model, make, rope, is_neox = ROTARIES[name]
    rotary = module(config_of(make, head_dim, rope_parameters=rope))
    positions = torch.tensor([[3, 0, 63, 17, 17]])
    q, k = randn(1, 6, 5, head_dim), randn(1, 3, 5, head_dim, seed=1)
    expected = model.apply_rotary_pos_emb(q, k, *rotary(q, positions))
    heads = q[0].transpose(0, 1), k[0].transpose(0, 1)
    got = hal.ops.rotary_embedding(positions[0], *heads, table_of(rotary), is_neox=is_neox)
    for ours, theirs in zip(got, expected, strict=True):
        assert error(ours, theirs[0].transpose(0, 1)) <= FLOAT32


MULTIMODAL = {
    "qwen2_vl": (
        *(qwen2_vl.Qwen2VLRotaryEmbedding, qwen2_vl, Qwen2VLTextConfig, True),
        *([3, 4, 5], (3, 4, 5)),
    ),
    "qwen3_vl": (
        *(qwen3_vl.Qwen3VLTextRotaryEmbedding, qwen3_vl, Qwen3VLTextConfig, True),
        *([6, 3, 3], (1,) * 9 + (3,)),
    ),
    "glm4v": (
        *(glm4v.Glm4vTextRotaryEmbedding, glm4v, Glm4vTextConfig, False),
        *([2, 5, 5], (2, 5, 5)),
    ),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_multimodal_rotary_embeddings(name: str) -> None:
    module, model, make, is_neox, stated, sections = MULTIMODAL[name]
    rope = {**ROPE, "mrope_section": stated}
    rotary = module(config_of(make, 24, rope_parameters=rope))
    positions = torch.tensor([[3, 3, 3, 17, 0], [3, 4, 5, 17, 9], [3, 5, 4, 17, 63]])
    q, k = randn(1, 6, 5, 24), randn(1, 3, 5, 24, seed=1)
    expected = model.apply_rotary_pos_emb(q, k, *rotary(q, positions[:, None]))
    heads, rates = (q[0].transpose(0, 1), k[0].transpose(0, 1)), rotary.inv_freq
    angles = torch.arange(64.0)[:, None] * rates
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    got = hal.ops.multimodal_rotary_embedding(positions, *heads, table, sections, is_neox=is_neox)
    for ours, theirs in zip(got, expected, strict=True):
        assert error(ours, theirs[0].transpose(0, 1)) <= FLOAT32


def starts() -> Tensor:
    return torch.tensor([0, *LENGTHS]).cumsum(0).int()


def their_attention(
    module: nn.Module, hidden: Tensor, rotary: nn.Module, window: int | None
) -> Tensor:
    """The module on each sequence by itself, with the mask that transformers would make."""
    assert getattr(module, "sliding_window", None) == window
    mask = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    outs = []
    for a, b in pairwise(starts().tolist()):
        x, length = hidden[None, a:b], b - a
        seen = eager_mask(1, length, length, mask_function=mask)
        outs.append(module(x, rotary(x, torch.arange(length)[None]), attention_mask=seen)[0][0])
    return torch.cat(outs)


def positions() -> Tensor:
    return torch.cat([torch.arange(length) for length in LENGTHS])


def projected(module: nn.Module, hidden: Tensor) -> list[Tensor]:
    projections = module.q_proj, module.k_proj, module.v_proj
    return [project(hidden).unflatten(-1, (-1, module.head_dim)) for project in projections]


def attended(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """All sequences in one call, then the module's last projection."""
    bounds = starts(), starts(), max(LENGTHS), max(LENGTHS)
    out, _ = hal.ops.varlen_attention(q, k, v, *bounds, causal=True, **options)
    return module.o_proj(out.flatten(1))


WINDOW = 5
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
CAPPED = {"softcap": 0.7, "scale": 9**-0.5}
# A window of transformers counts the own key, one of hal's those before it.
BEFORE = {"window": (WINDOW - 1, -1)}


def gemma2_parts(layer: int) -> tuple[nn.Module, nn.Module]:
    config = config_of(
        Gemma2Config, 14, attn_logit_softcapping=0.7, query_pre_attn_scalar=9, **LAYERS
    )
    return gemma2.Gemma2Attention(config, layer), gemma2.Gemma2RotaryEmbedding(config)


def gpt_oss_parts(layer: int) -> tuple[nn.Module, nn.Module]:
    config = config_of(GptOssConfig, 12, **LAYERS)
    return gpt_oss.GptOssAttention(config, layer), gpt_oss.GptOssRotaryEmbedding(config)


def llama_parts(layer: int) -> tuple[nn.Module, nn.Module]:
    config = config_of(LlamaConfig, 10)
    return llama.LlamaAttention(config, layer), llama.LlamaRotaryEmbedding(config)


@pytest.mark.parametrize(
    ("parts", "layer", "options"),
    [
        pytest.param(llama_parts, 1, {}, id="llama"),
        pytest.param(gemma2_parts, 0, {**CAPPED, **BEFORE}, id="gemma2, softcap and window"),
        pytest.param(gemma2_parts, 1, CAPPED, id="gemma2, softcap"),
        pytest.param(gpt_oss_parts, 0, BEFORE, id="gpt_oss, sinks and window"),
        pytest.param(gpt_oss_parts, 1, {}, id="gpt_oss, sinks"),
    ],
)
def test_attention(parts: Any, layer: int, options: dict[str, Any]) -> None:
    module, rotary = parts(layer)
    filled(module)
    hidden, window = randn(sum(LENGTHS), HIDDEN), WINDOW if "window" in options else None
    expected = their_attention(module, hidden, rotary, window)
    q, k, v = projected(module, hidden)
    q, k = hal.ops.rotary_embedding(positions(), q, k, table_of(rotary))
    sinks = getattr(module, "sinks", None)
    assert error(attended(module, q, k, v, **options, sinks=sinks), expected) <= FLOAT32


def test_attention_of_images() -> None:
    config = Qwen2VLVisionConfig(embed_dim=HIDDEN, num_heads=3)
    config._attn_implementation = "eager"
    module, hidden = filled(qwen2_vl.VisionAttention(config)), randn(sum(LENGTHS), HIDDEN)
    angles = randn(sum(LENGTHS), 7, seed=1)
    twice = torch.cat((angles, angles), dim=-1)
    expected = module(hidden, starts(), position_embeddings=(twice.cos(), twice.sin()))
    q, k, v = module.qkv(hidden).view(-1, 3, 3, 14).unbind(1)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    q, k = hal.ops.rotary_embedding(torch.arange(sum(LENGTHS)), q, k, table)
    bounds = starts(), starts(), max(LENGTHS), max(LENGTHS)
    out, _ = hal.ops.varlen_attention(q, k, v, *bounds)
    assert error(module.proj(out.flatten(1)), expected) <= FLOAT32


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("head_dim", [2, 18, 64])
def test_packed_norm_and_rotation_before_attention(head_dim: int, layer: int) -> None:
    config = config_of(Qwen3Config, head_dim, use_sliding_window=True, **LAYERS)
    module, rotary = filled(qwen3.Qwen3Attention(config, layer)), qwen3.Qwen3RotaryEmbedding(config)
    hidden, window = randn(sum(LENGTHS), HIDDEN), None if layer else WINDOW
    expected = their_attention(module, hidden, rotary, window)
    qkv = torch.cat([x.flatten(1) for x in projected(module, hidden)], dim=-1)
    norms = module.q_norm.weight, module.k_norm.weight, table_of(rotary), positions()
    hal.ops.qk_norm_rope_(qkv, *norms, 6, 3, eps=config.rms_norm_eps, is_neox=True)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split((6, 3, 3), dim=1)
    options = {} if layer else BEFORE
    assert error(attended(module, q, k, v, **options), expected) <= FLOAT32


@pytest.mark.parametrize("interleaved", [False, True])
def test_decoding_over_latents(interleaved: bool) -> None:
    sizes = {"kv_lora_rank": 34, "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 14}
    more = {"q_lora_rank": 22, "rope_interleave": interleaved, "num_key_value_heads": 6}
    config = config_of(DeepseekV3Config, 6, **sizes, **more)
    module = filled(deepseek_v3.DeepseekV3Attention(config, 0))
    rotary, hidden = deepseek_v3.DeepseekV3RotaryEmbedding(config), randn(sum(LENGTHS), HIDDEN)
    last = starts()[1:].long() - 1
    expected = their_attention(module, hidden, rotary, None)[last]
    # The latents and rotated keys of all tokens, one sequence after the other in blocks of one.
    latent, rope = module.kv_a_proj_with_mqa(hidden).split((34, 6), dim=-1)
    q = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden))).unflatten(-1, (6, 16))
    q_nope, q_rope = q.split((10, 6), dim=-1)
    heads = positions(), q_rope, rope[:, None], table_of(rotary)
    q_rope, rope = hal.ops.rotary_embedding(*heads, is_neox=not interleaved)
    rows = torch.cat((module.kv_a_layernorm(latent), rope[:, 0]), dim=-1)[:, None]
    up, down = module.kv_b_proj.weight.view(6, 24, 34).split((10, 14), dim=1)
    folded = torch.einsum("bhd,hdl->bhl", q_nope[last], up)
    table = starts()[:-1, None] + torch.arange(max(LENGTHS), dtype=torch.int32)
    lens = torch.tensor(LENGTHS)
    out, _ = hal.ops.mla_decode(folded, q_rope[last], rows, table, lens, scale=module.scaling)
    out = module.o_proj(torch.einsum("bhl,hdl->bhd", out, down).flatten(1))
    assert error(out, expected) <= FLOAT32


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_temperatures(temperature: float) -> None:
    # In float64: theirs divides first, which rounds logits that a small temperature makes large.
    logits = randn(33, 257).double() * 5
    warped = TemperatureLogitsWarper(temperature)(torch.zeros(33, 0, dtype=torch.int64), logits)
    got = hal.ops.softmax(logits, temperature=temperature)
    torch.testing.assert_close(got, warped.softmax(-1), rtol=1e-12, atol=0)


LIMITS = {
    "top_k": (TopKLogitsWarper, hal.ops.top_k_renorm, [1, 3, 40, 257, 300]),
    "top_p": (TopPLogitsWarper, hal.ops.top_p_renorm, [0.05, 0.3, 0.75, 0.95, 0.999, 1.0]),
    "min_p": (MinPLogitsWarper, hal.ops.min_p_renorm, [0.0, 0.01, 0.1, 0.5, 1.0]),
}


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "limit"), [(name, limit) for name, (*_, limits) in LIMITS.items() for limit in limits]
)
def test_sampling_limits(name: str, limit: float, scale: float) -> None:
    # In float64, where no sum comes near enough to a limit to fall on either side.
    warper, renorm, _ = LIMITS[name]
    logits = randn(33, 257).double() * scale
    expected = warper(limit)(torch.zeros(33, 0, dtype=torch.int64), logits).softmax(-1)
    got = renorm(logits.softmax(-1), limit)
    assert torch.equal(got > 0, expected > 0)
    torch.testing.assert_close(got, expected)
