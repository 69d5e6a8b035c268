"""Llama and Qwen3-MoE on hal's operators, with the weights of the models of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor
from torch.nn.functional import linear

import hal

PAGE = 16
FEW = 16
"""Up to so many rows a product is a ``fused_gemv``."""


def product(x: Tensor, weight: Tensor, activation: str | None = None) -> Tensor:
    """``x @ weight.T``, with the gate of an MLP if an activation is given."""
    if x.shape[0] <= FEW:
        return hal.ops.fused_gemv(x, weight, activation=activation)
    y = linear(x, weight)
    return y if activation is None else hal.ops.silu_and_mul(y)


class Step(NamedTuple):
    """New tokens of sequences of equal length, and where they belong.

    Attributes:
        tokens: [tokens] int64, sequence by sequence.
        positions: [tokens] int64, within the sequence.
        slots: [tokens] int64, ``page * PAGE + offset`` in the cache.
        table: [sequences, pages] int32.
        lens: [sequences] int32, new tokens included.
        starts: [sequences + 1] int32, where the new tokens of each sequence begin.
        last: [sequences] int64, the tokens whose logits are wanted.
        new: How many new tokens a sequence has.
        keys: How many tokens it has in all.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    table: Tensor
    lens: Tensor
    starts: Tensor
    last: Tensor
    new: int
    keys: int

    @classmethod
    def of(cls, tokens: Tensor, past: int, table: Tensor) -> Step:
        """Put ``tokens`` [sequences, new] after ``past`` ones of each sequence."""
        (count, new), device = tokens.shape, tokens.device
        at = torch.arange(past, past + new, device=device)
        slots = table[:, at // PAGE].long() * PAGE + at % PAGE
        starts = torch.arange(count + 1, dtype=torch.int32, device=device) * new
        return cls(
            tokens.flatten(),
            at.repeat(count),
            slots.flatten(),
            table,
            torch.full((count,), past + new, dtype=torch.int32, device=device),
            starts,
            starts[1:].long() - 1,
            new,
            past + new,
        )


@attrs.frozen(eq=False)
class Experts:
    """An MLP of experts, of which each token has ``k``."""

    router: Tensor
    w13: Tensor
    w2: Tensor
    k: int
    renormalize: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        gating = product(x, self.router)
        weights, ids = hal.ops.topk_softmax(gating, self.k, renormalize=self.renormalize)
        return hal.ops.fused_experts(x, self.w13, self.w2, weights, ids)


@attrs.frozen(eq=False)
class MLP:
    """The MLP of a dense model."""

    gate_up: Tensor
    down: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        return product(product(x, self.gate_up, "swiglu"), self.down)


@attrs.frozen(eq=False)
class Layer:
    """The weights of a layer, and of the norm that follows it."""

    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    post_norm: Tensor
    mlp: Callable[[Tensor], Tensor]
    next_norm: Tensor


@attrs.frozen(eq=False)
class Model:
    """A model, ready to run; ``Model.of`` makes one."""

    embedding: Tensor
    first_norm: Tensor
    layers: list[Layer]
    head: Tensor
    table: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @classmethod
    def of(cls, theirs: Any, positions: int) -> Model:
        """With the weights of a model of transformers, which it shares."""
        config, inner = theirs.config, theirs.model
        norms = [layer.input_layernorm.weight for layer in inner.layers[1:]]
        follow = zip(inner.layers, [*norms, inner.norm.weight], strict=True)
        return cls(
            inner.embed_tokens.weight,
            inner.layers[0].input_layernorm.weight,
            [_layer(layer, norm, config) for layer, norm in follow],
            theirs.lm_head.weight,
            _rotary(inner.rotary_emb, positions, theirs.device),
            config.num_attention_heads,
            config.num_key_value_heads,
            inner.layers[0].self_attn.head_dim,
            config.rms_norm_eps,
        )

    def new_cache(self, pages: int) -> Tensor:
        """Room for keys and values: [layers, 2, pages, PAGE, kv_heads, head_dim]."""
        shape = (len(self.layers), 2, pages, PAGE, self.kv_heads, self.head_dim)
        return self.embedding.new_zeros(shape)

    def __call__(self, step: Step, cache: Tensor) -> Tensor:
        """Logits [sequences, vocab] of the last tokens; keys and values go into the cache."""
        residual = self.embedding[step.tokens]
        hidden = hal.ops.rms_norm(residual, self.first_norm, self.eps)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            hidden = self._attention(layer, hidden, step, keys, values)
            hal.ops.fused_add_rms_norm_(hidden, residual, layer.post_norm, self.eps)
            hidden = layer.mlp(hidden)
            hal.ops.fused_add_rms_norm_(hidden, residual, layer.next_norm, self.eps)
        return product(hidden[step.last], self.head)

    def _attention(
        self, layer: Layer, hidden: Tensor, step: Step, keys: Tensor, values: Tensor
    ) -> Tensor:
        q, k, v = self._rotated(layer, product(hidden, layer.qkv), step)
        hal.ops.store_kv_cache_(k, v, keys, values, step.slots)
        if step.new == step.keys:
            whole = step.starts, step.starts, step.new, step.new
            out, _ = hal.ops.varlen_attention(q, k, v, *whole, causal=True)
        else:
            pages = keys, values, step.table, step.lens, step.starts, step.new, step.keys
            out, _ = hal.ops.paged_attention(q, *pages, causal=True)
        return product(out.flatten(1), layer.o)

    def _rotated(self, layer: Layer, qkv: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Queries, keys and values [tokens, heads, head_dim], views of ``qkv``."""
        sizes = self.heads, self.kv_heads
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = layer.q_norm, layer.k_norm, self.table
            options = {"eps": self.eps, "is_neox": True}
            hal.ops.qk_norm_rope_(qkv, *norms, step.positions, *sizes, **options)
        parts = qkv.unflatten(-1, (-1, self.head_dim)).split((*sizes, self.kv_heads), dim=1)
        if layer.q_norm is None:
            hal.ops.rotary_embedding_(step.positions, *parts[:2], self.table)
        return parts


def read(model: Model) -> int:
    """Bytes of the weights that a step of a dense model reads: all but those of other tokens."""
    mlps = [layer.mlp for layer in model.layers]
    inner = [w for mlp in mlps if isinstance(mlp, MLP) for w in (mlp.gate_up, mlp.down)]
    outer = [w for layer in model.layers for w in (layer.qkv, layer.o)]
    return sum(w.numel() * w.itemsize for w in (*inner, *outer, model.head))


def _rotary(module: Any, positions: int, device: torch.device) -> Tensor:
    """[positions, head_dim] float32: cosines, then sines, as a module has them."""
    at = torch.arange(positions, device=device)[None]
    cos, sin = module(torch.zeros(1, device=device), at)
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


def _layer(theirs: Any, next_norm: Tensor, config: Any) -> Layer:
    attention, mlp = theirs.self_attn, theirs.mlp
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    q_norm, k_norm = (getattr(attention, f"{name}_norm", None) for name in "qk")
    return Layer(
        _joined(parts),
        None if q_norm is None else q_norm.weight,
        None if k_norm is None else k_norm.weight,
        attention.o_proj.weight,
        theirs.post_attention_layernorm.weight,
        _experts(mlp, config) if hasattr(mlp, "experts") else _dense(mlp),
        next_norm,
    )


def _dense(mlp: Any) -> MLP:
    return MLP(_joined([mlp.gate_proj, mlp.up_proj]), mlp.down_proj.weight)


def _joined(parts: Sequence[Any]) -> Tensor:
    """The weights of products of the same rows as those of one, of which they become parts."""
    whole = torch.cat([part.weight for part in parts])
    views = whole.split([part.weight.shape[0] for part in parts])
    for part, view in zip(parts, views, strict=True):
        part.weight = torch.nn.Parameter(view, requires_grad=False)
    return whole


def _experts(mlp: Any, config: Any) -> Experts:
    weights = mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj
    return Experts(*weights, config.num_experts_per_tok, config.norm_topk_prob)
