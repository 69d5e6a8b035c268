"""Rotary position embeddings in plain torch."""

from __future__ import annotations

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
    rotated_key = None if key is None else _rotated(key, rows, is_neox)
    return _rotated(query, rows, is_neox), rotated_key
