"""Products with a scale for each block by DeepGEMM, https://github.com/deepseek-ai/DeepGEMM."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_cuda.layout import aligned, as_rows, together
from hal_cuda.matmul import BLOCK, block_scaled_mm_supports

__all__ = ["block_scaled_mm", "block_scaled_mm_supports"]


@prepared
def block_scaled_mm(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Sequence[int] = (BLOCK, BLOCK),
    out_dtype: torch.dtype,
) -> Callable[..., Any]:
    multiply = importlib.import_module("deep_gemm").fp8_gemm_nt

    def run(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, **options: Any) -> Tensor:
        rows, columns = a.shape[:-1].numel(), b.shape[0]
        out = a.new_empty((rows, columns), dtype=torch.bfloat16)
        if rows:
            by_row = together(a_scale.reshape(rows, -1))
            factors = (as_rows(a), by_row), (aligned(b), together(b_scale))
            # Scales stay as they are; it would round them to powers of two on other devices.
            multiply(*factors, out, disable_ue8m0_cast=True)
        return out.view(*a.shape[:-1], columns)

    return run
