"""One record for each op, by name."""

from __future__ import annotations

from records import activation, attention, experts, gemv, kv_cache, matmul, norm, rotary, sampling
from records.record import Record, Refusal, Sample, assert_close

FAMILIES = (activation, norm, rotary, attention, kv_cache, matmul, gemv, experts, sampling)
RECORDS: dict[str, Record] = {record.op: record for family in FAMILIES for record in family.RECORDS}

__all__ = ["RECORDS", "Record", "Refusal", "Sample", "assert_close"]
