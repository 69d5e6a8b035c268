"""Routers of Qwen3-30B-A3B and DeepSeek-V3, and what surrounds their experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from case import Arguments, Case, chosen, randn, routing
from judges import by_choice, by_pairs

TOKENS = (1, 64, 1024, 8192)


def topk_softmax(tokens: int, experts: int, k: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, experts), k), {"renormalize": True}

    shape, moved = f"({tokens}, {experts}, {k})", tokens * (2 * experts + 8 * k)
    return Case("router", "topk_softmax", shape, tokens, make, moved, judge=by_choice)


def topk_sigmoid(tokens: int, experts: int, k: int) -> Case:
    def make(device: torch.device) -> Arguments:
        gating = randn(device, tokens, experts, dtype=torch.float32)
        bias = randn(device, experts, dtype=torch.float32, scale=0.1)
        return (gating, k), {"renormalize": True, "correction_bias": bias}

    shape, moved = f"({tokens}, {experts}, {k})", tokens * (4 * experts + 8 * k)
    return Case("router", "topk_sigmoid", shape, tokens, make, moved, judge=by_choice)


def grouped_topk(tokens: int, experts: int, k: int, groups: int, kept: int) -> Case:
    def make(device: torch.device) -> Arguments:
        gating = randn(device, tokens, experts, dtype=torch.float32)
        bias = randn(device, experts, dtype=torch.float32, scale=0.1)
        options = {"num_groups": groups, "topk_groups": kept, "scoring": "sigmoid"}
        return (gating, k), {**options, "correction_bias": bias}

    shape, moved = f"({tokens}, {experts}, {k})", tokens * (4 * experts + 8 * k)
    return Case("router", "grouped_topk", shape, tokens, make, moved, judge=by_choice)


def align(tokens: int, experts: int, k: int, block: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (routing(device, tokens, experts, k)[1], experts, block), {}

    shape = f"({tokens}, {experts}, {k}, {block})"
    moved = 8 * tokens * k + 4 * chosen(tokens, experts, experts, k)
    return Case("router", "moe_align_block_size", shape, tokens, make, moved, judge=by_pairs)


def moe_sum(tokens: int, k: int, width: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (randn(device, tokens, k, width),), {}

    shape, moved = f"({tokens}, {k}, {width})", tokens * (k + 1) * width * 2
    return Case("router", "moe_sum", shape, tokens, make, moved)


def routers() -> Iterator[Case]:
    for tokens in TOKENS:
        yield topk_softmax(tokens, 128, 8)
        yield topk_softmax(tokens, 256, 8)
        yield topk_sigmoid(tokens, 256, 8)
        yield grouped_topk(tokens, 256, 8, 8, 4)
        yield align(tokens, 128, 8, 16 if tokens <= 64 else 64)
        yield moe_sum(tokens, 8, 2048)
    yield moe_sum(1024, 8, 7168)
