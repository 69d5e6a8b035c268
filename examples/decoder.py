"""A decoder of Llama and Qwen3 form in which torch multiplies matrices; ``hal.ops`` does the rest.

``tokens`` in a shape counts the new tokens of all sequences of a batch, laid end to end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

import hal

__all__ = ["DTYPES", "Batch", "Config", "Decoder", "InputError", "load", "read_json"]

DTYPES = ("bfloat16", "float16", "float32", "float64")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
# Fields that change the results of other models, each with the value that changes nothing.
NEUTRAL: dict[str, float | None] = {
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), 1),
    **dict.fromkeys(("logit_scale", "logits_scaling", "partial_rotary_factor"), 1),
    **dict.fromkeys(("attention_multiplier", "query_pre_attn_scalar", "quantization_config")),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping")),
}


class InputError(ValueError):
    """Something that the caller can put right; the message is one line and says what was found."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise ``InputError`` if there is none."""
    if not path.parent.is_dir():
        raise InputError(f"no such directory: {path.parent}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _positive(raw: dict[str, Any], key: str, default: float | None = None, kind: Any = int) -> Any:
    value: Any = default if raw.get(key) is None else raw[key]
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        raise InputError(f"config.json: {key} must be a positive number, not {value!r}")
    return value


def _check_form(raw: dict[str, Any]) -> None:
    """Refuse a model of another form, or with fields that this decoder would get wrong."""
    form, names = str(raw.get("model_type")), raw.get("architectures")
    if form not in ARCHITECTURES or (names and names != [ARCHITECTURES[form]]):
        known = ", ".join(f"{k} ({v})" for k, v in ARCHITECTURES.items())
        raise InputError(f"config.json: unknown model {form} {names}; known are {known}")
    used = {key: raw[key] for key, same in NEUTRAL.items() if raw.get(key) not in (None, same)}
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        used["hidden_act"] = raw["hidden_act"]
    # Qwen3 states a window that it does not use unless it says so.
    if raw.get("sliding_window") and raw.get("use_sliding_window", form != "qwen3"):
        used["sliding_window"] = raw["sliding_window"]
    if set(raw.get("layer_types") or ()) - {"full_attention"}:
        used["layer_types"] = raw["layer_types"]
    if used:
        fields = ", ".join(f"{key} = {value!r}" for key, value in used.items())
        raise InputError(f"config.json: not supported: {fields}")


def _rope(raw: dict[str, Any], context: int) -> dict[str, Any]:
    """Return the rotary parameters, which older files spread over two fields."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_FIELDS or rope.get("partial_rotary_factor", 1) != 1:
        known = ", ".join(ROPE_FIELDS)
        raise InputError(f"config.json: not supported: rope {rope}; known, of full width: {known}")
    number = (int, float)
    found = {key: _positive(rope, key, kind=number) for key in ROPE_FIELDS[kind]}
    found["theta"] = _positive(rope, "rope_theta", raw.get("rope_theta") or 1e4, kind=number)
    found["trained"] = _positive(rope, "original_max_position_embeddings", context)
    return {"kind": kind, **found}


def _eos(raw: dict[str, Any], directory: Path) -> frozenset[int]:
    """Return the ids that end a text; generation_config.json, where present, has the last word."""
    path = directory / "generation_config.json"
    ids = (read_json(path) if path.exists() else {}).get("eos_token_id", raw.get("eos_token_id"))
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


@attrs.frozen
class Config:
    """The shape of a model; ``context`` is the most positions of a sequence."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    eps: float
    qk_norm: bool
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    rope: dict[str, Any]
    dtype: str
    eos: frozenset[int]

    @classmethod
    def from_directory(cls, directory: Path) -> Config:
        """Read config.json; raise ``InputError`` where it describes what this decoder is not."""
        raw = read_json(directory / "config.json")
        _check_form(raw)
        heads, hidden = _positive(raw, "num_attention_heads"), _positive(raw, "hidden_size")
        context = _positive(raw, "max_position_embeddings")
        return cls(
            vocab_size=_positive(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_positive(raw, "intermediate_size"),
            num_layers=_positive(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_positive(raw, "num_key_value_heads", heads),
            head_dim=_positive(raw, "head_dim", hidden // heads),
            context=context,
            eps=_positive(raw, "rms_norm_eps", 1e-6, kind=(int, float)),
            qk_norm=raw["model_type"] == "qwen3",
            attention_bias=bool(raw.get("attention_bias")),
            mlp_bias=bool(raw.get("mlp_bias")),
            tied=bool(raw.get("tie_word_embeddings")),
            rope=_rope(raw, context),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos=_eos(raw, directory),
        )

    def __attrs_post_init__(self) -> None:
        """Raise ``InputError`` if the numbers do not fit each other."""
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise InputError(f"config.json: dtype must be one of {known}, not {self.dtype!r}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            found = f"{self.num_heads} heads, {self.num_kv_heads} of keys, head_dim {self.head_dim}"
            raise InputError(f"config.json: key heads must divide heads, head_dim be even: {found}")

    def cos_sin_cache(self) -> Tensor:
        """Return the cosines, then the sines, of every position: [context, head_dim] float32."""
        powers = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        speeds = 1.0 / self.rope["theta"] ** powers
        if self.rope["kind"] == "linear":
            speeds = speeds / self.rope["factor"]
        elif self.rope["kind"] == "llama3":
            # Llama 3.1: slow down what turns too seldom within the context of the training.
            low, high = self.rope["low_freq_factor"], self.rope["high_freq_factor"]
            turns = self.rope["trained"] * speeds / (2 * math.pi)
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            speeds = (1 - kept) * speeds / self.rope["factor"] + kept * speeds
        angles = torch.outer(torch.arange(self.context, dtype=torch.float32), speeds)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


@attrs.frozen(eq=False)
class Weights:
    """The tensors of a checkpoint; each is taken once."""

    tensors: dict[str, Tensor]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def read(cls, directory: Path, device: torch.device, dtype: torch.dtype) -> Weights:
        """Read one file, or those that an index names."""
        names = {"model.safetensors"}
        if (directory / "model.safetensors.index.json").exists():
            index = read_json(directory / "model.safetensors.index.json")
            names = set(index.get("weight_map", {}).values())
        tensors: dict[str, Tensor] = {}
        for name in sorted(names):
            try:
                tensors |= load_file(directory / name)
            except (OSError, SafetensorError) as error:
                raise InputError(f"{directory / name} cannot be read: {error}") from None
        # Derived from the configuration; some old checkpoints carry it all the same.
        kept = {k: v for k, v in tensors.items() if not k.endswith("rotary_emb.inv_freq")}
        return cls(kept, device, dtype)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of this shape, on the device and in the dtype of the model."""
        if name not in self.tensors:
            raise InputError(f"the weights lack {name}")
        tensor = self.tensors.pop(name)
        if tensor.shape != shape or not tensor.is_floating_point():
            found = f"{list(tensor.shape)} {tensor.dtype}"
            raise InputError(f"weight {name} must be {list(shape)} floating point, not {found}")
        return tensor.to(self.device, self.dtype)


@attrs.frozen(eq=False)
class Batch:
    """Where the new tokens of several sequences belong, among themselves and in the paged cache.

    Attributes:
        positions: [tokens] int64, within the sequence.
        slots: [tokens] int64, ``block * block_size + offset`` in the cache.
        block_table: [sequences, blocks] int32, the blocks of each sequence in order.
        seq_lens: [sequences] int32, new tokens included.
        cu_seqlens: [sequences + 1] int32, where the new tokens of each sequence begin.
        outputs: [rows] int64, the tokens whose logits are wanted: the last of each sequence.
        max_new: The most new tokens of one sequence.
        max_len: At least the largest of ``seq_lens``.
    """

    positions: Tensor
    slots: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens: Tensor
    outputs: Tensor
    max_new: int
    max_len: int

    @classmethod
    def of(
        cls, past: Sequence[int], new: Sequence[int], block_table: Tensor, block_size: int
    ) -> Batch:
        """Put ``new[i]`` tokens after the ``past[i]`` that sequence ``i`` has in the cache."""
        counts, lengths = torch.tensor(new), torch.tensor(past) + torch.tensor(new)
        ends = counts.cumsum(0)
        rows = torch.repeat_interleave(torch.arange(len(new)), counts)
        positions = torch.arange(int(ends[-1])) + (lengths - ends)[rows]
        table = block_table.cpu().long()
        slots = table[rows, positions // block_size] * block_size + positions % block_size
        starts = torch.cat([ends.new_zeros(1), ends])
        to = block_table.device
        return cls(
            positions=positions.to(to),
            slots=slots.to(to),
            block_table=block_table,
            seq_lens=lengths.int().to(to),
            cu_seqlens=starts.int().to(to),
            outputs=(ends - 1).to(to),
            max_new=max(new),
            # Whole blocks: hal plans a call anew when this number changes, so not every step.
            max_len=-(-int(lengths.max()) // block_size) * block_size,
        )


@attrs.frozen(eq=False)
class Linear:
    """A matrix product; several matrices of one input are merged into one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@attrs.frozen(eq=False)
class Layer:
    """The weights of one layer, and of the norm that follows it."""

    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear
    next_norm: Tensor


@attrs.frozen(eq=False)
class Decoder:
    """A model, ready to run; ``load`` makes one."""

    config: Config
    embedding: Tensor
    first_norm: Tensor
    layers: list[Layer]
    head: Tensor
    cos_sin_cache: Tensor

    def new_cache(self, blocks: int, block_size: int) -> Tensor:
        """Return room for keys and values: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        c = self.config
        shape = (c.num_layers, 2, blocks, block_size, c.num_kv_heads, c.head_dim)
        return self.embedding.new_zeros(shape)

    def forward(self, tokens: Tensor, batch: Batch, cache: Tensor) -> Tensor:
        """Run the new tokens of a batch, and store their keys and values in ``cache``.

        Args:
            tokens: [tokens] int64.
            batch: Where they belong.
            cache: From ``new_cache``.

        Returns:
            Logits for ``batch.outputs``, [rows, vocab_size], the dtype of the weights.
        """
        return self.logits(self.hidden(tokens, batch, cache), batch)

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return [rows, vocab_size] for ``batch.outputs``, from what ``hidden`` returned."""
        return linear(hidden[batch.outputs], self.head)

    def hidden(self, tokens: Tensor, batch: Batch, cache: Tensor) -> Tensor:
        """Do what ``forward`` does, but for the logits: [tokens, hidden_size]."""
        eps = self.config.eps
        residual = self.embedding[tokens]
        hidden = hal.ops.rms_norm(residual, self.first_norm, eps)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            hidden = self._attention(layer, hidden, batch, keys, values)
            hidden, residual = hal.ops.fused_add_rms_norm_(
                hidden, residual, layer.post_attention_norm, eps
            )
            hidden = layer.down(hal.ops.silu_and_mul(layer.gate_up(hidden)))
            hidden, residual = hal.ops.fused_add_rms_norm_(hidden, residual, layer.next_norm, eps)
        return hidden

    def _attention(
        self, layer: Layer, hidden: Tensor, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor:
        c = self.config
        q, k, v = (
            layer.qkv(hidden)
            .unflatten(-1, (-1, c.head_dim))
            .split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=-2)
        )
        if c.qk_norm:
            q = hal.ops.rms_norm(q, layer.q_norm, c.eps)
            k = hal.ops.rms_norm(k, layer.k_norm, c.eps)
        hal.ops.rotary_embedding_(batch.positions, q, k, self.cos_sin_cache)
        hal.ops.store_kv_cache_(k, v, keys, values, batch.slots)
        mixed, _ = hal.ops.paged_attention(
            q,
            keys,
            values,
            batch.block_table,
            batch.seq_lens,
            batch.cu_seqlens,
            batch.max_new,
            batch.max_len,
            scale=c.head_dim**-0.5,
            causal=True,
        )
        return layer.o(mixed.flatten(-2))


def _linear(weights: Weights, rows: dict[str, int], columns: int, bias: bool) -> Linear:
    """Return the named matrices, [rows, columns] each, as one."""
    weight = torch.cat([weights.take(f"{k}.weight", n, columns) for k, n in rows.items()])
    if not bias:
        return Linear(weight, None)
    return Linear(weight, torch.cat([weights.take(f"{k}.bias", n) for k, n in rows.items()]))


def _layer(weights: Weights, index: int, c: Config) -> Layer:
    at, hidden, inner = f"model.layers.{index}", c.hidden_size, c.intermediate_size
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention, mlp = f"{at}.self_attn", f"{at}.mlp"
    last = index + 1 == c.num_layers
    following = "model.norm" if last else f"model.layers.{index + 1}.input_layernorm"
    qkv = {f"{attention}.q_proj": q, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv}
    gate_up = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
    names = [f"{attention}.{x}_norm.weight" for x in "qk"]
    q_norm, k_norm = (weights.take(n, c.head_dim) if c.qk_norm else None for n in names)
    return Layer(
        _linear(weights, qkv, hidden, c.attention_bias),
        q_norm,
        k_norm,
        _linear(weights, {f"{attention}.o_proj": hidden}, q, c.attention_bias),
        weights.take(f"{at}.post_attention_layernorm.weight", hidden),
        _linear(weights, gate_up, hidden, c.mlp_bias),
        _linear(weights, {f"{mlp}.down_proj": hidden}, inner, c.mlp_bias),
        weights.take(f"{following}.weight", hidden),
    )


def load(directory: Path, device: torch.device, dtype: torch.dtype | None = None) -> Decoder:
    """Load a Hugging Face directory; ``dtype`` is that of the checkpoint unless it is given."""
    config = Config.from_directory(directory)
    weights = Weights.read(directory, device, dtype or getattr(torch, config.dtype))
    shape = (config.vocab_size, config.hidden_size)
    embedding = weights.take("model.embed_tokens.weight", *shape)
    head = embedding if config.tied else weights.take("lm_head.weight", *shape)
    decoder = Decoder(
        config,
        embedding,
        weights.take("model.layers.0.input_layernorm.weight", config.hidden_size),
        [_layer(weights, index, config) for index in range(config.num_layers)],
        head,
        config.cos_sin_cache().to(device),
    )
    if extra := sorted(set(weights.tensors) - {"lm_head.weight"}):
        raise InputError(f"the weights hold {len(extra)} unknown tensors, such as {extra[0]}")
    return decoder
