"""Softmax, limits and sampling; every sampler draws with noise of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from judges import in_support
from peers.registry import compiled, flashinfer, peer, sgl

Limit = Tensor | None


def _drawn(weights: Tensor) -> Tensor:
    """A token by the largest ratio of its weight to an exponential variate."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1).int()


@peer("torch", "sample", judge=in_support)
def sample(
    probs: Tensor, top_k: Limit = None, top_p: Limit = None, min_p: Limit = None, **noise: Any
) -> Tensor:
    """Limits on sorted probabilities, as engines have them without kernels of their own."""
    if min_p is not None:
        probs = probs.where(probs >= min_p[:, None] * probs.amax(-1, keepdim=True), 0)
    if top_k is None and top_p is None:
        return _drawn(probs)
    ordered, ids = probs.sort(dim=-1, descending=True)
    if top_k is not None:
        rank = torch.arange(probs.shape[-1], device=probs.device)
        ordered = ordered.where(rank < top_k[:, None], 0)
    if top_p is not None:
        ordered = ordered.where(ordered.cumsum(-1) - ordered < top_p[:, None], 0)
    return ids.gather(-1, _drawn(ordered).long()[:, None])[:, 0].int()


@peer("argmax", "sample", note="the most probable token, as a floor")
def argmax(probs: Tensor, **limits: Any) -> Tensor:
    return probs.argmax(-1)


@flashinfer("sample", judge=in_support)
def flashinfer_sample(
    probs: Tensor, top_k: Limit = None, top_p: Limit = None, min_p: Limit = None, **noise: Any
) -> Tensor:
    """Its limits by kernels that reject; with all three, those that renormalise come first."""
    from flashinfer import sampling

    if min_p is not None:
        if top_k is not None:
            probs = sampling.top_k_renorm_probs(probs, top_k)
        if top_p is not None:
            probs = sampling.top_p_renorm_probs(probs, top_p)
        return sampling.min_p_sampling_from_probs(probs, min_p)
    if top_k is not None and top_p is not None:
        call = sampling.top_k_top_p_sampling_from_probs
        return call(probs, top_k, top_p, filter_apply_order="joint")
    if top_k is not None:
        return sampling.top_k_sampling_from_probs(probs, top_k)
    if top_p is not None:
        return sampling.top_p_sampling_from_probs(probs, top_p)
    return sampling.sampling_from_probs(probs)


@peer("torch", "softmax")
@compiled("softmax")
def softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    return (logits / temperature[:, None]).softmax(-1)


@flashinfer("softmax")
def flashinfer_softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    from flashinfer import sampling

    return sampling.softmax(logits, temperature=temperature)


@peer("torch", "top_k_renorm")
def top_k_renorm(probs: Tensor, top_k: Tensor) -> Tensor:
    last = probs.sort(dim=-1, descending=True).values.gather(-1, top_k[:, None].long() - 1)
    kept = probs.where(probs >= last, 0)
    return kept / kept.sum(-1, keepdim=True)


@sgl("top_k_renorm", "top_k_renorm_probs")
def sgl_top_k_renorm(probs: Tensor, top_k: Tensor) -> Tensor:
    out = torch.empty_like(probs)
    torch.ops.sgl_kernel.top_k_renorm_probs(probs, out, top_k, 0)
    return out


@flashinfer("top_k_renorm")
def flashinfer_top_k_renorm(probs: Tensor, top_k: Tensor) -> Tensor:
    from flashinfer import sampling

    return sampling.top_k_renorm_probs(probs, top_k)


@peer("torch", "top_p_renorm")
def top_p_renorm(probs: Tensor, top_p: Tensor) -> Tensor:
    ordered, ids = probs.sort(dim=-1, descending=True)
    kept = ordered.where(ordered.cumsum(-1) - ordered < top_p[:, None], 0)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.empty_like(kept).scatter_(-1, ids, kept)


@sgl("top_p_renorm", "top_p_renorm_probs")
def sgl_top_p_renorm(probs: Tensor, top_p: Tensor) -> Tensor:
    out = torch.empty_like(probs)
    torch.ops.sgl_kernel.top_p_renorm_probs(probs, out, top_p, 0.0)
    return out


@flashinfer("top_p_renorm")
def flashinfer_top_p_renorm(probs: Tensor, top_p: Tensor) -> Tensor:
    from flashinfer import sampling

    return sampling.top_p_renorm_probs(probs, top_p)


@peer("torch", "min_p_renorm")
@compiled("min_p_renorm")
def min_p_renorm(probs: Tensor, min_p: Tensor) -> Tensor:
    kept = probs.where(probs >= min_p[:, None] * probs.amax(-1, keepdim=True), 0)
    return kept / kept.sum(-1, keepdim=True)


@peer("torch", "apply_token_bitmask_")
@compiled("apply_token_bitmask_")
def apply_token_bitmask(logits: Tensor, bitmask: Tensor) -> Tensor:
    bits = torch.arange(32, device=bitmask.device, dtype=torch.int32)
    kept = (bitmask.unsqueeze(-1) >> bits & 1).flatten(-2)[..., : logits.shape[-1]]
    return logits.masked_fill_(kept == 0, -torch.inf)


@sgl("apply_token_bitmask_", "apply_token_bitmask_inplace_cuda")
def sgl_apply_token_bitmask(logits: Tensor, bitmask: Tensor) -> Tensor:
    torch.ops.sgl_kernel.apply_token_bitmask_inplace_cuda(logits, bitmask, None)
    return logits
