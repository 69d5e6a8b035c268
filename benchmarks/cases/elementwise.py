"""Norms, activations, quantisation and rotary embeddings of Llama 3, Qwen3 and DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from case import Arguments, Case, randn

TOKENS = (1, 16, 256, 1024, 8192)


def rms_norm(tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, width), randn(device, width)), {}

    return Case("norm", "rms_norm", f"({tokens}, {width})", tokens, make, tokens * width * 4)


def fused_add_rms_norm(tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        x, residual = (randn(device, tokens, width) for _ in "xr")
        return (x, residual, randn(device, width)), {}

    shape, moved = f"({tokens}, {width})", tokens * width * 8
    return Case("norm", "fused_add_rms_norm_", shape, tokens, make, moved)


def layer_norm(tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, width), randn(device, width), randn(device, width)), {}

    return Case("norm", "layer_norm", f"({tokens}, {width})", tokens, make, tokens * width * 4)


def gated(op: str, tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, 2 * width),), {}

    shape, moved = f"({tokens}, {2 * width})", tokens * width * 6
    return Case("activation", op, shape, tokens, make, moved)


def quant(op: str, tokens: int, width: int) -> Case:
    """Codes of one byte; scales for each 128 columns or for each token."""
    scales = tokens * (width // 128 if "group" in op else 1)

    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, width),), {}

    shape, moved = f"({tokens}, {width})", 3 * tokens * width + 4 * scales
    return Case("quant", op, shape, tokens, make, moved)


def add_norm_quant(tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        x, residual = (randn(device, tokens, width) for _ in "xr")
        return (x, residual, randn(device, width)), {"group_size": 128}

    shape, moved = f"({tokens}, {width})", tokens * (7 * width + width // 128 * 4)
    return Case("fused quant", "fused_add_rms_norm_quant", shape, tokens, make, moved)


def silu_quant(tokens: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, 2 * width),), {"group_size": 128}

    shape, moved = f"({tokens}, {2 * width})", tokens * (5 * width + width // 128 * 4)
    return Case("fused quant", "silu_and_mul_quant", shape, tokens, make, moved)


def rotary(tokens: int, heads: int, kv_heads: int, positions: int = 16384) -> Case:
    def make(device: torch.device) -> Arguments:
        at = torch.randint(positions, (tokens,), device=device)
        qkv = randn(device, tokens, heads + 2 * kv_heads, 128)
        q, k = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        return (at, q, k, randn(device, positions, 128)), {}

    shape = f"({tokens}, {heads}, {kv_heads}, 128)"
    moved = tokens * ((heads + kv_heads) * 512 + 256)
    return Case("rotary", "rotary_embedding_", shape, tokens, make, moved)


def qk_norm_rope(tokens: int, heads: int, kv_heads: int, positions: int = 16384) -> Case:
    def make(device: torch.device) -> Arguments:
        at = torch.randint(positions, (tokens,), device=device)
        qkv = randn(device, tokens, (heads + 2 * kv_heads) * 128)
        of_q, of_k = randn(device, 2, 128)
        cache = randn(device, positions, 128)
        return (qkv, of_q, of_k, cache, at, heads, kv_heads), {"eps": 1e-6, "is_neox": True}

    shape = f"({tokens}, {heads}, {kv_heads}, 128)"
    moved = tokens * ((heads + kv_heads) * 512 + 256)
    return Case("rotary", "qk_norm_rope_", shape, tokens, make, moved)


def norms() -> Iterator[Case]:
    """Qwen3-30B-A3B, Llama 3 8B, DeepSeek-V3, Llama 3 70B."""
    for width in (2048, 4096, 7168, 8192):
        for tokens in TOKENS:
            yield rms_norm(tokens, width)
            yield fused_add_rms_norm(tokens, width)
            if width == 4096:
                yield layer_norm(tokens, width)


def activations() -> Iterator[Case]:
    for width in (768, 2048, 14336):
        for tokens in TOKENS:
            yield gated("silu_and_mul", tokens, width)
            if width == 14336:
                yield gated("gelu_tanh_and_mul", tokens, width)


def quants() -> Iterator[Case]:
    for width in (4096, 7168):
        for tokens in TOKENS:
            yield quant("per_token_group_quant", tokens, width)
            yield quant("per_token_quant", tokens, width)


def fused_quants() -> Iterator[Case]:
    for tokens in TOKENS:
        yield add_norm_quant(tokens, 4096)
        yield silu_quant(tokens, 4096)


def rotaries() -> Iterator[Case]:
    for tokens in TOKENS:
        yield rotary(tokens, 32, 8)
        yield qk_norm_rope(tokens, 32, 4)
