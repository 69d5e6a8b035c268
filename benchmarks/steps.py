"""Steps of models of the shape of well-known ones, on hal and on transformers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig, StaticCache

from model import PAGE, Model, Step

Call = Callable[[], Any]

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}
QWEN = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
}
TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
TINY_LLAMA = TINY | {"intermediate_size": 96}
TINY_QWEN = TINY | {
    "moe_intermediate_size": 32,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
SHAPES: dict[str, tuple[type[Any], dict[str, Any], dict[str, Any]]] = {
    "Llama 3 8B": (LlamaConfig, LLAMA, TINY_LLAMA),
    "Qwen3-30B-A3B": (Qwen3MoeConfig, QWEN, TINY_QWEN),
}


@attrs.frozen
class Phase:
    """``new`` tokens for each of ``rows`` sequences that then have ``keys``."""

    name: str
    rows: int
    new: int
    keys: int

    @property
    def tokens(self) -> int:
        """How many tokens a step computes."""
        return self.rows * self.new


def build(kind: type[Any], sizes: dict[str, Any], layers: int, device: str, dtype: Any) -> Any:
    """A model of transformers with random weights, those of norms about 1."""
    config = kind(**sizes, num_hidden_layers=layers, tie_word_embeddings=False)
    options = {"attn_implementation": "sdpa", "dtype": dtype}
    if kind is Qwen3MoeConfig:
        options["experts_implementation"] = "grouped_mm"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def whole(model: Any, tokens: Tensor) -> Tensor:
    """Logits of transformers after tokens [sequences, new] without past."""
    return model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def theirs(model: Any, phase: Phase, tokens: Tensor) -> Call:
    """A step of transformers; a decoding one begins with bringing its cache back to its length."""
    new = tokens[:, -phase.new :]
    if phase.new == phase.keys:
        return functools.partial(whole, model, new)
    cache: Any = StaticCache(config=model.config, max_cache_len=phase.keys)
    known = inspect.signature(model.forward).parameters
    given = {"cache" if "cache" in known else "past_key_values": cache}
    model(tokens[:, : -phase.new], logits_to_keep=1, use_cache=True, **given)

    def step() -> Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(phase.keys - phase.new)
        return model(new, logits_to_keep=1, use_cache=True, **given).logits[:, -1]

    return step


def ours(model: Model, phase: Phase, tokens: Tensor) -> Call:
    """A step of hal, on a cache whose pages lie anywhere."""
    pages = -(-phase.keys // PAGE)
    order = torch.randperm(phase.rows * pages, device=tokens.device)
    table, cache = order.int().view(phase.rows, pages), model.new_cache(phase.rows * pages)
    past = phase.keys - phase.new
    if past:
        model(Step.of(tokens[:, :past], 0, table), cache)
    return functools.partial(model, Step.of(tokens[:, past:], past, table), cache)


def off(got: Tensor, want: Tensor) -> float:
    """The relative norm of the difference."""
    return float((got.double() - want.double()).norm() / want.double().norm())
