"""The operators that torch_musa's torch has beside torch's own, as 2.7.1 declares them."""

from __future__ import annotations

__all__ = ["SCHEMAS"]

_QKV = "Tensor query, Tensor key, Tensor value"
_ROPE = "bool rotary_interleaved, bool batch_first, bool multi_latent_attention=False"
_ENTROPY = (
    "Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, int ignore_index=-100, "
    "float label_smoothing=0.0"
)
_SDPA = (
    f"{_QKV}, Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, "
    "float? scale=None"
)
_BACK = "Tensor dropout_mask, bool is_causal, Tensor? attn_mask=None, *, float? scale=None"

SCHEMAS = (
    "gated_silu(Tensor input) -> Tensor",
    "swish_glu(Tensor input) -> Tensor",
    "_fused_swiglu_forward(Tensor input) -> Tensor",
    "_fused_swiglu_backward(Tensor grad, Tensor input) -> Tensor",
    "_fused_rmsnorm_forward(Tensor input, SymInt[] normalized_shape, float eps, "
    "Tensor? weight=None) -> (Tensor output, Tensor invvar)",
    "_fused_rmsnorm_backward(Tensor grad_out, Tensor invvar, Tensor input, "
    "SymInt[] normalized_shape, float eps, Tensor? weight=None) "
    "-> (Tensor grad_input, Tensor grad_weight)",
    f"rope(Tensor input, Tensor freq_cis, {_ROPE}) -> Tensor",
    f"_fused_rope_forward(Tensor input, Tensor freq_cis, {_ROPE}) -> Tensor",
    f"_fused_rope_backward(Tensor grad, Tensor freq_cis, {_ROPE}) -> Tensor",
    f"_scaled_dot_product_attention_math_musa({_SDPA}) "
    "-> (Tensor output, Tensor attn_weights, Tensor dropout_mask)",
    f"_scaled_dot_product_attention_math_musa_backward(Tensor grad_out, {_QKV}, Tensor output, "
    f"Tensor attn_weights, {_BACK}) -> (Tensor, Tensor, Tensor, Tensor)",
    f"_scaled_dot_product_attention_flash_musa({_SDPA}) "
    "-> (Tensor output, Tensor logsumexp, Tensor dropout_mask)",
    f"_scaled_dot_product_attention_flash_musa_backward(Tensor grad_out, {_QKV}, Tensor output, "
    f"Tensor logsumexp, {_BACK}) "
    "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_attn_mask)",
    f"cross_entropy_loss_2d_choice({_ENTROPY}) -> int",
    f"_fused_cross_entropy_loss_2d_forward({_ENTROPY}) -> Tensor",
    f"_fused_cross_entropy_loss_2d_backward(Tensor grad, {_ENTROPY}) -> Tensor",
)
