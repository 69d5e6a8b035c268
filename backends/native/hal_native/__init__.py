"""The reference backend: every op in plain torch, on every device torch has."""

from __future__ import annotations

from types import ModuleType

import torch

from hal import Backend, Capability, Device, Kernel, hookimpl
from hal.graphs.device import graph_class
from hal_native import (
    activation,
    attention,
    experts,
    gemv,
    int4,
    kv_cache,
    matmul,
    mla,
    moe,
    norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)

backend = Backend(api=1, torch=">=2.7")


@hookimpl
def hal_devices() -> list[Device]:
    """The host, and whatever accelerator torch itself knows of, without initialising it."""
    found = [Device("cpu", name=_processor(), accelerator=False)]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [Device(accelerator.type, i) for i in range(torch.accelerator.device_count())]
    return found


@hookimpl
def hal_capabilities(device: Device) -> set[Capability]:
    """Shapes without data work anywhere, graphs where torch has them; the host has more."""
    if device.type != "cpu":
        captures = {Capability.GRAPH_CAPTURE} if graph_class(device.type) else set[Capability]()
        return {Capability.FAKE_KERNELS} | captures
    return {Capability.FAKE_KERNELS, Capability.COMPILE, Capability.BF16, Capability.FP8}


def _processor() -> str:
    """The instruction set torch uses, such as ``AVX512``: Python has no portable model name."""
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def _offer(op: str, family: ModuleType) -> object:
    def hook(device: Device) -> Kernel:
        del device
        # Nothing in a reference reads a value on the host, so that a device graph may hold it.
        return Kernel(fn=getattr(family, op), name="torch", graph_safe=True, deterministic=True)

    return hookimpl(hook)


for _family, _ops in {
    activation: (
        "silu_and_mul",
        "gelu_and_mul",
        "gelu_tanh_and_mul",
        "swigluoai_and_mul",
        "relu_squared",
        "quick_gelu",
        "mul_add",
    ),
    norm: (
        "rms_norm",
        "fused_add_rms_norm",
        "gemma_rms_norm",
        "gemma_fused_add_rms_norm",
        "layer_norm",
        "qk_norm_rope",
    ),
    rotary: ("rotary_embedding", "multimodal_rotary_embedding"),
    quant: ("per_token_group_quant", "per_token_quant", "per_tensor_quant", "dequantize"),
    quant_fused: ("silu_and_mul_quant", "rms_norm_quant", "fused_add_rms_norm_quant"),
    int4: ("pack_int4", "unpack_int4"),
    matmul: ("scaled_mm", "block_scaled_mm", "w4a16_mm"),
    gemv: ("fused_gemv", "fused_moe_gemv"),
    experts: ("fused_experts",),
    moe: ("topk_softmax", "topk_sigmoid", "grouped_topk", "moe_align_block_size", "moe_sum"),
    attention: ("varlen_attention", "paged_attention", "merge_attention_states"),
    mla: ("mla_decode",),
    kv_cache: ("store_kv_cache_",),
    sampling: (
        "softmax",
        "top_k_renorm",
        "top_p_renorm",
        "min_p_renorm",
        "sample",
        "apply_token_bitmask_",
    ),
}.items():
    globals().update({op: _offer(op, _family) for op in _ops})
