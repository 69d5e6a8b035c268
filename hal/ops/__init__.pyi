"""The operators as type checkers see them, written by scripts/stubs."""

from collections.abc import Sequence

from torch import Tensor

from hal.ops import activation as activation
from hal.ops import attention as attention
from hal.ops import kv_cache as kv_cache
from hal.ops import mla as mla
from hal.ops import norm as norm
from hal.ops import rotary as rotary
from hal.ops import sampling as sampling

__all__ = [
    "activation",
    "apply_token_bitmask_",
    "attention",
    "fused_add_rms_norm",
    "fused_add_rms_norm_",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rms_norm",
    "gemma_fused_add_rms_norm_",
    "gemma_rms_norm",
    "kv_cache",
    "layer_norm",
    "merge_attention_states",
    "min_p_renorm",
    "mla",
    "mla_decode",
    "multimodal_rotary_embedding",
    "multimodal_rotary_embedding_",
    "norm",
    "paged_attention",
    "qk_norm_rope",
    "qk_norm_rope_",
    "rms_norm",
    "rotary",
    "rotary_embedding",
    "rotary_embedding_",
    "sample",
    "sampling",
    "silu_and_mul",
    "softmax",
    "store_kv_cache_",
    "top_k_renorm",
    "top_p_renorm",
    "varlen_attention",
]

def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """SwiGLU gate: ``silu(x[..., :d]) * x[..., d:]``, computed in float32 and rounded once."""

def gelu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """GELU gate, erf form: ``gelu(x[..., :d]) * x[..., d:]``, in float32 and rounded once."""

def gelu_tanh_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """GELU gate, tanh form: ``gelu_tanh(x[..., :d]) * x[..., d:]``, in float32 and rounded once."""

def store_kv_cache_(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Write keys and values into a paged cache: ``cache[slot // size, slot % size] = row``."""

def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of ragged sequences: ``softmax(scale * q @ k.T) @ v``, and the log of the sum."""

def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``varlen_attention`` over keys and values in a paged cache."""

def merge_attention_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from the attention over each of two sets of them."""

def mla_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of one query a sequence to paged latents, which are keys and values at once."""

def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Rotate pairs: ``(a, b) -> (a * cos - b * sin, b * cos + a * sin)``, in float32, rounded
    once."""

def rotary_embedding_(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``hal.ops.rotary_embedding`` in place: overwrites ``query`` and ``key`` and returns what it
    wrote."""

def multimodal_rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``rotary_embedding`` by three positions a token: of its frame, its row and its column."""

def multimodal_rotary_embedding_(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """``hal.ops.multimodal_rotary_embedding`` in place: overwrites ``query`` and ``key`` and
    returns what it wrote."""

def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-06,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Root mean square norm: ``x / sqrt(mean(x**2) + eps) * weight``, in float32 and rounded
    once."""

def fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add in float32, then norm: ``rms_norm(s, weight)`` and ``s``, where ``s = x + residual``."""

def fused_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
) -> tuple[Tensor, Tensor]:
    """``hal.ops.fused_add_rms_norm`` in place: overwrites ``x`` and ``residual`` and returns what
    it wrote."""

def gemma_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Gemma's RMS norm: ``x / sqrt(mean(x**2) + eps) * (1 + weight)``, in float32 and rounded
    once."""

def gemma_fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add in float32, then norm: ``gemma_rms_norm(s, weight)`` and ``s``, ``s = x + residual``."""

def gemma_fused_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
) -> tuple[Tensor, Tensor]:
    """``hal.ops.gemma_fused_add_rms_norm`` in place: overwrites ``x`` and ``residual`` and returns
    what it wrote."""

def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-05,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Layer norm: ``(x - mean) / sqrt(var + eps) * weight + bias``, in float32 and rounded once."""

def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
    out: Tensor | None = None,
) -> Tensor:
    """``rms_norm`` of every head of packed queries and keys, then ``rotary_embedding`` of it."""

def qk_norm_rope_(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
) -> Tensor:
    """``hal.ops.qk_norm_rope`` in place: overwrites ``qkv`` and returns what it wrote."""

def softmax(
    logits: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Probabilities from logits: ``exp(logits / temperature)``, divided by the sum over the row."""

def top_k_renorm(probs: Tensor, top_k: Tensor | int, *, out: Tensor | None = None) -> Tensor:
    """Keep the ``top_k`` largest probabilities of a row, zero the rest, divide by what is left."""

def top_p_renorm(probs: Tensor, top_p: Tensor | float, *, out: Tensor | None = None) -> Tensor:
    """Keep the tokens that less than ``top_p`` of mass precedes, zero the rest, renormalise."""

def min_p_renorm(probs: Tensor, min_p: Tensor | float, *, out: Tensor | None = None) -> Tensor:
    """Keep the probabilities ``>= min_p * max``, zero the rest, divide by what is left."""

def sample(
    probs: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
    seed: Tensor | int,
    offset: Tensor | int,
    indices: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw a token for each row: ``argmax(log(p) - log(E))`` over the tokens that the limits
    leave."""

def apply_token_bitmask_(
    logits: Tensor,
    bitmask: Tensor,
    *,
    indices: Tensor | None = None,
) -> Tensor:
    """Set logits to -inf where the token's bit ``bitmask[..., t // 32] >> t % 32 & 1`` is 0."""
