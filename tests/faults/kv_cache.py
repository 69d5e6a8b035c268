"""Faults in writing the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faults.record import CODES, INFS, NANS, OFF, edit, kernel, reference

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
edit(
    STORE,
    "NaN beyond the range",
    NANS,
    "wide(x) / per_head(scale, wide(x))",
    "(s := wide(x) / per_head(scale, wide(x))).masked_fill(\n"
    "        s.abs() > torch.finfo(dtype).max, torch.nan\n    )",
)


@kernel(STORE, "numerics", ANY)
def values_with_the_scale_of_the_keys(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Any = None,
    v_scale: Any = None,
) -> Any:
    scales = {"k_scale": k_scale, "v_scale": k_scale}
    return reference(STORE)(k, v, k_cache, v_cache, slot_mapping, **scales)


@kernel(STORE, "numerics", ANY)
def keys_for_values(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Any = None,
    v_scale: Any = None,
) -> Any:
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    values = k if k.shape == v.shape else v
    return reference(STORE)(k, values, k_cache, v_cache, slot_mapping, **scales)


@kernel(STORE, "numerics", "ties.*relative norm")
def halves_rounded_away_from_zero(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Any = None,
    v_scale: Any = None,
) -> Any:
    narrow = k.dtype == torch.float32 and k_cache.itemsize == 1
    larger = k * (1 + 2**-20) if narrow else k
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    return reference(STORE)(larger, v, k_cache, v_cache, slot_mapping, **scales)
