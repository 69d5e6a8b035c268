"""One record for each op, by name."""

from __future__ import annotations

from hal.testing.record import Record
from hal.testing.records import (
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
    qk_norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)

FAMILIES = (
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
    qk_norm,
    quant,
    quant_fused,
    rotary,
    sampling,
)
RECORDS: dict[str, Record] = {record.op: record for family in FAMILIES for record in family.RECORDS}

__all__ = ["FAMILIES", "RECORDS"]
