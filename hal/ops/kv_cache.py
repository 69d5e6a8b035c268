"""Declarations of the ops that write a paged key-value cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)
INDEX = (torch.int32, torch.int64)


def check_cache(k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype) -> None:
    """Require two caches of the same blocks and heads, in ``dtype`` or in the same 8-bit float."""
    for name, cache in {"k_cache": k_cache, "v_cache": v_cache}.items():
        check(
            cache.dim() == 4,
            f"{name} must be [blocks, block_size, kv_heads, head_dim]",
            **{name: cache},
        )
        check_dtype((dtype, *EIGHT_BIT), **{name: cache})
    check(k_cache.shape[1] > 0, "k_cache must have a block size of at least 1", k_cache=k_cache)
    same = v_cache.dtype == k_cache.dtype and v_cache.shape[:3] == k_cache.shape[:3]
    requirement = "v_cache must have the dtype, blocks, block size and heads of k_cache"
    check(same, requirement, v_cache=v_cache, k_cache=k_cache)


def check_scale(cache: Tensor, **scales: Tensor | float | None) -> None:
    """Require each scale to go with an 8-bit cache: one positive number, or one for each head."""
    for name, scale in scales.items():
        if scale is None:
            continue
        check(cache.dtype in EIGHT_BIT, f"{name} goes with an 8-bit cache", k_cache=cache)
        if isinstance(scale, torch.Tensor):
            _check_heads(name, scale, cache.shape[2])
        else:
            check(0 < scale < math.inf, f"{name} must be positive and finite", **{name: scale})


def _check_heads(name: str, scale: Tensor, heads: int) -> None:
    check_floating(**{name: scale})
    shaped = scale.numel() == 1 or (scale.dim() == 1 and scale.shape[0] == heads)
    required = "must have one element or one for each of"
    check(shaped, lambda: f"{name} {required} {heads} kv_heads", **{name: scale})


@op(mutates=("k_cache", "v_cache"))
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
    """Write keys and values into a paged cache: ``cache[slot // size, slot % size] = row``.

    ``size`` is the block size. A token with a negative slot, such as the padding of a captured
    batch with -1, is skipped: nothing is written for it, to whatever slot. The other slots lie in
    the cache. Which row a slot holds afterwards that several tokens name is left open; no other
    slot is touched.

    A cache in the dtype of the rows takes them bit by bit. An 8-bit cache takes ``row / scale``,
    computed in float32 (float64 for float64 rows), clamped to the largest finite number (448 for
    e4m3fn, 57344 for e5m2; infinities too) and rounded half to even; NaN stays NaN.

    Args:
        k: [tokens, kv_heads, head_dim], floating point.
        v: [tokens, kv_heads, value_head_dim], the dtype of ``k``.
        k_cache: [blocks, block_size, kv_heads, head_dim], the dtype of ``k``, float8_e4m3fn or
            float8_e5m2; any strides, such as one half of a tensor that holds both caches.
        v_cache: [blocks, block_size, kv_heads, value_head_dim], the dtype of ``k_cache``.
        slot_mapping: [tokens], int32 or int64: block * block_size + offset, or -1.
        k_scale: What 8-bit keys are multiplied with to read them: a number, a tensor of one
            element or [kv_heads]; None is 1. Only for 8-bit caches.
        v_scale: The same for the values.

    Returns:
        ``k_cache`` and ``v_cache``.

    Example:
        >>> k_cache, v_cache = torch.zeros(2, 2, 1, 1), torch.zeros(2, 2, 1, 1)
        >>> row = torch.tensor([[[5.0]], [[7.0]]])
        >>> _ = hal.ops.store_kv_cache_(row, row, k_cache, v_cache, torch.tensor([-1, 2]))
        >>> k_cache.flatten()
        tensor([0., 0., 7., 0.])
    """
    check_floating(k=k)
    check_dtype((k.dtype,), v=v)
    check(k.dim() == 3, "k must be [tokens, kv_heads, head_dim]", k=k)
    check_cache(k_cache, v_cache, k.dtype)
    same = tuple(k.shape[1:]) == tuple(k_cache.shape[2:])
    check(
        same, "k must have the kv_heads and head_dim of k_cache, its last two", k=k, k_cache=k_cache
    )
    check_shape((k.shape[0], *v_cache.shape[2:]), v=v)
    check_dtype(INDEX, slot_mapping=slot_mapping)
    check_shape((k.shape[0],), slot_mapping=slot_mapping)
    check_scale(k_cache, k_scale=k_scale, v_scale=v_scale)
    return k_cache, v_cache
