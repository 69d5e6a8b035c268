"""Decoding and prefill of Llama 3, Qwen3 and DeepSeek-V3, and the writing of their caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import hal
from case import BF16, F8, Arguments, Case, randn

NO_WINDOW = (-1, -1)


def starts(device: torch.device, count: int, each: int) -> Tensor:
    """[count + 1] int32: where sequences of equal length begin."""
    return torch.arange(count + 1, dtype=torch.int32, device=device) * each


def pages(device: torch.device, rows: int, keys: int, page: int) -> Tensor:
    """A table [rows, pages] int32 of pages that lie anywhere."""
    each = -(-keys // page)
    return torch.randperm(rows * each, device=device).int().view(rows, each)


def by_kv_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The reference, which writes all scores down, for one head of the keys after the other."""
    q, k, v, *rest = args
    each = q.shape[1] // k.shape[-2]
    with hal.use("native"):
        parts = [
            hal.ops.varlen_attention(
                q[:, head * each : (head + 1) * each],
                k[:, head : head + 1],
                v[:, head : head + 1],
                *rest,
                **kwargs,
            )
            for head in range(k.shape[-2])
        ]
    out, lse = zip(*parts, strict=True)
    return torch.cat(out, dim=1), torch.cat(lse, dim=1)


def paged(
    rows: int,
    keys: int,
    heads: int,
    kv_heads: int,
    page: int,
    dtype: torch.dtype = BF16,
    dim: int = 128,
) -> Case:
    def make(device: torch.device) -> Arguments:
        table = pages(device, rows, keys, page)
        cache = (table.numel(), page, kv_heads, dim)
        k, v = (randn(device, *cache, dtype=dtype) for _ in "kv")
        lens = torch.full((rows,), keys, dtype=torch.int32, device=device)
        q, at = randn(device, rows, heads, dim), starts(device, rows, 1)
        return (q, k, v, table, lens, at, 1, keys), {"causal": True}

    name = "" if dtype == BF16 else ", fp8"
    shape = f"({rows}, {keys}, {heads}/{kv_heads}, {dim}, page {page}{name})"
    moved = 2 * rows * keys * kv_heads * dim * dtype.itemsize + rows * heads * dim * 4
    flops = 4 * rows * keys * heads * dim
    return Case("decode", "paged_attention", shape, rows, make, moved, flops)


def mla(rows: int, keys: int, heads: int = 128, page: int = 64) -> Case:
    def make(device: torch.device) -> Arguments:
        table = pages(device, rows, keys, page)
        cache = randn(device, table.numel(), page, 576)
        lens = torch.full((rows,), keys, dtype=torch.int32, device=device)
        q_nope, q_rope = (randn(device, rows, heads, width) for width in (512, 64))
        return (q_nope, q_rope, cache, table, lens), {"scale": 192**-0.5}

    shape = f"({rows}, {keys}, {heads}, 512 + 64)"
    moved = rows * keys * 1152 + rows * heads * (576 + 512) * 2
    flops = 2 * rows * keys * heads * (576 + 512)
    return Case("decode", "mla_decode", shape, rows, make, moved, flops)


def merge(tokens: int, heads: int, dim: int = 128) -> Case:
    def make(device: torch.device) -> Arguments:
        sides = [
            (
                randn(device, tokens, heads, dim),
                randn(device, tokens, heads, dtype=torch.float32),
            )
            for _ in "ab"
        ]
        return (*sides[0], *sides[1]), {}

    shape, moved = f"({tokens}, {heads}, {dim})", tokens * heads * (6 * dim + 12)
    return Case("decode", "merge_attention_states", shape, tokens, make, moved)


def visible(length: int, left: int) -> int:
    """How many pairs of a query and a key a causal window leaves of a sequence."""
    if left < 0 or left >= length:
        return length * (length + 1) // 2
    return (left + 1) * (left + 2) // 2 + (length - left - 1) * (left + 1)


def varlen(
    count: int,
    length: int,
    heads: int = 32,
    kv_heads: int = 8,
    dim: int = 128,
    window: tuple[int, int] = NO_WINDOW,
    softcap: float = 0.0,
) -> Case:
    def make(device: torch.device) -> Arguments:
        tokens, at = count * length, starts(device, count, length)
        q = randn(device, tokens, heads, dim)
        k, v = (randn(device, tokens, kv_heads, dim) for _ in "kv")
        limits = {"window": window, "softcap": softcap} if window != NO_WINDOW else {}
        return (q, k, v, at, at, length, length), {"causal": True, **limits}

    name = "" if window == NO_WINDOW else f", window {window[0]}, cap {softcap:.0f}"
    shape = f"({count} x {length}, {heads}/{kv_heads}, {dim}{name})"
    moved = count * length * (2 * heads + 2 * kv_heads) * dim * 2
    flops = 4 * count * visible(length, window[0]) * heads * dim
    rows = count * length
    return Case(
        "prefill", "varlen_attention", shape, rows, make, moved, flops, reference=by_kv_head
    )


def store(tokens: int, kv_heads: int, dtype: torch.dtype = BF16, page: int = 16) -> Case:
    def make(device: torch.device) -> Arguments:
        blocks = max(64, 2 * tokens // page)
        k, v = (randn(device, tokens, kv_heads, 128) for _ in "kv")
        caches = (
            torch.zeros(blocks, page, kv_heads, 128, device=device, dtype=BF16).to(dtype)
            for _ in "kv"
        )
        return (k, v, *caches, torch.randperm(blocks * page, device=device)[:tokens]), {}

    shape = f"({tokens}, {kv_heads}, 128{'' if dtype == BF16 else ', fp8'})"
    moved = 2 * tokens * kv_heads * 128 * (2 + dtype.itemsize) + 8 * tokens
    return Case("kv", "store_kv_cache_", shape, tokens, make, moved)


def decodes() -> Iterator[Case]:
    some = ((1, 1024), (1, 8192), (8, 4096), (32, 4096), (64, 4096), (128, 2048))
    for rows, keys in some:
        yield paged(rows, keys, 32, 8, 16)
    for rows, keys in some[1::2]:
        yield paged(rows, keys, 32, 8, 64)
        yield paged(rows, keys, 32, 4, 16)
    yield paged(32, 4096, 32, 8, 16, F8)
    for rows in (1, 32, 128):
        yield mla(rows, 4096)
    for tokens in (1, 64, 4096):
        yield merge(tokens, 32)


def prefills() -> Iterator[Case]:
    for count, length in ((1, 2048), (1, 8192), (4, 4096), (16, 512)):
        yield varlen(count, length)
    yield varlen(1, 4096, kv_heads=4)
    yield varlen(4, 4096, dim=64)
    yield varlen(1, 8192, window=(1024, 0), softcap=50.0)


def stores() -> Iterator[Case]:
    for tokens in (1, 16, 256, 1024, 8192):
        yield store(tokens, 8)
        if tokens in (1, 256, 8192):
            yield store(tokens, 4)
            yield store(tokens, 8, F8)
