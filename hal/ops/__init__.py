"""The operators. Each module declares a family; ``hal.functions`` puts what is called here."""

from hal.ops import (
    activation,
    attention,
    experts,
    gemv,
    int4,
    kv_cache,
    matmul,
    mla,
    moe,
    norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)

__all__ = [
    "activation",
    "attention",
    "experts",
    "gemv",
    "int4",
    "kv_cache",
    "matmul",
    "mla",
    "moe",
    "norm",
    "quant",
    "quant_fused",
    "rotary",
    "sampling",
]
