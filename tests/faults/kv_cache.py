"""Faults in writing the cache."""

from __future__ import annotations

from faults.record import CODES, INFS, NANS, OFF, edit

STORE = "store_kv_cache_"
ANY = f"{CODES}|{OFF}|{NANS}|{INFS}"
SLOTS = "slots = slots.long()[source].clamp(min=0)"
edit(
    STORE,
    "a skipped token writes the last slot",
    ANY,
    SLOTS,
    "slots = slots.long()",
)
edit(
    STORE,
    "a skipped token writes the first slot",
    ANY,
    SLOTS,
    "slots = slots.long().clamp(min=0)",
)
edit(
    STORE,
    "all skipped writes the first slot",
    f"skipped.*({ANY})",
    "torch.where(stored.any(), rows[source], cache[0, 0])",
    "rows[source]",
)
edit(
    STORE, "only -1 is skipped", f"negative.*({ANY})", "stored = slots >= 0", "stored = slots != -1"
)
edit(
    STORE,
    "multiplied with the scale",
    OFF,
    "wide(x) / per_head(scale, wide(x))",
    "wide(x) * per_head(scale, wide(x))",
)
edit(STORE, "scale ignored", OFF, "wide(x) / per_head(scale, wide(x))", "wide(x)")
edit(
    STORE,
    "values with the keys' scale",
    OFF,
    "encode(v, v_cache.dtype, v_scale)",
    "encode(v, v_cache.dtype, k_scale)",
)
edit(
    STORE,
    "keys for values",
    ANY,
    "bits(encode(v, v_cache.dtype, v_scale))",
    "bits(encode(k if k.shape == v.shape else v, v_cache.dtype, v_scale))",
)
edit(
    STORE,
    "infinity beyond the range",
    f"{INFS}|{CODES}|{NANS}",
    "scaled.clamp(-limit, limit)",
    "scaled",
)
edit(
    STORE, "blocks of 16 always", ANY, "slots % cache.shape[1])", "slots % min(cache.shape[1], 16))"
)
edit(
    STORE,
    "first head's scale for all",
    OFF,
    "scale.to(x.dtype).reshape(-1, 1)",
    "scale.to(x.dtype).reshape(-1, 1)[:1]",
)
edit(
    STORE,
    "every slot of the block is written",
    ANY,
    "cache.index_put_((slots // cache.shape[1], slots % cache.shape[1]), rows)",
    "cache[slots // cache.shape[1]] = rows.unsqueeze(1)",
    check="numerics",
)
edit(
    STORE,
    "scale in half",
    OFF,
    "scale.to(x.dtype).reshape(-1, 1)",
    "scale.half().to(x.dtype).reshape(-1, 1)",
)
