"""Merging of two states of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_state_v2(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values [tokens, heads, dim], LSE float32 [tokens, heads]: NaN where both LSE are infinite."""
    v_merged = torch.empty_like(v_a) if v_merged is None else v_merged
    s_merged = torch.empty_like(s_a) if s_merged is None else s_merged
    torch.ops.sgl_kernel.merge_state_v2(v_a, s_a.float(), v_b, s_b.float(), v_merged, s_merged)
    return v_merged, s_merged
