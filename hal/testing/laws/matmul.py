"""Laws of the products: of quantised matrices, for a few rows, and of experts."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

E4M3, F32 = torch.float8_e4m3fn, torch.float32
SIZES = st.integers(1, 40)
MKN: dict[str, Any] = {"m": st.integers(1, 9), "k": SIZES, "n": SIZES, "seed": SEEDS}
OUT: dict[str, Any] = {"out_dtype": F32}


def _codes(values: Values, rows: int, columns: int) -> Tensor:
    """Small integers: products of them are exact, whatever the order of their sum."""
    return values.coarse(rows, columns).to(E4M3)


def _powers(values: Values, *shape: int) -> Tensor:
    return torch.exp2(values.integers(*shape, low=-3, high=4).float())


def blocks_of_scale_1(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    a, b = _codes(values, m, k), _codes(values, n, k)
    one = a.float().new_ones
    got = hal.ops.block_scaled_mm(a, b, one(m, 1), one(1, 1), **OUT)
    equal(got, (a.double() @ b.double().T).float())


def blocks_as_large_as_the_matrix(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    a, b, a_scale = _codes(values, m, k), _codes(values, n, k), _powers(values, m, 1)
    b_scale = _powers(values, 1, 1)
    got = hal.ops.block_scaled_mm(a, b, a_scale, b_scale, block=(n, k), **OUT)
    equal(got, hal.ops.scaled_mm(a, b, a_scale, b_scale.view(1), **OUT))


def blocks_add_up(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    a, b = _codes(values, m, 2 * k), _codes(values, n, 2 * k)
    a_scale, b_scale = _powers(values, m, 2), _powers(values, n, 2)
    got = hal.ops.block_scaled_mm(a, b, a_scale, b_scale, block=(1, k), **OUT)
    parts = [
        hal.ops.block_scaled_mm(
            a[:, half], b[:, half], a_scale[:, [i]], b_scale[:, [i]], block=(1, k), **OUT
        )
        for i, half in enumerate((slice(k), slice(k, None)))
    ]
    equal(got, parts[0] + parts[1])


def scales_and_bias_come_after_the_sum(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    a, b, bias = _codes(values, m, k), _codes(values, n, k), values.coarse(n)
    one, a_scale, b_scale = _powers(values, 1) * 0 + 1, _powers(values, m), _powers(values, n)
    plain = hal.ops.scaled_mm(a, b, one, one, **OUT)
    got = hal.ops.scaled_mm(a, b, a_scale, b_scale, bias=bias, **OUT)
    equal(got, plain * a_scale[:, None] * b_scale + bias)


def factors_change_places(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    a, b, a_scale, b_scale = (
        *(_codes(values, rows, k) for rows in (m, n)),
        *(_powers(values, rows) for rows in (m, n)),
    )
    got = hal.ops.scaled_mm(a, b, a_scale, b_scale, **OUT)
    equal(got, hal.ops.scaled_mm(b, a, b_scale, a_scale, **OUT).T)


def w4a16_is_a_product_with_what_is_unpacked(m: int, k: int, n: int, seed: int) -> None:
    values, size = Values(seed), 1 + seed % 9
    x = values.coarse(m, 2 * k)
    packed = values.integers(n, k, low=0, high=256).to(torch.uint8)
    scales = _powers(values, n, -(-2 * k // size))
    weight = hal.ops.dequantize(hal.ops.unpack_int4(packed), scales, size)
    got = hal.ops.w4a16_mm(x, packed, scales, group_size=size)
    equal(got, (x.double() @ weight.double().T).float())


def gemv_is_linear(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    x, y, weight = values.coarse(m, k), values.coarse(m, k), values.coarse(n, k)
    parts = hal.ops.fused_gemv(x, weight), hal.ops.fused_gemv(y, weight)
    equal(hal.ops.fused_gemv(x + 4 * y, weight), parts[0] + 4 * parts[1])


def gemv_then_what_follows(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    x, weight, norm = values.coarse(m, k) / 16, values.coarse(2 * n, k), values(2 * n)
    product = hal.ops.fused_gemv(x, weight)
    gated = hal.ops.fused_gemv(x, weight, activation="swiglu")
    near(gated, hal.ops.silu_and_mul(product), 16)
    normed = hal.ops.fused_gemv(x, weight, norm_weight=norm, eps=1e-3)
    near(normed, hal.ops.rms_norm(product, norm, 1e-3), 16)


def gemv_of_4_bits_is_w4a16(m: int, k: int, n: int, seed: int) -> None:
    values = Values(seed)
    x, packed = values.coarse(m, 2 * k), values.integers(n, k, low=0, high=256).to(torch.uint8)
    scales = _powers(values, n, 2)
    got = hal.ops.fused_gemv(x, packed, weight_scale=scales)
    equal(got, hal.ops.w4a16_mm(x, packed, scales, group_size=k))


def moe_gemv_picks_experts(m: int, k: int, n: int, seed: int) -> None:
    values, experts = Values(seed), 3
    x, weight = values.coarse(m, k), values.coarse(experts, n, k)
    ids, weights = values.integers(m, 2, low=-1, high=experts + 1), _powers(values, m, 2)
    got = hal.ops.fused_moe_gemv(x, weight, weights, ids)
    for expert in range(-1, experts + 1):
        known = 0 <= expert < experts
        of = hal.ops.fused_gemv(x, weight[expert]) if known else x.new_zeros(m, n)
        chosen = ids == expert
        equal(got[chosen], (of[:, None] * weights[..., None])[chosen])


def _mixture(values: Values, m: int, k: int, n: int) -> list[Tensor]:
    experts, topk = 3, 2
    w13, w2 = values(experts, 2 * n, k) / 4, values(experts, k, n) / 4
    weights, ids = values(m, topk, positive=True), values.integers(m, topk, low=0, high=experts)
    return [values(m, k), w13, w2, weights, ids]


def experts_one_by_one(m: int, k: int, n: int, seed: int) -> None:
    x, w13, w2, weights, ids = _mixture(Values(seed), m, k, n)
    inner = hal.ops.fused_moe_gemv(x, w13, None, ids, activation="swiglu")
    outer = hal.ops.fused_moe_gemv(inner, w2, weights, ids)
    got = hal.ops.fused_experts(x, w13, w2, weights, ids)
    # Sums of 80 terms, twice, which may cancel: of their sizes.
    terms = hal.ops.fused_moe_gemv(inner.abs(), w2.abs(), weights, ids).sum(1)
    near(got, hal.ops.moe_sum(outer), 64, like=terms)


def choices_in_another_order(m: int, k: int, n: int, seed: int) -> None:
    x, w13, w2, weights, ids = _mixture(Values(seed), m, k, n)
    got = hal.ops.fused_experts(x, w13, w2, weights.flip(-1), ids.flip(-1))
    want = hal.ops.fused_experts(x, w13, w2, weights, ids)
    near(got, want, 64, like=x.abs().sum(-1) + want.abs().max())


def weights_of_experts_are_linear(m: int, k: int, n: int, seed: int) -> None:
    x, w13, w2, weights, ids = _mixture(Values(seed), m, k, n)
    want = hal.ops.fused_experts(x, w13, w2, weights, ids)
    equal(hal.ops.fused_experts(x, w13, w2, weights * 4, ids), want * 4)
    nobody = torch.full_like(ids, -1)
    equal(hal.ops.fused_experts(x, w13, w2, weights, nobody), torch.zeros_like(want))


BLOCK, SCALED, GEMV, MOE = "block_scaled_mm", "scaled_mm", "fused_gemv", "fused_moe_gemv"

LAWS = [
    Law("blocks of scale 1 are a plain product", (BLOCK,), MKN, blocks_of_scale_1),
    Law("one block is scaled_mm", (BLOCK, SCALED), MKN, blocks_as_large_as_the_matrix),
    Law("blocks add up", (BLOCK,), MKN, blocks_add_up),
    Law(
        "scaled_mm scales and shifts a plain product",
        (SCALED,),
        MKN,
        scales_and_bias_come_after_the_sum,
    ),
    Law("the factors of scaled_mm change places", (SCALED,), MKN, factors_change_places),
    Law(
        "w4a16_mm is a product with what unpack_int4 and dequantize give",
        ("w4a16_mm", "unpack_int4", "dequantize"),
        MKN,
        w4a16_is_a_product_with_what_is_unpacked,
    ),
    Law("fused_gemv is linear", (GEMV,), MKN, gemv_is_linear),
    Law(
        "fused_gemv is a product, then silu_and_mul or rms_norm",
        (GEMV, "silu_and_mul", "rms_norm"),
        MKN,
        gemv_then_what_follows,
    ),
    Law("fused_gemv of 4 bits is w4a16_mm", (GEMV, "w4a16_mm"), MKN, gemv_of_4_bits_is_w4a16),
    Law("fused_moe_gemv is fused_gemv of experts", (MOE, GEMV), MKN, moe_gemv_picks_experts),
    Law(
        "fused_experts is a loop of fused_moe_gemv",
        ("fused_experts", MOE, "moe_sum"),
        MKN,
        experts_one_by_one,
    ),
    Law("experts in another order", ("fused_experts",), MKN, choices_in_another_order),
    Law(
        "fused_experts is linear in its weights",
        ("fused_experts",),
        MKN,
        weights_of_experts_are_linear,
    ),
]
