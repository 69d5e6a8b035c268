"""The paged key-value cache by Triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hal_triton.kernels import kv_cache as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div, unit
from hal_triton.quant import largest
from hal_triton.target import served

_TILE = 1024


class _Factor(NamedTuple):
    """Scales in float32 and how far apart those of two heads are, or a number for all."""

    tensor: Tensor | None
    stride: int
    number: float


def store_kv_cache__supports(*args: Any, **kwargs: Any) -> str | None:
    # Scales are brought to float32, whatever they come in.
    return served(*(*args, *kwargs.values())[:4])


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
    tokens, heads, k_width = k.shape
    widths, every = (k_width, v.shape[2]), (k, v, k_cache, v_cache)
    rows, strides = tokens * heads, [stride for x in every for stride in x.stride()]
    block = next_power_of_2(max(widths))
    several = min(max(_TILE // block, 1), next_power_of_2(rows))
    scales = _factor(k_scale), _factor(v_scale)
    side_by_side = all(x.stride(-1) == 1 for x in every)
    between = [stride for x in every for stride in x.stride()[:-1]]
    together = unit(*widths, *between) if side_by_side else 1
    limit = 0.0 if k_cache.dtype == k.dtype else largest(k_cache.dtype)
    kernels.store(
        (ceil_div(rows, several), 1, 1),
        (k_cache, v_cache, k, v, *(scale.tensor for scale in scales), slot_mapping),
        (
            *(rows, heads, k_cache.shape[1], *widths, *strides, *slot_mapping.stride()),
            *(scale.stride for scale in scales),
            *(scale.number for scale in scales),
        ),
        (side_by_side, limit, several, block, together),
    )
    return k_cache, v_cache


def _factor(scale: Tensor | float | None) -> _Factor:
    if not isinstance(scale, Tensor):
        return _Factor(None, 0, 1.0 if scale is None else scale)
    scale = scale.to(torch.float32).reshape(-1)
    return _Factor(scale, scale.stride(0) if scale.shape[0] > 1 else 0, 1.0)
