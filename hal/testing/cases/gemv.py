"""Random cases of the products for a few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F32, HALVES, Draw
from hal.testing.cases.matmul import E4M3, E5M2, Product, broken
from hal.testing.record import Sample

__all__ = ["CASES", "routing"]

# What brings sums of exact factors to the size of gates whose exponentials are normal numbers.
GATES = 2.0**-5
KINDS = ("plain", "four", "eight")


def factors(
    draw: Draw,
    kind: str,
    dtype: torch.dtype,
    of: Product,
    lead: tuple[int, ...],
    experts: tuple[int, ...],
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``x`` and a weight for each of ``experts``, of one of the kinds, with their scales."""
    n, k = of.n, of.k
    if kind == "plain":
        return of.floats(*lead, k, dtype=dtype), of.floats(*experts, n, k, dtype=dtype), {}
    if kind == "four":
        groups = draw.among(1, *(g for g in (2, 3, 4, 8) if k and k % g == 0))
        scale = of.scale(*experts, n, groups, dtype=draw.among(dtype, F32))
        x, weight = of.floats(*lead, k, dtype=dtype), of.nibbles(*experts, n, k // 2)
        return x, weight, {"weight_scale": scale}
    code = draw.among(E4M3, E5M2)
    x, weight = of.codes(*lead, k, dtype=code), of.codes(*experts, n, k, dtype=draw.among(code))
    across = -(-k // 128)
    scales = of.scale(*lead, across), of.scale(*experts, -(-n // 128), across)
    return x, weight, {"x_scale": scales[0], "weight_scale": scales[1]}


def fused_gemv(draw: Draw) -> Sample:
    dtype = draw.floating()
    kind = draw.among(*KINDS)
    out = BF16 if kind == "eight" else dtype
    of = Product(draw, out, even=True)
    follows: dict[str, Any] = draw.among({}, {"activation": "swiglu"}, {"norm_weight": None})
    if "activation" in follows:
        of.unit = GATES
        if out in HALVES and not of.exact:
            # Every second result is all but 0, and a few are much larger than the others.
            of.exact, of.lead = True, ()
    x, weight, scales = factors(draw, kind, dtype, of, of.lead, ())
    if "norm_weight" in follows:
        follows = {"norm_weight": draw.laid(draw.values(of.n, positive=True), expand=of.exact)}
        follows["eps"] = draw.among(None, 1e-6, 1e-3, 1.0)
    return draw.sample(broken(draw, x), weight, **scales, **follows)


def routing(draw: Draw, *shape: int, experts: int) -> tuple[Tensor, Tensor]:
    """Weights above 0 and ids of experts, some of which are none."""
    ids = draw.integers(*shape, low=-1 if draw.once_in(3) else 0, high=experts)
    if draw.once_in(4):
        ids = torch.where(ids == experts - 1, draw.among(experts, 2**31 - 1, -(2**31)), ids)
    ids = ids.to(draw.among(torch.int32, torch.int64))
    weights = draw.values(*shape, positive=True).to(draw.among(F32, F32, BF16))
    return draw.laid(weights), draw.laid(ids)


def fused_moe_gemv(draw: Draw) -> Sample:
    """Few results, which are exact until the weight of the expert and the activation come."""
    dtype, kind, experts = draw.floating(), draw.among(*KINDS), draw.below(6, 1)
    of = Product(draw, dtype, even=True)
    of.exact, of.n, activation = True, 2 * draw.below(5), draw.among(None, "swiglu")
    of.unit = GATES if activation else 1.0
    lead, topk = draw.among((), (1,), (2,), (3,), (1, 2), (0,)), draw.among(1, 1, 2, 0)
    each = draw.once_in(2)
    of.lead = (*lead, topk) if each else lead
    x, weight, scales = factors(draw, kind, dtype, of, of.lead, (experts,))
    weights, ids = routing(draw, *lead, topk, experts=experts)
    chosen = draw.among(weights, None)
    return draw.sample(broken(draw, x), weight, chosen, ids, **scales, activation=activation)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "fused_gemv": fused_gemv,
    "fused_moe_gemv": fused_moe_gemv,
}
