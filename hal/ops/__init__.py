"""The operators. Each module declares a family; ``hal.dispatch`` puts the callable ops here."""

from hal.ops import activation, attention, experts, gemv, kv_cache, matmul, norm, rotary, sampling

__all__ = [
    "activation",
    "attention",
    "experts",
    "gemv",
    "kv_cache",
    "matmul",
    "norm",
    "rotary",
    "sampling",
]
