"""What Moore Threads added: rotations, products with one row, a product and sum."""

from __future__ import annotations

import torch
from torch import Tensor


def musa_batched_rotary_embedding_contiguous(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rot_dim: int,
    cos_sin_cache_offsets: Tensor,
) -> None:
    """In place: row ``offsets[t] + positions[t]`` of the cache."""
    return torch.ops.sgl_kernel.musa_batched_rotary_embedding_contiguous(
        positions, query, key, head_size, cos_sin_cache, is_neox, rot_dim, cos_sin_cache_offsets
    )


def musa_rotary_embedding_contiguous(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    """In place on [tokens, heads, head_size] of any strides but the last."""
    return torch.ops.sgl_kernel.musa_rotary_embedding_contiguous(
        positions, query, key, head_size, cos_sin_cache, is_neox
    )


def musa_fused_moe_gemv(
    A: Tensor,  # noqa: N803 - its callers name it so
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    A_scale: Tensor | None,  # noqa: N803
    B_scale: Tensor | None,  # noqa: N803
    topk_weights: Tensor,
    topk_ids: Tensor,
    mul_routed_weight: bool,
    topk: int,
    use_int4_w4a16: bool,
    use_swigelu: bool,
) -> None:
    """Always raises NotImplementedError: the operator is declared and has no kernel."""
    return torch.ops.sgl_kernel.musa_fused_moe_gemv(
        *(A, B, C, A_scale, B_scale, topk_weights, topk_ids, mul_routed_weight, topk),
        *(use_int4_w4a16, use_swigelu),
    )


def musa_fused_gemv(
    x: Tensor,
    qweight: Tensor,
    x_scales: Tensor | None = None,
    qweight_scales: Tensor | None = None,
    use_swigelu: bool = False,
    use_rms_norm: bool = False,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """``x`` [rows, k] times weights [n, k] transposed: bfloat16 where the weights are FP8.

    Weights are 16-bit floats, FP8 with scales of 128 by 128, or four bits in uint8 with scales.
    """
    assert not (use_swigelu and use_rms_norm), (
        "gemv only fused one activation (swigelu or rms_norm)!"
    )
    assert not use_rms_norm or gamma is not None, "rms_norm gamma is None!"
    eight = qweight.dtype == torch.float8_e4m3fn
    four = not eight and qweight_scales is not None
    if eight:
        assert qweight_scales is not None, "FP8 grouped matmul weight scales is None!"
    if four:
        assert x.dtype in (torch.bfloat16, torch.float16), (
            "W4A16 gemv only support bfloat16 or float16!"
        )
    width = qweight.shape[0] // 2 if use_swigelu else qweight.shape[0]
    dtype = torch.bfloat16 if eight else x.dtype
    output = torch.empty((*x.shape[:-1], width), device=x.device, dtype=dtype)
    torch.ops.sgl_kernel.musa_fused_gemv(
        *(x, qweight, output, x_scales if eight else None, qweight_scales),
        *(four, use_swigelu, use_rms_norm, gamma, eps),
    )
    return output


def musa_fused_mul_add(
    self: Tensor, bias: Tensor | None, scale: float | None, accurate: bool = True
) -> Tensor:
    """``self * scale + bias``, new, in vectors of 16 bytes; or, not ``accurate``, into ``bias``.

    None for either crashes both ways.
    """
    assert bias is not None and scale is not None  # noqa: PT018 - to Python, as to the kernel
    if not accurate:
        return bias.add_(self, alpha=scale)
    output = torch.empty_like(self)
    torch.ops.sgl_kernel.musa_fused_mul_add(output, self, bias, scale)
    return output
