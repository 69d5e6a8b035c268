"""The operators. Each module declares a family; ``hal.dispatch`` puts the callable ops here."""

from hal.ops import (
    activation,
    attention,
    int4,
    kv_cache,
    norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)

__all__ = [
    "activation",
    "attention",
    "int4",
    "kv_cache",
    "norm",
    "quant",
    "quant_fused",
    "rotary",
    "sampling",
]
