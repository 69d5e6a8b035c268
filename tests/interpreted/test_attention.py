"""Scales of scores that float32 does not have."""

from __future__ import annotations

import pytest
import torch

from hal_native import attention as reference
from hal_triton import attention


@pytest.mark.parametrize("scale", [1e-300, -1e-45, 1e-39])
def test_a_scale_that_is_next_to_nothing_weighs_all_keys_alike(scale: float) -> None:
    q, k, v = torch.ones(2, 1, 4), torch.ones(3, 1, 4), torch.tensor([[[1.0]], [[3.0]], [[8.0]]])
    args = q, k, v, torch.tensor([0, 2]), torch.tensor([0, 3]), 2, 3
    out, lse = attention.varlen_attention(*args, scale=scale, causal=True)
    assert out.flatten().tolist() == pytest.approx([2.0, 4.0])
    assert torch.allclose(lse, reference.varlen_attention(*args, scale=scale, causal=True)[1])
