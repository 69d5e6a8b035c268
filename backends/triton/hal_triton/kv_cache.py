"""The paged key-value cache by Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal import prepared
from hal_triton.attention_launch import Run
from hal_triton.attention_parts import Scale
from hal_triton.kernels import kv_cache as kernels
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div, unit
from hal_triton.quant import largest
from hal_triton.target import served

_TILE = 1024


def store_kv_cache__supports(*args: Any, **kwargs: Any) -> str | None:
    # Scales are brought to float32, whatever they come in.
    return served(*(*args, *kwargs.values())[:4])


@prepared
def store_kv_cache_(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> Run:
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
    numbers = (
        *(rows, heads, k_cache.shape[1], *widths, *strides, *slot_mapping.stride()),
        *(scale.stride for scale in scales),
        *(scale.number for scale in scales),
    )
    constants = side_by_side, limit, several, block, together
    launch = kernels.store.bind((ceil_div(rows, several), 1, 1), numbers, constants)

    def run(
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        *,
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        factors = scales[0].convert(k_scale), scales[1].convert(v_scale)
        launch(k_cache, v_cache, k, v, *factors, slot_mapping)
        return k_cache, v_cache

    return run


def _factor(scale: Tensor | float | None) -> Scale:
    """The scale in float32."""
    if isinstance(scale, Tensor) and scale.dtype is not torch.float32:
        return Scale.of(scale)._replace(convert=torch.Tensor.float)
    return Scale.of(scale)
