"""Products: dense and batched ones, and those of experts, ragged or masked in their tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_musa.simulated import mate_gemm as simulated
from hal_musa.simulated.host import unmodelled

_Pair = tuple[Tensor, Tensor]
_Granularity = tuple[int, int, int]


def gemm_fp8_nt_groupwise(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    scale_major_mode: str | None = None,
    mma_sm: int | None = None,
    scale_granularity_mnk: _Granularity | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    output_scale: Tensor | None = None,
) -> Tensor:
    """``a`` [m, k] times ``b`` [n, k] transposed, both FP8: ``out`` [m, n], bfloat16 unless said.

    Scales are float32 and contiguous, [m, k / 128] and [n / 128, k / 128] rounded up, or these
    transposed where ``scale_major_mode`` is MN. ``mma_sm`` is 1 whatever is said.
    """
    unmodelled(output_scale=output_scale)
    found = simulated.result(out, (a.shape[0], b.shape[0]), out_dtype or torch.bfloat16, a)
    granularity = list(scale_granularity_mnk or (1, 128, 128))
    torch.ops.simulated_mate.groupwise(
        a, b, a_scale, b_scale, scale_major_mode or "K", granularity, found
    )
    return found


def bmm_fp8(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    out: Tensor | None = None,
    backend: str = "auto",
    scale_granularity_mnk: _Granularity | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    """``a`` [batch, m, k] times ``b`` [batch, k, n], whose k is contiguous, both FP8."""
    unmodelled(output_scale=output_scale)
    found = simulated.result(out, (*a.shape[:2], b.shape[2]), out_dtype, a)
    granularity = list(scale_granularity_mnk or (-1, -1, -1))
    torch.ops.simulated_mate.batched(a, b, a_scale, b_scale, granularity, found)
    return found


def bmm_fp16(
    a: Tensor,
    b: Tensor,
    out_dtype: torch.dtype,
    out: Tensor | None = None,
    backend: str = "auto",
    c: Tensor | None = None,
) -> Tensor:
    """``a`` [batch, m, k] times ``b`` [batch, k, n], both 16-bit floats."""
    unmodelled(c=c)
    found = simulated.result(out, (*a.shape[:2], b.shape[2]), out_dtype, a)
    torch.ops.simulated_mate.batched(a, b, None, None, [-1, -1, -1], found)
    return found


def ragged_m_moe_gemm_16bit(
    input_a: Tensor,
    input_b: Tensor,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: str | None = "per_token",
    major_a_mode: str | None = "K",
    major_b_mode: str | None = "K",
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> Tensor:
    """Tokens [total, k] times their experts' weights [experts, n, k]: ``out`` [total, n].

    ``per_token``: the info has each token's expert, -1 for none, and a tile of ``alignment_m``
    tokens has one expert, that of its first. ``per_expert``: how many tokens each expert has.
    """
    simulated.majors(major_a_mode, major_b_mode)
    torch.ops.simulated_mate.ragged(
        input_a, None, input_b, None, ragged_tokens_info, gemm_mode, [], alignment_m or 128, out
    )
    return out


def ragged_m_moe_gemm_8bit(
    input_a: _Pair,
    input_b: _Pair,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: str | None = "per_token",
    major_a_mode: str | None = "K",
    major_b_mode: str | None = "K",
    scale_granularity_mnk: _Granularity | None = None,
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> Tensor:
    """As the 16-bit form, of pairs: FP8 and float32 scales.

    Scales are [total, k / 128] and [experts, n / 128, k / 128].
    """
    simulated.majors(major_a_mode, major_b_mode)
    granularity = list(scale_granularity_mnk or (1, 128, 128))
    torch.ops.simulated_mate.ragged(
        *(*input_a, *input_b, ragged_tokens_info, gemm_mode, granularity, alignment_m or 128, out)
    )
    return out


def masked_moe_gemm_16bit(
    a: Tensor,
    b: Tensor,
    masked_tokens_info: Tensor,
    out: Tensor,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Any:
    """Each expert's first tokens of [experts, max_tokens, k] times its weights [experts, n, k].

    The rest of ``out`` [experts, max_tokens, n] is left as it is.
    """
    unmodelled(enable_overlap=enable_overlap or None)
    torch.ops.simulated_mate.masked(a, None, b, None, masked_tokens_info, [], out)
    return out


def masked_moe_gemm_8bit(
    input_a: _Pair,
    input_b: _Pair,
    masked_tokens_info: Tensor,
    out: Tensor,
    scale_granularity_mnk: _Granularity | None = None,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Any:
    """As the 16-bit form, of pairs: FP8 and float32 scales.

    Scales are [experts, max_tokens, k / 128] and [experts, n / 128, k / 128].
    """
    unmodelled(enable_overlap=enable_overlap or None)
    granularity = list(scale_granularity_mnk or (1, 128, 128))
    torch.ops.simulated_mate.masked(*input_a, *input_b, masked_tokens_info, granularity, out)
    return out
