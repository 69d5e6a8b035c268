"""torch_musa's two ways to attend, and which of them scaled_dot_product_attention takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal_musa.simulated.attend import attend
from hal_musa.simulated.cards import arch
from hal_musa.simulated.host import check, on_host, only

__all__ = ["KERNELS", "route", "takes_flash"]

_FLASH_DIMS = {(192, 128), (160, 160)}


def takes_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the fused kernel takes these, by all that torch_musa asks."""
    dims = (q.shape[-1], v.shape[-1])
    return (
        arch() >= 22
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.dim() in (3, 4)
        and (max(dims) <= 128 or dims in _FLASH_DIMS)
        and not (mask is not None and mask.requires_grad)
    )


def _bias(mask: Tensor | None, causal: bool, rows: int, keys: int) -> Tensor:
    """What is added to the scores, [..., rows, keys]; causal is aligned at the top left."""
    bias = torch.zeros(rows, keys)
    if causal:
        bias = bias.masked_fill(torch.ones(rows, keys).tril().logical_not(), -torch.inf)
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask.float()


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``out`` and the LSE of [..., heads, rows, dim], float32."""
    lead = torch.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    q, k, v = (x.expand(*lead, *x.shape[-3:]) for x in (q, k, v))
    bias = _bias(mask, causal, q.shape[-2], k.shape[-2])
    bias = bias.expand(*q.shape[:-1], k.shape[-2]).reshape(-1, *q.shape[-3:-1], k.shape[-2])
    flat = [x.reshape(-1, *x.shape[-3:]).transpose(1, 2) for x in (q, k, v)]
    factor = float(q.shape[-1]) ** -0.5 if scale is None else scale
    found = [
        attend(one, keys, values, factor, bias=more)
        for one, keys, values, more in zip(*flat, bias, strict=True)
    ]
    out = torch.stack([x for x, _ in found]).transpose(1, 2)
    lse = torch.stack([x for _, x in found])
    return out.reshape(*lead, *out.shape[1:]), lse.reshape(*lead, *lse.shape[1:])


def _valid(dropout_p: float, is_causal: bool, attn_mask: Tensor | None) -> None:
    check(not (is_causal and attn_mask is not None), "is_causal comes without attn_mask")
    if dropout_p:
        raise NotImplementedError("the simulation of attention drops nothing")


def _probabilities(q: Tensor, k: Tensor, lse: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    scores = q.float() @ k.float().repeat_interleave(q.shape[-3] // k.shape[-3], -3).mT
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])


@on_host
def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _valid(dropout_p, is_causal, attn_mask)
    out, lse = _attended(query, key, value, attn_mask, is_causal, scale)
    bias = _bias(attn_mask, is_causal, query.shape[-2], key.shape[-2])
    weights = _probabilities(query, key, lse, bias, scale)
    return out.to(query.dtype), weights.to(query.dtype), torch.empty(0)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _valid(dropout_p, is_causal, attn_mask)
    only("flash attention's query", query.dtype, torch.float16, torch.bfloat16)
    check(takes_flash(query, key, value, attn_mask), "flash attention does not take these")

    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        out, lse = _attended(q, k, v, mask, is_causal, scale)
        return out.to(q.dtype), lse, torch.empty(0)

    return on_host(compute)(query, key, value, attn_mask)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    saved: Tensor,
    dropout_mask: Tensor,
    is_causal: bool,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    with torch.enable_grad():
        leaves = [
            x.detach().float().requires_grad_() if x.is_floating_point() else x for x in given
        ]
        out = _attended(*leaves, causal=is_causal, scale=scale)[0]
        wanted = [x for x in leaves if x.requires_grad]
        grads = list(torch.autograd.grad(out, wanted, grad_out.float()))
    if len(grads) < 4:
        grads.append(torch.empty(0))
    query_grad, key_grad, value_grad, mask_grad = grads
    heads = zip((query_grad, key_grad, value_grad), given, strict=False)
    return *(g.to(x.dtype) for g, x in heads), mask_grad  # pyright: ignore[reportReturnType]


def route(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` of the device's tensors: fused, where that takes them."""
    if query.dim() == 2:
        one, keys, values = (x[None] for x in (query, key, value))
        return route(one, keys, values, attn_mask, dropout_p, is_causal, scale)[0]
    aten = torch.ops.aten
    flash = takes_flash(query, key, value, attn_mask)
    ways = (
        aten._scaled_dot_product_attention_math_musa,
        aten._scaled_dot_product_attention_flash_musa,
    )
    return ways[flash](query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]


_PREFIX = "_scaled_dot_product_attention"
KERNELS: dict[str, Callable[..., Any]] = {
    f"{_PREFIX}_math_musa": _math,
    f"{_PREFIX}_flash_musa": _flash,
    f"{_PREFIX}_math_musa_backward": on_host(_backward),
    f"{_PREFIX}_flash_musa_backward": on_host(_backward),
}
