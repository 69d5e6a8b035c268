"""Models of transformers, with hal's attention over a paged cache, from graphs in two ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, Qwen3Config
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

import hal
from simulated.test_graphs_decoder import Engine, Graphed, serve

X = torch.device("musa:0")

pytestmark = [
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]

MODELS = {
    "llama": (LlamaConfig, llama.LlamaForCausalLM),
    "qwen3": (Qwen3Config, qwen3.Qwen3ForCausalLM),
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
    """A model of transformers that is called as the decoder of ``examples`` is."""

    def __init__(self, name: str) -> None:
        make, kind = MODELS[name]
        sizes: dict[str, Any] = {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "vocab_size": 256,
        }
        torch.manual_seed(4)
        self.model = kind(make(**sizes, attn_implementation="hal_paged")).eval().to(X)
        self.model.requires_grad_(False)
        # As large as those of trained models, so that the tokens depend on the prompt.
        for parameter in self.model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        self.layers, self.head = self.model.model.layers, self.model.lm_head.weight

    def new_cache(self, blocks: int, block_size: int) -> Tensor:
        return torch.zeros(2, 2, blocks, block_size, 2, 16, device=X)

    def hidden(self, tokens: Tensor, batch: Any, cache: Tensor) -> Tensor:
        given = {"position_ids": batch.positions[None], "batch": batch, "paged": cache}
        return self.model.model(tokens[None], use_cache=False, **given).last_hidden_state[0]

    def logits(self, hidden: Tensor, batch: Any) -> Tensor:
        return torch.nn.functional.linear(hidden[batch.outputs], self.head)

    def forward(self, tokens: Tensor, batch: Any, cache: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens, batch, cache), batch)


@pytest.mark.parametrize("way", [hal.graphs.breakable, hal.graphs.piecewise])
@pytest.mark.parametrize("name", MODELS)
def test_their_tokens_are_those_without_graphs(name: str, way: Any) -> None:
    model: Any = Theirs(name)
    plain, graphed = Engine(model, 5), Graphed(model, 5, 32, way)
    want = serve(plain, plain.eager, 6)
    assert serve(graphed, graphed.graphed, 6) == want
    assert len({token for said in want for token in said.values()}) > 10
    torch.testing.assert_close(graphed.cache, plain.cache, rtol=1e-4, atol=1e-4)
    assert graphed.prefill.stats().replays == {16: 1, 12: 1, 8: 1, 32: 1}
    assert graphed.prefill.stats().fallbacks == {"more than 32 tokens": 1}
    assert graphed.decode.stats().fallbacks == {}
