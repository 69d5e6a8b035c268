"""Large heads, products and sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hal.testing.records import attention, experts, factors, gemv, kv_cache, mla, qk_norm, rotary
from hal.testing.records.draws import Draws
from hal.testing.records.large_rows import BF16, INT8, LONG, ROWS, VOCAB, Given
from hal.testing.records.moe_gemv import routed

E4M3, F32 = torch.float8_e4m3fn, torch.float32


def turned() -> Iterator[Given]:
    draw = rotary.Heads()
    yield f"{ROWS} rows", ((*draw.call(ROWS, 1, 1, 2), rotary.cache(2)), {})
    _, *heads = draw.call(3, 130, 66, 8)
    places = torch.tensor([VOCAB - 1, 65536, 70000])
    yield f"{VOCAB} positions", ((places, *heads, rotary.cache(8, positions=VOCAB)), {})


def turned_thrice() -> Iterator[Given]:
    _, *heads = rotary.Heads().call(3, 130, 66, 8)
    places = torch.tensor([[VOCAB - 1, 65536, 70000], [5, 65537, 0], [70001, 1, VOCAB - 2]])
    args = places, *heads, rotary.cache(8, positions=VOCAB), (2, 1, 1)
    yield f"{VOCAB} positions", (args, {})


def normed_and_turned() -> Iterator[Given]:
    args = qk_norm.Maker().call(heads=(130, 66), head_dim=4, tokens=2)
    yield "262 heads", (tuple(args), {"eps": 1e-6, "is_neox": True})


def _products(make: factors.Maker, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    yield f"{LONG} columns {dtype}", make.factors(3, 20, LONG, dtype)
    yield f"{ROWS} rows {dtype}", make.factors(ROWS, 1, 3, dtype)


def scaled() -> Iterator[Given]:
    for dtype in (E4M3, INT8):
        for name, args in _products(factors.Maker(), dtype):
            yield name, (args, {"out_dtype": F32})


def block_scaled() -> Iterator[Given]:
    for m, n, k in [(3, 20, LONG), (ROWS, 1, 3), (2, LONG, 130)]:
        yield f"{m} x {n} x {k}", (factors.Maker().blocks(m, n, k), {"out_dtype": F32})


def four_bits() -> Iterator[Given]:
    for m, n, k in [(3, 20, LONG - 1), (ROWS, 1, 4), (2, LONG, 64)]:
        yield f"{m} x {n} x {k}", (factors.Maker().packed(m, n, k, 64), {"group_size": 64})


def _of_16_bits(make: gemv.Factors, *shape: int) -> Iterator[tuple[str, gemv.Call]]:
    """Calls whose result has 16 bits, beside which the rounding of a long float32 sum is small."""
    rows = (7,)
    yield "bfloat16", make.plain(rows, *shape, dtype=BF16)
    yield "4 bits", make.four(rows, *shape, dtype=BF16)
    yield "8 bits", make.eight(rows, *shape)


def few_rows() -> Iterator[Given]:
    make = gemv.Factors(0)
    for n, k in [(20, LONG - 1), (2 * LONG, 32)]:
        for name, (args, kwargs) in _of_16_bits(make, n, k):
            yield f"{name}, {n} x {k}", (tuple(args), kwargs | {"activation": "swiglu"})
            yield f"{name}, {n} x {k}, normed", (tuple(args), kwargs | {"norm_weight": make(n)})


def few_routed() -> Iterator[Given]:
    make = gemv.Factors(0)
    for count, n, k in [(300, 4, 6), (3, 6, LONG - 1), (3, 2 * LONG, 16)]:
        for name, call in _of_16_bits(make, count, n, k):
            sample = routed(make, call, 7, topk=3)
            yield f"{name}, {count} x {n} x {k}", (sample.args, sample.kwargs)


def mixtures() -> Iterator[Given]:
    make = experts.Experts(0)
    for count, hidden, inter in [(300, 4, 2), (2, 2057, 3), (2, 3, 2057)]:
        args = make.mixture(9, hidden=hidden, inter=inter, experts=count, topk=3)
        yield f"{count} experts, {hidden} by {inter}", (tuple(args), {})


def _attended(make: Any) -> Iterator[Given]:
    causal = {"causal": True}
    lens = [1, 3, 0], [4500, 4200, 2]
    yield "4500 keys", (tuple(make(lens, heads=(2, 1), head_dim=8, dtype=BF16)), causal)
    yield "700 queries", (tuple(make(([700], [700]), heads=(2, 1), head_dim=8)), causal)
    yield "130 heads", (tuple(make(([2, 1], [5, 3]), heads=(130, 65), head_dim=4)), causal)
    many = [1] * 1031, [1 + i % 3 for i in range(1031)]
    yield "1031 sequences", (tuple(make(many, heads=(2, 1), head_dim=4)), causal)


def ragged() -> Iterator[Given]:
    yield from _attended(attention.Maker(5).varlen)


def paged() -> Iterator[Given]:
    make = attention.Maker(6)
    yield from _attended(make.paged)
    for size in (256, 300):
        args = make.paged(([1, 2], [700, 257]), block_size=size)
        yield f"blocks of {size}", (tuple(args), {"causal": True})


def latents() -> Iterator[Given]:
    make = mla.Maker(7)
    args = make.call((4500, 4200, 0), heads=2, widths=(16, 4), block_size=64, dtype=BF16)
    yield "4500 rows", (tuple(args), {"scale": 0.15})
    yield "1031 sequences", (tuple(make.call((2,) * 1031, heads=1)), {"scale": 0.15})


def merged() -> Iterator[Given]:
    for shape in [(ROWS, 1, 2), (2, 300, 3), (2, 3, 1031)]:
        draw = Draws()
        sides: list[Tensor] = []
        for _ in range(2):
            sides += [draw(*shape), draw(*shape[:2])]
        yield f"{shape}", (tuple(sides), {})


def stored() -> Iterator[Given]:
    args = kv_cache.Maker().store(ROWS, blocks=(4200, 16), heads=1, head_dim=2)
    yield f"{ROWS} rows", (tuple(args), {})
    yield "130 heads", (tuple(kv_cache.Maker().store(heads=130, head_dim=40)), {})


LARGE: dict[str, Callable[[], Iterator[Given]]] = {
    "rotary_embedding": turned,
    "multimodal_rotary_embedding": turned_thrice,
    "qk_norm_rope": normed_and_turned,
    "scaled_mm": scaled,
    "block_scaled_mm": block_scaled,
    "w4a16_mm": four_bits,
    "fused_gemv": few_rows,
    "fused_moe_gemv": few_routed,
    "fused_experts": mixtures,
    "varlen_attention": ragged,
    "paged_attention": paged,
    "mla_decode": latents,
    "merge_attention_states": merged,
    "store_kv_cache_": stored,
}
