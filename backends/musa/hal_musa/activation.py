"""Activations by muDNN, through torch_musa, and by sgl_kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hal import Kernel
from hal_musa.libraries import HALVES, Offer, aligned, vendor

__all__ = ["OFFERS"]

_FLOATS = (torch.float32, *HALVES)
_VECTOR = 4
"""How many of float32 sgl_kernel has at once; it goes over the end of what is no multiple."""


def silu_and_mul(x: Tensor) -> Tensor:
    if not x.numel():
        return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    return torch.ops.aten._fused_swiglu_forward(x.contiguous())


def silu_and_mul_supports(x: Tensor) -> str | None:
    return None if x.dtype in _FLOATS else "muDNN has SwiGLU of float32, float16 and bfloat16"


def mul_add(x: Tensor, y: Tensor, scale: float) -> Tensor:
    if not x.numel():
        return x.new_empty(x.shape)
    multiply: Any = vendor("sgl_kernel.musa.musa_fused_mul_add")
    # accurate=False would add to y.
    out = multiply(_whole(x), _whole(y), scale, accurate=True)
    return out[: x.numel()].view(x.shape)


def mul_add_supports(x: Tensor, y: Tensor, scale: float) -> str | None:
    if x.dtype in HALVES:
        return f"sgl_kernel rounds the product to {x.dtype} before the sum, and the scale too"
    return None if x.dtype == y.dtype == torch.float32 else "sgl_kernel takes tensors of one dtype"


def _whole(x: Tensor) -> Tensor:
    """The elements in a row that ends with zeros where sgl_kernel goes over the end."""
    row = aligned(x).view(-1)
    over = -row.numel() % _VECTOR
    return pad(row, (0, over)) if over else row


OFFERS = {
    "silu_and_mul": [
        Offer(
            Kernel(
                fn=silu_and_mul,
                supports=silu_and_mul_supports,
                name="torch_musa",
                graph_safe=True,
                deterministic=True,
                batch_invariant=True,
            ),
            needs=("aten::_fused_swiglu_forward",),
            since=22,
        )
    ],
    "mul_add": [
        Offer(
            Kernel(
                fn=mul_add,
                supports=mul_add_supports,
                name="sgl_kernel",
                graph_safe=True,
                deterministic=True,
                batch_invariant=True,
            ),
            needs=("sgl_kernel.musa.musa_fused_mul_add", "sgl_kernel::musa_fused_mul_add"),
        )
    ],
}
"""By op what there is, best first.

``aten::gated_silu``, the older SwiGLU of torch_musa, is not called: it has no bfloat16.
"""
