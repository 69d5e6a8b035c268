"""What is timed: operators at the shapes of models, by family."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from case import Case
from cases import attention, elementwise, experts, products, router, sampling

FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "norm": elementwise.norms,
    "activation": elementwise.activations,
    "quant": elementwise.quants,
    "fused quant": elementwise.fused_quants,
    "rotary": elementwise.rotaries,
    "router": router.routers,
    "sampling": sampling.samplers,
    "decode": attention.decodes,
    "prefill": attention.prefills,
    "kv": attention.stores,
    "gemv": products.gemvs,
    "matmul": products.matmuls,
    "experts": experts.mixtures,
}
