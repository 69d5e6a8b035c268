"""The gate of DeepSeek's experts: sigmoid, biased choice of groups and of experts in them."""

from __future__ import annotations

from torch import Tensor

from hal_musa.simulated.mate_gate import OPERATOR


def moe_fused_gate(
    input: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    routed_scaling_factor: float,
    renormalize: bool,
    apply_routed_scaling_factor_on_output: bool,
    num_token_non_padded: int = 0,
    static_index_map: Tensor | None = None,
    dynamic_index_map: Tensor | None = None,
    dynamic_index_map_valid: Tensor | None = None,
    random_index: Tensor | None = None,
    num_physical_experts: int = 0,
    map_policy: int = 0,
) -> tuple[Tensor, Tensor]:
    """Choose ``topk`` experts a token, the shared ones counted: weights float32 and ids int32.

    The eighth argument is ``renormalize``, which sgl_kernel's function of this name has not.
    """
    return OPERATOR(
        *(input.contiguous(), bias.contiguous(), num_expert_group),
        *(min(topk_group, num_expert_group), topk, num_fused_shared_experts),
        *(routed_scaling_factor, renormalize, apply_routed_scaling_factor_on_output),
        *(num_token_non_padded, map_policy),
    )
