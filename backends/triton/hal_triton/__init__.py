"""Portable kernels in Triton's language, for every device whose Triton works."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

from hal import Backend, Capability, Device, Kernel, hookimpl

backend = Backend(api=1, torch=">=2.7")


@functools.cache
def _works(device: Device) -> bool:
    # Triton reads it when it is imported, which takes a while: not where it has nothing to do.
    interpreted = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")  # noqa: TID251
    if not (device.accelerator or interpreted) or importlib.util.find_spec("triton") is None:
        return False
    from hal_triton.target import works

    return works(device)


@hookimpl
def hal_devices() -> str | None:
    """None of its own; why there will be no kernel, if Triton is not there."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


@hookimpl
def hal_capabilities(device: Device) -> set[Capability]:
    """Whether kernels in Triton's language run."""
    return {Capability.TRITON} if _works(device) else set()


_FAMILIES = {
    "activation": (
        "silu_and_mul",
        "gelu_and_mul",
        "gelu_tanh_and_mul",
        "swigluoai_and_mul",
        "relu_squared",
        "quick_gelu",
        "mul_add",
    ),
    "norm": (
        "rms_norm",
        "fused_add_rms_norm",
        "gemma_rms_norm",
        "gemma_fused_add_rms_norm",
        "layer_norm",
        "qk_norm_rope",
    ),
    "rotary": ("rotary_embedding", "multimodal_rotary_embedding"),
    "quant": ("per_token_group_quant", "per_token_quant", "per_tensor_quant"),
    "quant_fused": ("silu_and_mul_quant", "rms_norm_quant", "fused_add_rms_norm_quant"),
    "matmul": ("scaled_mm", "block_scaled_mm", "w4a16_mm"),
    "gemv": ("fused_gemv", "fused_moe_gemv"),
    "experts": ("fused_experts",),
    "moe": (
        "topk_softmax",
        "topk_sigmoid",
        "grouped_topk",
        "moe_align_block_size",
        "moe_sum",
    ),
    "attention": ("varlen_attention", "paged_attention"),
    "merge": ("merge_attention_states",),
    "mla": ("mla_decode",),
    "kv_cache": ("store_kv_cache_",),
    "sampling": (
        "softmax",
        "top_k_renorm",
        "top_p_renorm",
        "min_p_renorm",
        "sample",
        "apply_token_bitmask_",
    ),
}

_BY_ROWS = {"scaled_mm", "block_scaled_mm", "w4a16_mm", "fused_gemv", "fused_experts"}
"""Ops whose kernels go by the number of rows, and with it the bits of each."""


def _offer(op: str, family: str) -> object:
    def hook(device: Device) -> Kernel | None:
        if not _works(device):
            return None
        from hal_triton.kernels.pdl import KNOWN
        from hal_triton.target import served

        module = importlib.import_module(f"hal_triton.{family}")
        return Kernel(
            fn=getattr(module, op),
            inplace=getattr(module, f"{op}_", None),
            supports=getattr(module, f"{op}_supports", served),
            name="triton",
            graph_safe=True,
            deterministic=True,
            batch_invariant=op not in _BY_ROWS,
            pdl=KNOWN and Capability.PDL in device.capabilities,
        )

    return hookimpl(hook)


for _family, _ops in _FAMILIES.items():
    globals().update({op: _offer(op, _family) for op in _ops})
