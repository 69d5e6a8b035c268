"""Norms, activations, quantisation and rotary embeddings of other libraries, and of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peers.registry import compiled, flashinfer, peer, sgl, vllm

F8 = torch.float8_e4m3fn


@peer("torch", "rms_norm")
def torch_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


@compiled("rms_norm")
def compiled_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return (normed * weight.float()).to(x.dtype)


@sgl("rms_norm", "rmsnorm")
def sgl_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.ops.sgl_kernel.rmsnorm(out, x, weight, 1e-6, True)
    return out


@vllm("rms_norm", "rms_norm")
def vllm_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, 1e-6)
    return out


@flashinfer("rms_norm")
def flashinfer_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    import flashinfer

    return flashinfer.rmsnorm(x, weight, 1e-6, enable_pdl=True)


@compiled("fused_add_rms_norm_")
def compiled_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
    total = x.float() + residual.float()
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6)
    return x.copy_((normed * weight.float()).to(x.dtype)), residual.copy_(total.to(x.dtype))


@sgl("fused_add_rms_norm_", "fused_add_rmsnorm")
def sgl_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
    torch.ops.sgl_kernel.fused_add_rmsnorm(x, residual, weight, 1e-6, True)
    return x, residual


@vllm("fused_add_rms_norm_", "fused_add_rms_norm")
def vllm_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
    torch.ops._C.fused_add_rms_norm(x, residual, weight, 1e-6)
    return x, residual


@flashinfer("fused_add_rms_norm_")
def flashinfer_fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
    import flashinfer

    flashinfer.fused_add_rmsnorm(x, residual, weight, 1e-6, enable_pdl=True)
    return x, residual


@peer("torch", "layer_norm")
def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


@compiled("layer_norm")
def compiled_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


@compiled("silu_and_mul")
def compiled_silu_and_mul(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(x.dtype)


@sgl("silu_and_mul", "silu_and_mul")
def sgl_silu_and_mul(x: Tensor) -> Tensor:
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops.sgl_kernel.silu_and_mul(out, x)
    return out


@vllm("silu_and_mul", "silu_and_mul")
def vllm_silu_and_mul(x: Tensor) -> Tensor:
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops._C.silu_and_mul(out, x)
    return out


@flashinfer("silu_and_mul")
def flashinfer_silu_and_mul(x: Tensor) -> Tensor:
    import flashinfer

    return flashinfer.silu_and_mul(x)


@compiled("gelu_tanh_and_mul")
def compiled_gelu_tanh_and_mul(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (functional.gelu(gate, approximate="tanh") * up).to(x.dtype)


@sgl("gelu_tanh_and_mul", "gelu_tanh_and_mul")
def sgl_gelu_tanh_and_mul(x: Tensor) -> Tensor:
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops.sgl_kernel.gelu_tanh_and_mul(out, x)
    return out


def codes_and_scales(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=F8), x.new_empty(
        (*x.shape[:-1], columns), dtype=torch.float32
    )


@sgl("per_token_group_quant", "sgl_per_token_group_quant_8bit_v2")
def sgl_group_quant(x: Tensor) -> Any:
    q, scale = codes_and_scales(x, x.shape[-1] // 128)
    limits = 1e-10, -448.0, 448.0, False, False, None
    torch.ops.sgl_kernel.sgl_per_token_group_quant_8bit_v2(x, q, scale, 128, *limits)
    return q, scale


@vllm("per_token_group_quant", "per_token_group_fp8_quant")
def vllm_group_quant(x: Tensor) -> Any:
    q, scale = codes_and_scales(x, x.shape[-1] // 128)
    torch.ops._C.per_token_group_fp8_quant(
        x, q, scale, 128, 1e-10, -448.0, 448.0, False, False, False
    )
    return q, scale


@sgl("per_token_quant", "sgl_per_token_quant_fp8")
def sgl_token_quant(x: Tensor) -> Any:
    q, scale = codes_and_scales(x, 1)
    torch.ops.sgl_kernel.sgl_per_token_quant_fp8(x, q, scale)
    return q, scale


@vllm("per_token_quant", "dynamic_per_token_scaled_fp8_quant")
def vllm_token_quant(x: Tensor) -> Any:
    q, scale = codes_and_scales(x, 1)
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(q, x, scale, None)
    return q, scale


@sgl("silu_and_mul_quant", "sgl_per_token_group_quant_8bit_v2")
def sgl_silu_and_mul_quant(x: Tensor, group_size: int) -> Any:
    half = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops.sgl_kernel.silu_and_mul(half, x)
    return sgl_group_quant(half)


@sgl("fused_add_rms_norm_quant", "sgl_per_token_group_quant_8bit_v2")
def sgl_fused_add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, group_size: int
) -> Any:
    torch.ops.sgl_kernel.fused_add_rmsnorm(x, residual, weight, 1e-6, True)
    return *sgl_group_quant(x), residual


@sgl("rotary_embedding_", "rotary_embedding")
def sgl_rotary(positions: Tensor, query: Tensor, key: Tensor, cache: Tensor) -> Any:
    torch.ops.sgl_kernel.rotary_embedding(
        positions, query.flatten(1), key.flatten(1), 128, cache, True
    )
    return query, key


@vllm("rotary_embedding_", "rotary_embedding")
def vllm_rotary(positions: Tensor, query: Tensor, key: Tensor, cache: Tensor) -> Any:
    torch.ops._C.rotary_embedding(positions, query.flatten(1), key.flatten(1), 128, cache, True)
    return query, key
