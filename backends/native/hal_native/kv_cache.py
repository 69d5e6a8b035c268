"""The paged key-value cache in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_native.arithmetic import fitting, wide
from hal_native.quant import encode


def per_head(scale: Tensor | float | None, x: Tensor) -> Tensor:
    """A scale in the shape and dtype that multiplies or divides ``x`` [..., kv_heads, head_dim]."""
    if isinstance(scale, Tensor):
        return scale.to(x.dtype).reshape(-1, 1)
    return x.new_full((1, 1), 1.0 if scale is None else fitting(scale, x.dtype))


def cached(x: Tensor, dtype: torch.dtype, scale: Tensor | float | None) -> Tensor:
    """The rows as a cache of ``dtype`` holds them."""
    return x if x.dtype == dtype else encode(wide(x) / per_head(scale, wide(x)), dtype)


def bits(x: Tensor) -> Tensor:
    """``x``, its 8-bit floats as integers: torch 2.7 cannot index them on a CPU."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def store_rows(cache: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Write each row into its slot, but for negative slots."""
    if rows.numel() == 0 or cache.numel() == 0:
        return
    stored = slots >= 0
    # A skipped token repeats the write of one that is stored, which is the same in any order of the
    # writes. Where none is stored, slot 0 gets its own content back and nothing else writes it.
    source = torch.arange(len(slots), device=slots.device).where(stored, stored.int().argmax())
    slots = slots.long()[source].clamp(min=0)
    rows = torch.where(stored.any(), rows[source], cache[0, 0])
    cache.index_put_((slots // cache.shape[1], slots % cache.shape[1]), rows)


def store_kv_cache_(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    store_rows(bits(k_cache), bits(cached(k, k_cache.dtype, k_scale)), slot_mapping)
    store_rows(bits(v_cache), bits(cached(v, v_cache.dtype, v_scale)), slot_mapping)
    return k_cache, v_cache
