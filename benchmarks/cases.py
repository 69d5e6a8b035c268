"""What is timed: operators at the shapes of models, and the fewest bytes that each has to move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

F8 = torch.float8_e4m3fn
TOKENS = (1, 16, 256, 1024, 8192)


@attrs.frozen
class Case:
    """A call of an op.

    Attributes:
        family: What it belongs to.
        op: The form in ``hal.ops``.
        shape: What a table says of it.
        make: Makes the arguments, anew each time.
        moved: The fewest bytes that are read or written.
        flops: Operations of the multiplying units.
    """

    family: str
    op: str
    shape: str
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    moved: int
    flops: int = 0


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def norms() -> Iterator[Case]:
    """Llama 3 8B and 70B, Qwen3 30B-A3B, DeepSeek-V3."""
    for width in (2048, 4096, 7168, 8192):
        weight, bias = randn(width), randn(width)
        for tokens in TOKENS:
            shape, size = f"({tokens}, {width})", tokens * width * 2

            def plain(tokens: int = tokens, weight: Tensor = weight) -> Any:
                return (randn(tokens, weight.numel()), weight), {}

            def added(tokens: int = tokens, weight: Tensor = weight) -> Any:
                return (*(randn(tokens, weight.numel()) for _ in "xr"), weight), {}

            def layer(tokens: int = tokens, weight: Tensor = weight, bias: Tensor = bias) -> Any:
                return (randn(tokens, weight.numel()), weight, bias), {}

            yield Case("norm", "rms_norm", shape, plain, 2 * size)
            yield Case("norm", "fused_add_rms_norm_", shape, added, 4 * size)
            if width == 4096:
                yield Case("norm", "layer_norm", shape, layer, 2 * size)


def activations() -> Iterator[Case]:
    for width in (768, 2048, 14336):
        for tokens in TOKENS:

            def make(tokens: int = tokens, width: int = width) -> Any:
                return (randn(tokens, 2 * width),), {}

            for op in ("silu_and_mul", "gelu_tanh_and_mul")[: 2 if width == 14336 else 1]:
                yield Case("activation", op, f"({tokens}, {2 * width})", make, tokens * width * 6)


def quants() -> Iterator[Case]:
    for width in (4096, 7168):
        for tokens in TOKENS:

            def make(tokens: int = tokens, width: int = width) -> Any:
                return (randn(tokens, width),), {}

            shape, size = f"({tokens}, {width})", tokens * width
            scales = tokens * width // 128 * 4
            yield Case("quant", "per_token_group_quant", shape, make, 3 * size + scales)
            yield Case("quant", "per_token_quant", shape, make, 3 * size + 4 * tokens)


def fused_quants() -> Iterator[Case]:
    for tokens in TOKENS:
        width, weight = 4096, randn(4096)

        def normed(tokens: int = tokens, weight: Tensor = weight) -> Any:
            return (*(randn(tokens, weight.numel()) for _ in "xr"), weight), {"group_size": 128}

        def gated(tokens: int = tokens, width: int = width) -> Any:
            return (randn(tokens, 2 * width),), {"group_size": 128}

        size, scales = tokens * width, tokens * width // 128 * 4
        shape = f"({tokens}, {width})"
        yield Case("fused quant", "fused_add_rms_norm_quant", shape, normed, 7 * size + scales)
        shape = f"({tokens}, {2 * width})"
        yield Case("fused quant", "silu_and_mul_quant", shape, gated, 5 * size + scales)


def rotaries() -> Iterator[Case]:
    cache = randn(16384, 128)
    for heads, kv_heads in ((32, 8), (32, 4)):
        for tokens in TOKENS:

            def make(tokens: int = tokens, heads: int = heads, kv: int = kv_heads) -> Any:
                positions = torch.randint(16384, (tokens,), device="cuda")
                qkv = randn(tokens, heads + 2 * kv, 128)
                return (positions, qkv[:, :heads], qkv[:, heads : heads + kv], cache), {}

            def normed(tokens: int = tokens, heads: int = heads, kv: int = kv_heads) -> Any:
                positions = torch.randint(16384, (tokens,), device="cuda")
                qkv, (of_q, of_k) = randn(tokens, (heads + 2 * kv) * 128), randn(2, 128)
                options = {"eps": 1e-6, "is_neox": True}
                return (qkv, of_q, of_k, cache, positions, heads, kv), options

            shape, moved = (
                f"({tokens}, {heads}, {kv_heads}, 128)",
                tokens * (heads + kv_heads) * 512,
            )
            moved += tokens * 256
            if kv_heads == 8:
                yield Case("rotary", "rotary_embedding_", shape, make, moved)
            else:
                yield Case("rotary", "qk_norm_rope_", shape, normed, moved)


FAMILIES = {
    "norm": norms,
    "activation": activations,
    "quant": quants,
    "fused quant": fused_quants,
    "rotary": rotaries,
}
