"""Faults in how far a kernel reads and writes, and at what strides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from faults.record import FAULTS, Fault, offered, reference
from hal.op import OPS
from hal.validate import as_tuple

Change = Callable[[Tensor], Tensor]


def _changed(op: str, name: str, change: Change) -> Any:
    """The reference with one argument changed."""

    def fn(*args: Any, **kwargs: Any) -> Any:
        bound = OPS[op].signature.bind(*args, **kwargs)
        if isinstance(bound.arguments.get(name), Tensor):
            bound.arguments[name] = change(bound.arguments[name])
        return reference(op)(*bound.args, **bound.kwargs)

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return offered(fn)


def _cut(op: str, dim: int, size: int) -> Any:
    """The reference, whose results are 0 beyond so many steps of a dimension."""

    def fn(*args: Any, **kwargs: Any) -> Any:
        results = reference(op)(*args, **kwargs)
        for result in as_tuple(results):
            if isinstance(result, Tensor) and result.dim() >= abs(dim + (dim >= 0)):
                rest = max(result.shape[dim] - size, 0)
                result.narrow(dim, result.shape[dim] - rest, rest).zero_()
        return results

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return offered(fn)


def plant(op: str, name: str, made: Callable[[], Any], only: str) -> None:
    """Plant a kernel that only the samples of these names show."""
    FAULTS.append(Fault(op, name, "numerics", only, made, only))


def _dense(x: Tensor) -> Tensor:
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())


def _from_start(x: Tensor) -> Tensor:
    return x.as_strided(x.shape, x.stride(), 0)


GAPS = [
    *(("layer_norm", "bias"), ("fused_add_rms_norm_quant", "weight"), ("rms_norm_quant", "weight")),
    *(("varlen_attention", "sinks"), ("varlen_attention", "cu_seqlens_q")),
    *(("varlen_attention", "cu_seqlens_k"), ("varlen_attention", "v")),
    *(("paged_attention", "seq_lens"), ("paged_attention", "k_scale")),
    *(("paged_attention", "v_cache"), ("paged_attention", "block_table")),
    *(("store_kv_cache_", "k_scale"), ("store_kv_cache_", "v"), ("mla_decode", "block_table")),
    *(("merge_attention_states", "out_b"), ("sample", "seed"), ("sample", "min_p")),
    *(("fused_moe_gemv", "x_scale"), ("fused_moe_gemv", "weight_scale")),
    *(("fused_experts", "w2_scale"), ("fused_experts", "topk_ids"), ("fused_gemv", "x_scale")),
    *(("grouped_topk", "correction_bias"), ("multimodal_rotary_embedding", "key")),
]
for op, name in GAPS:
    made = functools.partial(_changed, op, name, _dense)
    plant(op, f"{name} read as if it were dense", made, f"{name} with gaps")

STARTS = [
    *(("mul_add", "y"), ("layer_norm", "weight"), ("fused_add_rms_norm", "residual")),
    *(("silu_and_mul_quant", "x"), ("dequantize", "scale"), ("rms_norm_quant", "scale")),
    *(("varlen_attention", "q"), ("varlen_attention", "k"), ("paged_attention", "q")),
    *(("block_scaled_mm", "b"), ("block_scaled_mm", "a_scale"), ("w4a16_mm", "scales")),
    *(("fused_moe_gemv", "weight"), ("fused_experts", "w13"), ("softmax", "temperature")),
    *(("mla_decode", "q_nope"), ("rotary_embedding", "positions")),
]
for op, name in STARTS:
    made = functools.partial(_changed, op, name, _from_start)
    plant(op, f"{name} read from the start of its memory", made, f"{name} off by one element")

ROWS = [
    *("silu_and_mul", "relu_squared", "mul_add", "rms_norm", "layer_norm", "fused_add_rms_norm"),
    *("per_token_group_quant", "per_token_quant", "silu_and_mul_quant", "dequantize"),
    *("softmax", "top_k_renorm", "top_p_renorm", "min_p_renorm", "topk_softmax", "topk_sigmoid"),
    *("grouped_topk", "moe_sum", "rotary_embedding", "merge_attention_states", "scaled_mm"),
    *("block_scaled_mm", "w4a16_mm"),
]
for op in ROWS:
    plant(op, "65535 rows at most", functools.partial(_cut, op, 0, 65535), "large: .*67003")

COLUMNS = [
    *("gelu_and_mul", "quick_gelu", "gemma_rms_norm", "rms_norm_quant", "fused_add_rms_norm_quant"),
    *("block_scaled_mm", "w4a16_mm", "moe_sum"),
]
for op in COLUMNS:
    plant(
        op, "4096 columns at most", functools.partial(_cut, op, -1, 4096), "large: .*(5003|10006)"
    )

for op in ("softmax", "top_k_renorm", "top_p_renorm", "min_p_renorm", "apply_token_bitmask_"):
    made = functools.partial(_cut, op, -1, 65536)
    plant(op, "65536 tokens at most", made, "large: 131075 columns")


def _first(size: int, dim: int = -1) -> Change:
    """Zeros in place of what is beyond so many steps."""

    def change(x: Tensor) -> Tensor:
        kept = x.clone()
        rest = max(x.shape[dim] - size, 0)
        kept.narrow(dim, x.shape[dim] - rest, rest).fill_(0)
        return kept

    return change


def _bits(count: int) -> Change:
    return lambda x: x & 2**count - 1


SUMS = [
    *(("scaled_mm", "a", "5003"), ("block_scaled_mm", "b", "5003"), ("w4a16_mm", "x", "5002")),
    *(("fused_gemv", "x", "5002"), ("fused_moe_gemv", "x", "5002")),
    *(("rms_norm", "x", "5003"), ("layer_norm", "x", "5003")),
]
for op, name, size in SUMS:
    made = functools.partial(_changed, op, name, _first(4096))
    plant(op, "sums of 4096 columns at most", made, f"large: .*{size}")

NARROW = [
    ("fused_moe_gemv", "topk_ids", 8, "300"),
    ("fused_experts", "topk_ids", 8, "300"),
    ("moe_align_block_size", "topk_ids", 10, "1031"),
    ("rotary_embedding", "positions", 16, "131075"),
    ("multimodal_rotary_embedding", "positions", 16, "131075"),
]
for op, name, count, size in NARROW:
    made = functools.partial(_changed, op, name, _bits(count))
    plant(op, f"{name} of {count} bits", made, f"large: .*{size}")

for op, name in [("paged_attention", "seq_lens"), ("mla_decode", "seq_lens")]:
    made = functools.partial(_changed, op, name, lambda lens: lens.clamp(max=4096))
    plant(op, "4096 keys at most", made, "large: 4500")
made = functools.partial(_changed, "sample", "probs", _first(65536))
plant("sample", "65536 tokens at most", made, "large: 131075 columns")
