"""The experts of Qwen3-30B-A3B, and of one device of eight that share those of DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from case import BF16, F8, Arguments, Case, chosen, factors, randn, routing


@attrs.frozen
class Mixture:
    """A mixture of experts, of which ``local`` ones are here."""

    name: str
    experts: int
    local: int
    hidden: int
    inter: int
    k: int


QWEN = Mixture("Qwen3-30B-A3B", 128, 128, 2048, 768, 8)
DEEPSEEK = Mixture("DeepSeek-V3 / 8", 256, 32, 7168, 2048, 8)


def experts(tokens: int, of: Mixture, dtype: torch.dtype = BF16) -> Case:
    def make(device: torch.device) -> Arguments:
        options = {}
        sizes = ((of.local, 2 * of.inter, of.hidden), (of.local, of.hidden, of.inter))
        # Codes use the range that they have, 448, beyond which is NaN; scales bring them back.
        scale = of.hidden**-0.5 if dtype == BF16 else 60.0
        w13, w2 = (randn(device, *size, dtype=dtype, scale=scale) for size in sizes)
        if dtype == F8:
            for name, (count, n, k) in zip(("w13_scale", "w2_scale"), sizes, strict=True):
                scales = factors(device, count, -(-n // 128), -(-k // 128))
                options[name] = scales * of.hidden**-0.5
        x = randn(device, tokens, of.hidden)
        return (x, w13, w2, *routing(device, tokens, of.experts, of.k)), options

    each = 3 * of.inter * of.hidden
    weights = chosen(tokens, of.local, of.experts, of.k) * each * dtype.itemsize
    pairs = max(1, tokens * of.k * of.local // of.experts)
    shape = f"({tokens}) {of.name} {'bf16' if dtype == BF16 else 'fp8'}"
    moved = weights + tokens * of.hidden * 4
    return Case("experts", "fused_experts", shape, tokens, make, moved, 2 * pairs * each)


def mixtures() -> Iterator[Case]:
    for dtype in (BF16, F8):
        for tokens in (1, 16, 64, 256, 1024, 4096):
            yield experts(tokens, QWEN, dtype)
    for tokens in (16, 256, 4096):
        yield experts(tokens, DEEPSEEK)
    for tokens in (1, 16, 64, 256, 1024, 4096):
        yield experts(tokens, DEEPSEEK, F8)
