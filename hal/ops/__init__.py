"""The operators. Each module declares a family; ``hal.dispatch`` puts the callable ops here."""

from hal.ops import activation, attention, kv_cache, mla, norm, rotary, sampling

__all__ = ["activation", "attention", "kv_cache", "mla", "norm", "rotary", "sampling"]
