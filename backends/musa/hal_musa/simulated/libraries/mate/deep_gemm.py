"""The same products under DeepGEMM's names: pairs of FP8 and scales, outputs given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import gemm

_Pair = tuple[Tensor, Tensor]
_Granularity = tuple[int, int, int]


def _no_cast(name: str, disabled: bool) -> None:
    if not disabled:
        raise Exception(f"{name} UE8M0 cast is not supported!")


def fp8_gemm_nt(
    a: _Pair,
    b: _Pair,
    d: Tensor,
    c: Tensor | None = None,
    recipe: _Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = True,
) -> Tensor:
    """``gemm_fp8_nt_groupwise`` into ``d``; ``disable_ue8m0_cast`` says nothing."""
    assert c is None, "Not support GEMM with C"
    return gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1], scale_granularity_mnk=recipe, out=d)


def m_grouped_bf16_gemm_nt_contiguous(
    a: Tensor, b: Tensor, d: Tensor, m_indices: Tensor, alignment_m: int = 128
) -> None:
    """``ragged_m_moe_gemm_16bit`` by token."""
    gemm.ragged_m_moe_gemm_16bit(a, b, m_indices, d, alignment_m=alignment_m)


def m_grouped_fp8_gemm_nt_contiguous(
    a: _Pair,
    b: _Pair,
    d: Tensor,
    m_indices: Tensor,
    recipe: _Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = True,
    alignment_m: int = 128,
) -> None:
    """``ragged_m_moe_gemm_8bit`` by token."""
    _no_cast("m_grouped_fp8_gemm_nt_contiguous", disable_ue8m0_cast)
    gemm.ragged_m_moe_gemm_8bit(
        a, b, m_indices, d, scale_granularity_mnk=recipe, alignment_m=alignment_m
    )


def m_grouped_bf16_gemm_nt_masked(
    a: Tensor,
    b: Tensor,
    d: Tensor,
    masked_m: Tensor,
    expected_m: int,
    compiled_dims: str = "nk",
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Any:
    """``masked_moe_gemm_16bit``."""
    gemm.masked_moe_gemm_16bit(a, b, masked_m, d, expected_m, enable_overlap, signal)


def m_grouped_fp8_gemm_nt_masked(
    a: _Pair,
    b: _Pair,
    d: Tensor,
    masked_m: Tensor,
    expected_m: int,
    recipe: _Granularity | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = True,
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Any:
    """``masked_moe_gemm_8bit``."""
    _no_cast("m_grouped_fp8_gemm_nt_masked", disable_ue8m0_cast)
    gemm.masked_moe_gemm_8bit(a, b, masked_m, d, recipe, expected_m, enable_overlap, signal)
