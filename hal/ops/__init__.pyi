"""The operators as type checkers see them, written by scripts/stubs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hal.ops import activation as activation
from hal.ops import attention as attention
from hal.ops import experts as experts
from hal.ops import gemv as gemv
from hal.ops import int4 as int4
from hal.ops import kv_cache as kv_cache
from hal.ops import matmul as matmul
from hal.ops import mla as mla
from hal.ops import moe as moe
from hal.ops import norm as norm
from hal.ops import quant as quant
from hal.ops import quant_fused as quant_fused
from hal.ops import rotary as rotary
from hal.ops import sampling as sampling

__all__ = [
    "activation",
    "apply_token_bitmask_",
    "attention",
    "block_scaled_mm",
    "dequantize",
    "experts",
    "fused_add_rms_norm",
    "fused_add_rms_norm_",
    "fused_add_rms_norm_quant",
    "fused_experts",
    "fused_gemv",
    "fused_moe_gemv",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rms_norm",
    "gemma_fused_add_rms_norm_",
    "gemma_rms_norm",
    "gemv",
    "grouped_topk",
    "int4",
    "kv_cache",
    "layer_norm",
    "matmul",
    "merge_attention_states",
    "min_p_renorm",
    "mla",
    "mla_decode",
    "moe",
    "moe_align_block_size",
    "moe_sum",
    "mul_add",
    "mul_add_",
    "multimodal_rotary_embedding",
    "multimodal_rotary_embedding_",
    "norm",
    "pack_int4",
    "paged_attention",
    "per_tensor_quant",
    "per_token_group_quant",
    "per_token_quant",
    "qk_norm_rope",
    "qk_norm_rope_",
    "quant",
    "quant_fused",
    "quick_gelu",
    "relu_squared",
    "rms_norm",
    "rms_norm_quant",
    "rotary",
    "rotary_embedding",
    "rotary_embedding_",
    "sample",
    "sampling",
    "scaled_mm",
    "silu_and_mul",
    "silu_and_mul_quant",
    "softmax",
    "store_kv_cache_",
    "swigluoai_and_mul",
    "top_k_renorm",
    "top_p_renorm",
    "topk_sigmoid",
    "topk_softmax",
    "unpack_int4",
    "varlen_attention",
    "w4a16_mm",
]

def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """SwiGLU gate: ``silu(x[..., :d]) * x[..., d:]``, computed in float32 and rounded once."""

def gelu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """GELU gate, erf form: ``gelu(x[..., :d]) * x[..., d:]``, in float32 and rounded once."""

def gelu_tanh_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """GELU gate, tanh form: ``gelu_tanh(x[..., :d]) * x[..., d:]``, in float32 and rounded once."""

def swigluoai_and_mul(
    x: Tensor,
    alpha: float = 1.702,
    limit: float = 7.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Clamped SwiGLU of gpt-oss: ``(up + 1) * gate * sigmoid(alpha * gate)``, interleaved
    halves."""

def relu_squared(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Squared ReLU: ``max(x, 0)**2``, computed in float32 and rounded once (arXiv 2109.08668)."""

def quick_gelu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Sigmoid approximation of GELU: ``x * sigmoid(1.702 * x)``, in float32 and rounded once."""

def mul_add(x: Tensor, y: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """``x * scale + y``, computed in float32 and rounded once; ``y`` stays as it is."""

def mul_add_(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """``hal.ops.mul_add`` in place: overwrites ``x`` and returns what it wrote."""

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

def scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A product of 8-bit matrices: ``(a @ b.T) * a_scale * b_scale + bias``."""

def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (128, 128),
    out_dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """``a @ b.T`` of 8-bit floats with a scale for each block: DeepSeek-V3's product,
    2412.19437."""

def w4a16_mm(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    *,
    group_size: int,
    zeros: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x @ w.T`` with weights of 4 bits: ``w = (q - zero) * scale``, for groups of columns."""

def fused_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    activation: str = "silu",
    out: Tensor | None = None,
) -> Tensor:
    """The experts of a mixture: gated MLPs of the chosen ones, summed by weight."""

def fused_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-06,
    out: Tensor | None = None,
) -> Tensor:
    """``x @ weight.T``, and then SwiGLU or an RMS norm of the product, for a few rows."""

def fused_moe_gemv(
    x: Tensor,
    weight: Tensor,
    topk_weights: Tensor | None,
    topk_ids: Tensor,
    *,
    x_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    activation: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``fused_gemv`` with the weights of the experts that each token has chosen."""

def pack_int4(x: Tensor, *, offset: int = 8, out: Tensor | None = None) -> Tensor:
    """Put 4-bit codes into bytes: ``x[2i] + offset`` low, ``x[2i + 1] + offset`` high."""

def unpack_int4(packed: Tensor, *, offset: int = 8, out: Tensor | None = None) -> Tensor:
    """Take 4-bit codes out of bytes: the low half less ``offset``, then the high half."""

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

def topk_softmax(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    softcap: float = 0.0,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` most probable experts of each token: ``softmax(cap(gating) + bias)``, in
    float32."""

def topk_sigmoid(
    gating: Tensor,
    k: int,
    *,
    renormalize: bool = False,
    correction_bias: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` best experts of each token by ``s + bias``, weighted by ``s = sigmoid(gating)``."""

def grouped_topk(
    gating: Tensor,
    k: int,
    *,
    num_groups: int,
    topk_groups: int,
    scoring: str = "softmax",
    correction_bias: Tensor | None = None,
    renormalize: bool = True,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float = 1.0,
    scale_on_output: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The best experts of each token from its best groups, as DeepSeek routes (arXiv
    2412.19437)."""

def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    *,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the routed pairs by expert into blocks of one expert each, for a grouped product."""

def moe_sum(x: Tensor, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """The sum over the experts of each token, ``x.sum(-2) * scale``, in float32 and rounded
    once."""

def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
    out: tuple[Tensor, Tensor | None] | None = None,
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
    out: tuple[Tensor, Tensor | None] | None = None,
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

def per_token_group_quant(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise each group of a row with a scale of its own: ``q = round(clamp(x / scale))``."""

def per_token_quant(
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise each row with a scale of its own: ``q = round(clamp(x / scale))``."""

def per_tensor_quant(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise with one scale: that of all of ``x``, or a given one."""

def dequantize(
    q: Tensor,
    scale: Tensor,
    group_size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Codes times their scales: what every quantiser of this family has put in, up to rounding."""

def silu_and_mul_quant(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated SiLU, quantised: ``silu_and_mul`` and then a quantiser, with no rounding in between."""

def rms_norm_quant(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-06,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Root mean square norm, quantised: ``rms_norm``, then a quantiser, no rounding between."""

def fused_add_rms_norm_quant(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-06,
    *,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_layout: str = "row",
    ue8m0: bool = False,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, norm and quantise: ``rms_norm_quant(s, weight)`` and ``s``, where ``s = x +
    residual``."""

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
