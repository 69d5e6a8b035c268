"""The RMS norm by muDNN, through torch_musa."""

from __future__ import annotations

import torch
from torch import Tensor

from hal import Kernel
from hal_musa.libraries import HALVES, Offer

__all__ = ["OFFERS"]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """Of its two results, the norm; eps is given, since none is another one than torch's."""
    if not x.numel():
        return x.new_empty(x.shape)
    width = list(x.shape[-1:])
    same = None if weight is None else weight.to(x.dtype)
    return torch.ops.aten._fused_rmsnorm_forward(x, width, eps, same)[0].contiguous()


def rms_norm_supports(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> str | None:
    if x.dtype not in (torch.float32, *HALVES):
        return "muDNN has norms of float32, float16 and bfloat16"
    exact = (x.dtype, *HALVES) if x.dtype == torch.float32 else (x.dtype,)
    if weight is None or weight.dtype in exact:
        return None
    return f"muDNN takes a weight of the dtype of x, to which {weight.dtype} would be rounded"


def _supports_on_21(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> str | None:
    if x.dtype == torch.bfloat16:
        return "muDNN has bfloat16 from mp_22 on"
    return rms_norm_supports(x, weight, eps)


OFFERS = {
    "rms_norm": [
        Offer(
            Kernel(
                fn=rms_norm,
                supports=rms_norm_supports,
                name="torch_musa",
                graph_safe=True,
                deterministic=True,
            ),
            needs=("aten::_fused_rmsnorm_forward",),
            before=(22, _supports_on_21),
        )
    ]
}
"""By op what there is.

sgl_kernel's ``fused_add_rmsnorm`` is not called: it checks neither shapes nor strides nor dtypes,
and is built with the option that lets a compiler take NaN for impossible.
"""
