"""One record for each op, by name."""

from __future__ import annotations

from hal.testing.record import Record
from hal.testing.records import (
    activation,
    bitmask,
    dequantize,
    experts,
    gemv,
    grouped_topk,
    int4,
    kv_cache,
    matmul,
    merge_attention,
    mla,
    moe,
    moe_gemv,
    multimodal,
    norm,
    paged_attention,
    qk_norm,
    quant,
    quant_fused,
    renorm,
    rotary,
    sample,
    softmax,
    topk,
    varlen_attention,
    w4a16,
)
from hal.testing.records.large import with_large
from hal.testing.records.layouts import with_layouts

FAMILIES = (
    activation,
    bitmask,
    dequantize,
    experts,
    gemv,
    grouped_topk,
    int4,
    kv_cache,
    matmul,
    merge_attention,
    mla,
    moe,
    moe_gemv,
    multimodal,
    norm,
    paged_attention,
    qk_norm,
    quant,
    quant_fused,
    renorm,
    rotary,
    sample,
    softmax,
    topk,
    varlen_attention,
    w4a16,
)
RECORDS: dict[str, Record] = {
    record.op: with_large(with_layouts(record)) for family in FAMILIES for record in family.RECORDS
}
"""Also with each tensor in every layout and with large sizes, so that no op lacks them."""

__all__ = ["FAMILIES", "RECORDS"]
