"""A call that each kernel of Moore Threads' libraries serves, on an S5000."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hal
from simulated.vendors import drawn

__all__ = ["calls", "run"]

BF16, F16, E4M3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn

Call = tuple[str, str, tuple[Any, ...], dict[str, Any]]


def calls() -> dict[str, Call]:
    """By name the op, the kernel, and arguments on the host."""
    return {name: call for part in (_plain, _products, _attention) for name, call in part().items()}


def _ints(*each: int) -> Tensor:
    return torch.tensor(each, dtype=torch.int32)


def _codes(*shape: int) -> Tensor:
    return (drawn(*shape) * 60).clamp(-448, 448).to(E4M3)


def _plain() -> dict[str, Call]:
    heads = drawn(3, 4, 64), drawn(3, 2, 64)
    turned = _ints(4, 0, 2), *heads, drawn(16, 32)
    groups = {"num_groups": 8, "topk_groups": 4, "scoring": "sigmoid"}
    routed = groups | {"correction_bias": drawn(256), "num_fused_shared_experts": 1}
    return {
        "swiglu": ("silu_and_mul", "torch_musa", (drawn(5, 256, dtype=BF16)[::2],), {}),
        "norm": ("rms_norm", "torch_musa", (drawn(5, 64)[:, :32], drawn(32, dtype=F16)), {}),
        "sum": ("mul_add", "sgl_kernel", (drawn(7), drawn(14)[::2], 0.5), {}),
        "rotation": ("rotary_embedding", "sgl_kernel", turned, {}),
        "offsets": ("rotary_embedding", "sgl_kernel", turned, {"offsets": _ints(3, 0, 7)}),
        "groups": ("per_token_group_quant", "sgl_kernel", (drawn(6, 256, dtype=BF16),), {}),
        "routing": ("grouped_topk", "mate", (drawn(6, 256, dtype=BF16), 9), routed),
    }


def _products() -> dict[str, Call]:
    row, weight = drawn(1, 256, dtype=BF16), drawn(64, 256, dtype=BF16)
    nibbles = torch.randint(0, 256, (64, 128), dtype=torch.uint8)
    rows = drawn(6, 1).abs(), drawn(32).abs()
    of_blocks = drawn(6, 2).abs().t().contiguous().t(), drawn(1, 2).abs()
    scales = {"x_scale": drawn(2, 2).abs(), "weight_scale": drawn(1, 2).abs()}
    rounded = {"out_dtype": BF16}
    return {
        "gemv": ("fused_gemv", "sgl_kernel", (row, weight), {"activation": "swiglu"}),
        "nibbles": ("fused_gemv", "sgl_kernel", (row, nibbles), {"weight_scale": drawn(64, 2)}),
        "codes": ("fused_gemv", "sgl_kernel", (_codes(2, 256), _codes(64, 256)), scales),
        "rows": ("scaled_mm", "torch_musa", (_codes(6, 64), _codes(32, 64), *rows), rounded),
        "blocks": (
            *("block_scaled_mm", "mate"),
            *((_codes(6, 256), _codes(64, 256), *of_blocks), rounded),
        ),
    }


def _attention() -> dict[str, Call]:
    q, (k, v) = drawn(8, 8, 64, dtype=BF16), (drawn(8, 2, 64, dtype=BF16) for _ in "kv")
    starts, one = _ints(0, 4, 7), _ints(0, 7)
    caches = (drawn(4, 16, 2, 64, dtype=BF16) for _ in "kv")
    table, lens = torch.tensor([[2, -1], [0, 3]]), torch.tensor([9, 30])
    latents = drawn(2, 16, 512, dtype=BF16), drawn(2, 16, 64, dtype=BF16)
    pages = drawn(4, 64, 576, dtype=BF16)
    return {
        "ragged": ("varlen_attention", "mate", (q, k, v, starts, starts, 4, 4), {"causal": True}),
        "one": ("varlen_attention", "torch_musa", (q, k, v, one, one, 8, 8), {"causal": True}),
        "paged": ("paged_attention", "mate", (q, *caches, table, lens, starts, 4, 30), {}),
        "latents": ("mla_decode", "mate", (*latents, pages, table, lens), {"scale": 0.1}),
    }


def run(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a call, wherever its arguments are, by its kernel alone."""
    op, kernel, _, _ = call
    with hal.use(**{op: f"musa:{kernel}"}):
        return getattr(hal.ops, op)(*args, **kwargs)
