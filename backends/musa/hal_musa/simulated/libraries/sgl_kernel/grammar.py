"""Grammar masks."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_token_bitmask_inplace_cuda(
    logits: Tensor, bitmask: Tensor, indices: list[int] | Tensor | None = None
) -> None:
    """In place, which the operator's schema does not say."""
    if isinstance(indices, list):
        indices = torch.tensor(indices, dtype=torch.int32, device=logits.device)
    if indices is not None:
        indices = indices.to(logits.device)
    torch.ops.sgl_kernel.apply_token_bitmask_inplace_cuda(logits, bitmask, indices)
