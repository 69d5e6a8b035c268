"""One record for each op, by name."""

from __future__ import annotations

from records import activation, attention, kv_cache, mla, norm, qk_norm, rotary, sampling
from records.record import Record, Refusal, Sample, assert_close

FAMILIES = (activation, norm, qk_norm, rotary, attention, mla, kv_cache, sampling)
RECORDS: dict[str, Record] = {record.op: record for family in FAMILIES for record in family.RECORDS}

__all__ = ["RECORDS", "Record", "Refusal", "Sample", "assert_close"]
