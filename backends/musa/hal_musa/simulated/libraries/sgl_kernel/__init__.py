"""A stand-in for SGLang's sgl_kernel as it is built for MUSA: operators and their wrappers."""

from __future__ import annotations

from hal_musa.simulated import sgl

from .attention import merge_state_v2
from .elementwise import (
    fused_add_rmsnorm,
    gelu_and_mul,
    gelu_tanh_and_mul,
    gemma_fused_add_rmsnorm,
    gemma_rmsnorm,
    rmsnorm,
    rotary_embedding,
    silu_and_mul,
)
from .gemm import (
    sgl_per_token_group_quant_8bit,
    sgl_per_token_group_quant_fp8,
    sgl_per_token_group_quant_int8,
    sgl_per_token_quant_fp8,
)
from .grammar import apply_token_bitmask_inplace_cuda
from .moe import moe_fused_gate, moe_sum, moe_sum_reduce, topk_sigmoid, topk_softmax
from .musa import (
    musa_batched_rotary_embedding_contiguous,
    musa_fused_gemv,
    musa_fused_moe_gemv,
    musa_fused_mul_add,
    musa_rotary_embedding_contiguous,
)

__all__ = [
    "apply_token_bitmask_inplace_cuda",
    "fused_add_rmsnorm",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rmsnorm",
    "gemma_rmsnorm",
    "merge_state_v2",
    "moe_fused_gate",
    "moe_sum",
    "moe_sum_reduce",
    "musa_batched_rotary_embedding_contiguous",
    "musa_fused_gemv",
    "musa_fused_moe_gemv",
    "musa_fused_mul_add",
    "musa_rotary_embedding_contiguous",
    "rmsnorm",
    "rotary_embedding",
    "sgl_per_token_group_quant_8bit",
    "sgl_per_token_group_quant_fp8",
    "sgl_per_token_group_quant_int8",
    "sgl_per_token_quant_fp8",
    "silu_and_mul",
    "topk_sigmoid",
    "topk_softmax",
]

__version__ = "0.4.0"

# The library that holds the operators: they are gone with the module that holds it.
_operators = sgl.registered()
