"""Linear layers of Llama 3 8B for a few rows, and 8-bit ones of DeepSeek-V3 for any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from case import BF16, F8, Arguments, Case, chosen, factors, randn, routing

# qkv, o, gate and up, down, lm_head: (n, k).
LLAMA = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
LM_HEAD = (128256, 4096)
DEEPSEEK = ((2112, 7168), (7168, 16384), (4096, 7168), (24576, 1536))


def by_column(scales: Tensor) -> Tensor:
    """The same scales, those of a column side by side, as most kernels want them."""
    return scales.t().contiguous().t()


def blocks(size: int) -> int:
    return -(-size // 128)


def gemv(rows: int, n: int, k: int, kind: str = "bf16", activation: str | None = None) -> Case:
    def make(device: torch.device) -> Arguments:
        options: dict[str, Any] = {"activation": activation} if activation else {}
        if kind == "fp8":
            options["x_scale"] = factors(device, rows, blocks(k))
            options["weight_scale"] = factors(device, blocks(n), blocks(k))
            x, weight = (randn(device, size, k, dtype=F8) for size in (rows, n))
        elif kind == "int4":
            options["weight_scale"] = factors(device, n, k // 128).to(BF16)
            weight = torch.randint(256, (n, k // 2), dtype=torch.uint8, device=device)
            x = randn(device, rows, k)
        else:
            x, weight = randn(device, rows, k), randn(device, n, k, scale=k**-0.5)
        return (x, weight), options

    each = {"bf16": 16, "fp8": 8, "int4": 4}[kind]
    given, out = rows * k * (1 if kind == "fp8" else 2), rows * n * (1 if activation else 2)
    # Blocks of 128 x 128 share a float32, groups of 128 a bfloat16.
    scales = {"bf16": 0, "fp8": n * k // 4096, "int4": n * k // 64}[kind]
    shape = f"({rows}, {n}, {k}) {kind}" + (f" {activation}" if activation else "")
    moved = n * k * each // 8 + scales + given + out
    return Case("gemv", "fused_gemv", shape, rows, make, moved, 2 * rows * n * k)


def w4a16(rows: int, n: int, k: int, group: int = 128) -> Case:
    def make(device: torch.device) -> Arguments:
        weight = torch.randint(256, (n, k // 2), dtype=torch.uint8, device=device)
        scales = factors(device, n, k // group).to(BF16)
        return (randn(device, rows, k), weight, scales), {"group_size": group}

    moved = n * k // 2 + n * k // group * 2 + rows * (n + k) * 2
    shape = f"({rows}, {n}, {k})"
    return Case("gemv", "w4a16_mm", shape, rows, make, moved, 2 * rows * n * k)


def moe_gemv(rows: int, experts: int, n: int, k: int, topk: int) -> Case:
    def make(device: torch.device) -> Arguments:
        weight = randn(device, experts, n, k, scale=k**-0.5)
        return (randn(device, rows, k), weight, None, routing(device, rows, experts, topk)[1]), {
            "activation": "swiglu"
        }

    some = chosen(rows, experts, experts, topk)
    moved = some * n * k * 2 + rows * (k + topk * n // 2) * 2
    shape = f"({rows}, {n}, {k}, {topk} of {experts})"
    return Case("gemv", "fused_moe_gemv", shape, rows, make, moved, 2 * rows * topk * n * k)


def scaled(rows: int, n: int, k: int, kind: str) -> Case:
    """Scales for each row of both factors, or one for each factor."""

    def make(device: torch.device) -> Arguments:
        a, b = (randn(device, size, k, dtype=F8) for size in (rows, n))
        sizes = ((rows, 1), (n, 1)) if kind == "row" else ((1,), (1,))
        scales = [factors(device, *size) for size in sizes]
        return (a, b, *scales), {"out_dtype": BF16}

    moved = (rows + n) * k + rows * n * 2
    shape = f"({rows}, {n}, {k}) {kind}"
    return Case("matmul", "scaled_mm", shape, rows, make, moved, 2 * rows * n * k)


def block_scaled(rows: int, n: int, k: int) -> Case:
    def make(device: torch.device) -> Arguments:
        a, b = (randn(device, size, k, dtype=F8) for size in (rows, n))
        a_scale = by_column(factors(device, rows, blocks(k)))
        return (a, b, a_scale, factors(device, blocks(n), blocks(k))), {"out_dtype": BF16}

    moved = (rows + n) * k + rows * (n * 2 + blocks(k) * 4)
    shape = f"({rows}, {n}, {k})"
    return Case("matmul", "block_scaled_mm", shape, rows, make, moved, 2 * rows * n * k)


def gemvs() -> Iterator[Case]:
    for n, k in (*LLAMA.values(), LM_HEAD):
        for rows in (1, 4, 16, 64) if n == LM_HEAD[0] else (1, 2, 4, 8, 16, 64):
            yield gemv(rows, n, k)
    for rows in (1, 8, 64):
        yield gemv(rows, *LLAMA["gate_up"], activation="swiglu")
    for kind in ("fp8", "int4"):
        for rows in (1, 16):
            yield gemv(rows, *LLAMA["qkv"], kind)
            yield gemv(rows, *LLAMA["gate_up"], kind)
    for rows in (1, 16, 64, 1024):
        yield w4a16(rows, *LLAMA["qkv"])
    for rows in (1, 4, 16):
        yield moe_gemv(rows, 128, 1536, 2048, 8)


def matmuls() -> Iterator[Case]:
    rows = (1, 16, 64, 256, 4096)
    for n, k in (LLAMA["qkv"], LLAMA["gate_up"]):
        for m in rows[::2]:
            yield scaled(m, n, k, "row")
        yield scaled(rows[-1], n, k, "tensor")
    for n, k in DEEPSEEK:
        for m in rows:
            yield block_scaled(m, n, k)
