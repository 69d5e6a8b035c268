"""Products of a few rows or with 8-bit factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peers.registry import DoesNotFit, on_cuda, peer, sgl, vllm

Call = Callable[[], Any]
UINT4B8 = 4 << 8 | 8 << 17 | 1 << 50
"""vLLM's number of a type: no exponent, 4 bits, no sign, a bias of 8, and NaN as IEEE has it."""


def _swiglu(y: Tensor, activation: str | None) -> Tensor:
    if activation is None:
        return y
    gate, up = y.chunk(2, dim=-1)
    return functional.silu(gate) * up


@peer("torch", "fused_gemv")
def linear(x: Tensor, weight: Tensor, activation: str | None = None, **scales: Any) -> Tensor:
    if scales:
        raise DoesNotFit("its factors have the same dtype")
    return _swiglu(functional.linear(x, weight), activation)


@peer(
    "bf16",
    "fused_gemv",
    planned=True,
    note="cuBLAS with a weight of bfloat16, two or four times the bytes",
)
def wide_linear(x: Tensor, weight: Tensor, activation: str | None = None, **scales: Any) -> Call:
    if not scales:
        raise DoesNotFit("is the peer itself")
    return _wide(x.shape[0], weight.shape[0], x.shape[1], x.device)


def _wide(m: int, n: int, k: int, device: torch.device) -> Call:
    x, weight = (torch.randn(size, k, device=device, dtype=torch.bfloat16) for size in (m, n))
    return lambda: functional.linear(x, weight)


def _scales(x_scale: Tensor, weight_scale: Tensor) -> dict[str, Tensor]:
    return {"a_scale": x_scale, "b_scale": weight_scale}


@vllm("fused_gemv", "cutlass_scaled_mm", planned=True)
def vllm_gemv(x: Tensor, weight: Tensor, **more: Any) -> Call:
    if more.keys() != {"x_scale", "weight_scale"}:
        raise DoesNotFit("multiplies 8-bit codes, and nothing after that")
    return vllm_block_scaled_mm(x, weight, **_scales(**more), out_dtype=torch.bfloat16)


@on_cuda("torch block", "fused_gemv", planned=True)
def torch_block_gemv(x: Tensor, weight: Tensor, **more: Any) -> Call:
    if more.keys() != {"x_scale", "weight_scale"}:
        raise DoesNotFit("multiplies 8-bit codes, and nothing after that")
    return torch_block_scaled_mm(x, weight, **_scales(**more), out_dtype=torch.bfloat16)


@peer("torch", "fused_moe_gemv")
def moe_gather(
    x: Tensor, weight: Tensor, topk_weights: None, topk_ids: Tensor, activation: str | None = None
) -> Tensor:
    """The chosen weights are copied."""
    some = weight[topk_ids.flatten().long()]
    rows = x.repeat_interleave(topk_ids.shape[1], 0).unsqueeze(-1)
    return _swiglu(torch.bmm(some, rows).view(*topk_ids.shape, -1), activation)


@peer(
    "bf16",
    "w4a16_mm",
    planned=True,
    note="cuBLAS with a weight of bfloat16, four times the bytes",
)
def wide_w4a16(x: Tensor, qweight: Tensor, scales: Tensor, group_size: int) -> Call:
    return _wide(x.shape[0], qweight.shape[0], x.shape[1], x.device)


def marlin_scales(scales: Tensor) -> Tensor:
    """[n, groups] as Marlin wants them: [groups, n], 64 columns at a time in another order."""
    order = [i + 8 * j for i in range(8) for j in range(8)]
    rows = scales.t().contiguous()
    return rows.reshape(-1, 64)[:, order].reshape(rows.shape).contiguous()


@vllm("w4a16_mm", "marlin_gemm", planned=True)
def marlin(x: Tensor, qweight: Tensor, scales: Tensor, group_size: int) -> Call:
    """Eight codes of a column in an int32, the first one lowest, before they are laid out anew."""
    (m, k), n, ops = x.shape, qweight.shape[0], torch.ops._C
    codes = qweight.view(torch.int32).t().contiguous()
    none = torch.empty(0, dtype=torch.int32, device=x.device)
    laid_out = ops.gptq_marlin_repack(codes, none, k, n, 4, False)
    shared = marlin_scales(scales.to(x.dtype))
    count = torch.cuda.get_device_properties(x.device).multi_processor_count
    locks = torch.zeros(count, dtype=torch.int32, device=x.device)
    tail = (UINT4B8, m, n, k, True, False, True, False)
    factors = (laid_out, None, shared, None, None, None, None, None, locks)
    return lambda: ops.marlin_gemm(x, None, *factors, *tail)


@on_cuda("torch", "scaled_mm")
def torch_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """With sums that are brought to float32 at the end only, the faster of its two ways."""
    scales = (a_scale, b_scale.t()) if a_scale.dim() == 2 else (a_scale[0], b_scale[0])
    return torch._scaled_mm(a, b.t(), *scales, out_dtype=out_dtype, use_fast_accum=True)


@sgl("scaled_mm", "fp8_scaled_mm")
def sgl_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    if a_scale.dim() < 2:
        raise DoesNotFit("takes scales of rows")
    return torch.ops.sgl_kernel.fp8_scaled_mm(a, b.t(), a_scale, b_scale, out_dtype, None)


@vllm("scaled_mm", "cutlass_scaled_mm")
def vllm_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)
    torch.ops._C.cutlass_scaled_mm(out, a, b.t(), a_scale, b_scale, None)
    return out


@peer("bf16", "scaled_mm", planned=True, note="cuBLAS with factors of bfloat16")
@peer("bf16", "block_scaled_mm", planned=True, note="cuBLAS with factors of bfloat16")
def wide_mm(a: Tensor, b: Tensor, *scales: Tensor, out_dtype: torch.dtype) -> Call:
    return _wide(a.shape[0], b.shape[0], a.shape[1], a.device)


@on_cuda("torch", "block_scaled_mm", planned=True)
def torch_block_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Call:
    """Its scales lie column by column, those of the weight in multiples of four of them."""
    recipes = functional.ScalingType.BlockWise1x128, functional.ScalingType.BlockWise128x128
    blocks = b_scale.shape[1]
    padded = functional.pad(b_scale, (0, -blocks % 4)).t()
    given = (a, b.t(), a_scale.t().contiguous().t(), recipes[0], padded, recipes[1])
    return lambda: functional.scaled_mm(*given, output_dtype=out_dtype)


@sgl("block_scaled_mm", "fp8_blockwise_scaled_mm")
def sgl_block_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    call = torch.ops.sgl_kernel.fp8_blockwise_scaled_mm
    return call(a, b.t(), a_scale, b_scale.t(), out_dtype)


@vllm("block_scaled_mm", "cutlass_scaled_mm", planned=True)
def vllm_block_scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype
) -> Call:
    """It takes multiples of four rows; they are brought to that ahead of the call."""
    rows = a.shape[0]
    more = -rows % 4
    a = functional.pad(a.view(torch.uint8), (0, 0, 0, more)).view(a.dtype)
    a_scale = functional.pad(a_scale, (0, 0, 0, more)).t().contiguous().t()
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)

    def call() -> Tensor:
        torch.ops._C.cutlass_scaled_mm(out, a, b.t(), a_scale, b_scale.t(), None)
        return out[:rows]

    return call
