"""Models of transformers, with hal's attention over a paged cache, called as ``examples``' are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, Qwen3Config
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

import hal

# With seeds by which the most probable token leads by 0.0016 and more in all that ``serve`` says.
MODELS = {
    "llama": (LlamaConfig, llama.LlamaForCausalLM, 11),
    "qwen3": (Qwen3Config, qwen3.Qwen3ForCausalLM, 7),
}
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "vocab_size": 256,
}


def paged(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """What transformers calls for attention: one batch of all sequences' tokens."""
    assert mask is None
    batch, (keys, values) = more["batch"], more["paged"][module.layer_idx]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    hal.ops.store_kv_cache_(k, v, keys, values, batch.slots)
    bounds = batch.block_table, batch.seq_lens, batch.cu_seqlens, batch.max_new, batch.max_len
    mixed, _ = hal.ops.paged_attention(q, keys, values, *bounds, scale=scaling, causal=True)
    return mixed[None], None


AttentionInterface.register("hal_paged", paged)


class Theirs:
    """A model of transformers with random weights, the same on every device and in every dtype."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        make, kind, seed = MODELS[name]
        self.model = kind(make(**SIZES, attn_implementation="hal_paged")).eval()
        self.model.requires_grad_(False)
        drawn = torch.Generator().manual_seed(seed)
        # As large as those of trained models, so that the tokens depend on the prompt.
        for matrix in (p for p in self.model.parameters() if p.dim() > 1):
            matrix.normal_(std=matrix.shape[-1] ** -0.5, generator=drawn)
            matrix.copy_(matrix.bfloat16())
        self.model.to(device, dtype)
        self.head = self.model.lm_head.weight

    def new_cache(self, blocks: int, block_size: int) -> Tensor:
        layers, heads, dim = (
            SIZES[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_dim")
        )
        return self.head.new_zeros(layers, 2, blocks, block_size, heads, dim)

    def hidden(self, tokens: Tensor, batch: Any, cache: Tensor) -> Tensor:
        given = {"position_ids": batch.positions[None], "batch": batch, "paged": cache}
        return self.model.model(tokens[None], use_cache=False, **given).last_hidden_state[0]

    def logits(self, hidden: Tensor, batch: Any) -> Tensor:
        return torch.nn.functional.linear(hidden[batch.outputs], self.head)

    def forward(self, tokens: Tensor, batch: Any, cache: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens, batch, cache), batch)
