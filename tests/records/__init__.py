"""One record for each op, by name."""

from __future__ import annotations

from records import (
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
from records.record import Record, Refusal, Sample, assert_close

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

__all__ = ["RECORDS", "Record", "Refusal", "Sample", "assert_close"]
