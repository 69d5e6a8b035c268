"""Rotary position embeddings in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hal_native.arithmetic import wide

if TYPE_CHECKING:
    from torch import Tensor


def _rotated(x: Tensor, rows: Tensor, is_neox: bool) -> Tensor:
    rotary_dim = rows.shape[-1]
    turning = wide(x[..., :rotary_dim])
    cos, sin = rows.to(turning.dtype).unsqueeze(1).chunk(2, dim=-1)
    a, b = turning.chunk(2, dim=-1) if is_neox else (turning[..., ::2], turning[..., 1::2])
    pair = a * cos - b * sin, b * cos + a * sin
    turned = torch.cat(pair, dim=-1) if is_neox else torch.stack(pair, dim=-1).flatten(-2)
    return torch.cat((turned.to(x.dtype), x[..., rotary_dim:]), dim=-1)


def _each_rotated(
    query: Tensor, key: Tensor | None, rows: Tensor, is_neox: bool
) -> tuple[Tensor, Tensor | None]:
    return _rotated(query, rows, is_neox), None if key is None else _rotated(key, rows, is_neox)


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    index = positions.long() if offsets is None else positions.long() + offsets
    # Unlike cos_sin_cache[index], this does not count negative positions from the end.
    rows = cos_sin_cache.index_select(0, index)
    return _each_rotated(query, key, rows, is_neox)


def multimodal_rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    rows = cos_sin_cache.index_select(0, positions.flatten())
    # [3, tokens, cosines or sines, pairs]: each section is taken from one of the three.
    by_axis = rows.view(*positions.shape, 2, cos_sin_cache.shape[1] // 2)
    parts = by_axis.split(tuple(sections), dim=-1)
    taken = torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)
    return _each_rotated(query, key, taken.flatten(1), is_neox)
