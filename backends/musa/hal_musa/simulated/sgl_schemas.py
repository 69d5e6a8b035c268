"""The operators of sgl_kernel that are there for MUSA, as its extension declares them.

Outputs that are written and not declared so, without ``!``: both group quants, the per-token quant,
``moe_sum_reduce``, the bitmask, sampling. Inputs that are declared written and are read alone:
those of every ``musa_`` operator.
"""

from __future__ import annotations

__all__ = ["SCHEMAS", "WITHOUT_KERNEL"]

_NORM = "(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()"
_ADD_NORM = "(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()"
_GROUP = (
    "Tensor input, Tensor output_q, Tensor output_s, int group_size, float eps, float fp8_min, "
    "float fp8_max, bool scale_ue8m0"
)

SCHEMAS = (
    f"rmsnorm{_NORM}",
    f"gemma_rmsnorm{_NORM}",
    f"fused_add_rmsnorm{_ADD_NORM}",
    f"gemma_fused_add_rmsnorm{_ADD_NORM}",
    "silu_and_mul(Tensor! out, Tensor input) -> ()",
    "gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()",
    "gelu_and_mul(Tensor! out, Tensor input) -> ()",
    "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox) -> ()",
    f"sgl_per_token_group_quant_8bit({_GROUP}) -> ()",
    f"sgl_per_token_group_quant_8bit_v2({_GROUP}, bool fuse_silu_and_mul, Tensor? masked_m) -> ()",
    "sgl_per_token_quant_fp8(Tensor input, Tensor output_q, Tensor output_s) -> ()",
    "topk_softmax(Tensor! topk_weights, Tensor! topk_indices, Tensor gating_output, "
    "bool renormalize, float moe_softcapping, Tensor? correction_bias) -> ()",
    "topk_sigmoid(Tensor! topk_weights, Tensor! topk_indices, Tensor gating_output, "
    "bool renormalize, Tensor? correction_bias) -> ()",
    "moe_fused_gate(Tensor input, Tensor bias, int num_expert_group, int topk_group, int topk, "
    "int num_fused_shared_experts, float routed_scaling_factor, "
    "bool apply_routed_scaling_factor_on_output) -> Tensor[]",
    "moe_sum_reduce(Tensor input, Tensor output, float routed_scaling_factor) -> ()",
    "moe_sum(Tensor input, Tensor! output) -> ()",
    "merge_state_v2(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, "
    "Tensor! s_merged) -> ()",
    "apply_token_bitmask_inplace_cuda(Tensor logits, Tensor bitmask, Tensor? indices=None) -> ()",
    "musa_rotary_embedding_contiguous(Tensor! positions, Tensor! query, Tensor! key, "
    "int head_size, Tensor! cos_sin_cache, bool is_neox) -> ()",
    "musa_batched_rotary_embedding_contiguous(Tensor! positions, Tensor! query, Tensor! key, "
    "int head_size, Tensor! cos_sin_cache, bool is_neox, int rot_dim, "
    "Tensor! cos_sin_cache_offsets) -> ()",
    "musa_fused_moe_gemv(Tensor! A, Tensor! B, Tensor! C, Tensor? A_scale, Tensor? B_scale, "
    "Tensor! topk_weights, Tensor! topk_ids, bool mul_routed_weight, int topk, "
    "bool use_int4_w4a16, bool use_swigelu) -> ()",
    "musa_fused_gemv(Tensor! A, Tensor! B, Tensor! C, Tensor? A_scale, Tensor? B_scale, "
    "bool use_int4_w4a16, bool use_swigelu, bool use_rms_norm, Tensor? gamma, float eps) -> ()",
    "musa_fused_mul_add(Tensor! output, Tensor! self, Tensor! bias, float scale) -> ()",
)

# Its kernel is registered under another name, ``fused_moe_gemv``, which is not declared.
WITHOUT_KERNEL = "musa_fused_moe_gemv"
