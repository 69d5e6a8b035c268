"""Kernels with one fault each, by family of operators."""

from __future__ import annotations

from faults import (
    activation,
    attention,
    decisions,
    extent,
    kv_cache,
    matmul,
    moe,
    norm,
    promises,
    quant,
    rotary,
    sampling,
)
from faults.record import FAULTS, Fault, ask, sound

__all__ = [
    "FAULTS",
    "Fault",
    "activation",
    "ask",
    "attention",
    "decisions",
    "extent",
    "kv_cache",
    "matmul",
    "moe",
    "norm",
    "promises",
    "quant",
    "rotary",
    "sampling",
    "sound",
]
