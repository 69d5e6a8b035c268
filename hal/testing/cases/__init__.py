"""Random small calls of every op: a case is what its name and its seed say, on any machine."""

from __future__ import annotations

from collections.abc import Callable

from hal.testing.cases import (
    activation,
    attention,
    experts,
    gemv,
    int4,
    kv_cache,
    matmul,
    mla,
    moe,
    norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)
from hal.testing.cases.draw import Draw
from hal.testing.record import Sample

__all__ = ["CASES", "SHARES", "case"]

FAMILIES = (
    activation,
    attention,
    experts,
    gemv,
    int4,
    kv_cache,
    matmul,
    mla,
    moe,
    norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)
CASES: dict[str, Callable[[Draw], Sample]] = {
    op: maker for family in FAMILIES for op, maker in family.CASES.items()
}

# How many cases of each op make up a run of 100,000: as many as one core draws, computes in float64
# and judges in about the same time. The slowest oracles do 500 a second, the fastest 3,500.
SHARES: dict[str, int] = {
    "silu_and_mul": 3_600,
    "gelu_and_mul": 3_700,
    "gelu_tanh_and_mul": 3_500,
    "swigluoai_and_mul": 2_700,
    "relu_squared": 3_800,
    "quick_gelu": 4_300,
    "mul_add": 3_100,
    "rms_norm": 2_200,
    "fused_add_rms_norm": 1_800,
    "gemma_rms_norm": 2_600,
    "gemma_fused_add_rms_norm": 1_700,
    "layer_norm": 2_000,
    "qk_norm_rope": 1_200,
    "rotary_embedding": 1_400,
    "multimodal_rotary_embedding": 1_400,
    "per_token_group_quant": 1_400,
    "per_token_quant": 1_500,
    "per_tensor_quant": 1_500,
    "dequantize": 2_100,
    "silu_and_mul_quant": 1_300,
    "rms_norm_quant": 1_200,
    "fused_add_rms_norm_quant": 1_000,
    "pack_int4": 4_500,
    "unpack_int4": 5_500,
    "scaled_mm": 2_000,
    "block_scaled_mm": 1_200,
    "w4a16_mm": 1_700,
    "fused_gemv": 1_700,
    "fused_moe_gemv": 1_400,
    "fused_experts": 900,
    "topk_softmax": 2_100,
    "topk_sigmoid": 1_900,
    "grouped_topk": 1_600,
    "moe_align_block_size": 4_200,
    "moe_sum": 3_900,
    "varlen_attention": 800,
    "paged_attention": 700,
    "merge_attention_states": 1_300,
    "mla_decode": 1_300,
    "store_kv_cache_": 1_500,
    "softmax": 2_300,
    "top_k_renorm": 2_200,
    "top_p_renorm": 2_200,
    "min_p_renorm": 2_900,
    "sample": 1_200,
    "apply_token_bitmask_": 3_400,
}


def case(op: str, seed: int) -> Sample:
    """The random call of ``op`` that belongs to ``seed``."""
    return CASES[op](Draw(op, seed))
