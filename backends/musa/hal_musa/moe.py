"""Routing to experts by MATE, and what sgl_kernel's would do differently."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from hal import Capability, Device, Kernel
from hal.ops.moe import topk_sigmoid, topk_softmax
from hal_musa.libraries import Offer, never, vendor

__all__ = ["OFFERS"]

_GATE = "mate.moe_fused_gate"
_WARP = 32
_GROUP = 32
"""Experts of a group, at most, as SGLang calls MATE."""
_UNGROUPED = (160, 256, 384)
"""How many there may be in one group."""
_DEEPEST = -80.0
"""Below -88 exp(-x) is infinite, and MATE's reciprocal of that is NaN."""
_FARTHEST = 1e30
"""Biases beyond it are those that MATE marks what it has taken with, and more."""


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
) -> tuple[Tensor, Tensor]:
    """MATE chooses; the weights are those of the op, for logits of any size."""
    assert correction_bias is not None  # The condition says so.
    logits, bias, routed = gating.float(), correction_bias.float(), k - num_fused_shared_experts
    broken = logits.isnan().any(-1, keepdim=True) | bias.isnan().any()
    ids = _chosen(logits, bias, routed, num_groups, topk_groups)
    ids = torch.where(broken, torch.arange(routed, device=ids.device, dtype=ids.dtype), ids)
    weights = logits.gather(-1, ids.long()).sigmoid()
    if renormalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
    experts = gating.shape[-1], gating.shape[-1] + num_fused_shared_experts
    shared = torch.arange(*experts, device=ids.device, dtype=ids.dtype)
    ids = torch.cat((ids, shared.expand(*ids.shape[:-1], -1)), -1)
    alike = weights.new_full(shared.shape, 1 / routed_scaling_factor)
    weights = torch.cat((weights, alike.expand(*weights.shape[:-1], -1)), -1)
    weights = weights * routed_scaling_factor if scale_on_output else weights
    return weights.masked_fill(broken, math.nan), ids


def _chosen(logits: Tensor, bias: Tensor, k: int, num_groups: int, topk_groups: int) -> Tensor:
    """The ids [..., k] of the best experts by sigmoid and bias, in int32."""
    experts = logits.shape[-1]
    if not logits.numel():
        return logits.new_empty((*logits.shape[:-1], k), dtype=torch.int32)
    gate: Any = vendor(_GATE)
    _, ids = gate(
        logits.clamp(min=_DEEPEST).reshape(-1, experts).contiguous(),
        bias.clamp(-_FARTHEST, _FARTHEST).contiguous(),
        num_expert_group=num_groups,
        topk_group=topk_groups,
        topk=k,
        num_fused_shared_experts=0,
        routed_scaling_factor=1.0,
        renormalize=False,
        apply_routed_scaling_factor_on_output=False,
    )
    return ids.view(*logits.shape[:-1], k)


def grouped_topk_supports(
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
) -> str | None:
    if scoring != "sigmoid" or correction_bias is None:
        return "MATE's gate scores by sigmoid and with a bias"
    if torch.float64 in (gating.dtype, correction_bias.dtype):
        return "MATE's gate has no float64"
    experts = gating.shape[-1]
    if experts % _WARP or num_groups & (num_groups - 1) or num_groups > _WARP:
        return f"MATE's gate takes a multiple of {_WARP} experts in 1, 2, 4 ... {_WARP} groups"
    few = experts // num_groups <= _GROUP or (num_groups == 1 and experts in _UNGROUPED)
    return None if few else f"MATE's gate is called with groups of up to {_GROUP} experts"


class _Spare(Offer):
    """Refused where Triton works, whose gate is one kernel for all of it."""

    def on(self, device: Device) -> Kernel | None:
        found = super().on(device)
        triton = Capability.TRITON in device.capabilities
        return attrs.evolve(found, refused=_SPARE) if found and triton else found


_SPARE = (
    "a dozen small kernels around MATE's, which is NaN for logits below -88 and takes an expert "
    "twice in a row with NaN, do what Triton's does in one"
)
_ORDER = "sgl_kernel adds the bias before the cap, and counts columns that pad with the cap"
_RANGE = "sgl_kernel takes ids out of range where scores are below -10,000"

OFFERS = {
    "grouped_topk": [
        _Spare(
            Kernel(
                fn=grouped_topk,
                supports=grouped_topk_supports,
                name="mate",
                graph_safe=True,
                deterministic=True,
                batch_invariant=True,
            ),
            needs=(_GATE,),
            since=31,
        )
    ],
    "topk_softmax": [never(topk_softmax, "sgl_kernel", _ORDER, "sgl_kernel.topk_softmax")],
    "topk_sigmoid": [never(topk_sigmoid, "sgl_kernel", _RANGE, "sgl_kernel.topk_sigmoid")],
}
"""By op what there is."""
