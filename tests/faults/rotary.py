"""Faults in rotary embeddings."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from faults.record import OFF, edit, kernel, reference

ROTARY, MULTI = "rotary_embedding", "multimodal_rotary_embedding"
PAIRS = "a, b = turning.chunk(2, dim=-1) if is_neox else (turning[..., ::2], turning[..., 1::2])"
edit(ROTARY, "halves for pairs", f"interleaved.*({OFF})", PAIRS, "a, b = turning.chunk(2, dim=-1)")
edit(
    ROTARY,
    "pairs for halves",
    f"neox.*({OFF})",
    PAIRS,
    "a, b = turning[..., ::2], turning[..., 1::2]",
)
edit(
    ROTARY,
    "turned the other way",
    OFF,
    "a * cos - b * sin, b * cos + a * sin",
    "a * cos + b * sin, b * cos - a * sin",
)
edit(ROTARY, "sine for cosine", OFF, "cos, sin = rows", "sin, cos = rows")
edit(
    ROTARY,
    "offsets ignored",
    f"offsets.*({OFF})",
    "positions.long() if offsets is None else positions.long() + offsets",
    "positions.long()",
)
edit(
    ROTARY,
    "rest of the head zeroed",
    f"turn.*({OFF})",
    "x[..., rotary_dim:]), dim=-1)",
    "0 * x[..., rotary_dim:]), dim=-1)",
)
edit(
    ROTARY,
    "arithmetic in the dtype of x",
    f"(float16|half).*({OFF})",
    "turning = wide(x[..., :rotary_dim])",
    "turning = x[..., :rotary_dim]",
)
edit(
    ROTARY,
    "whole head turns",
    "size of tensor|turn",
    "turning = wide(x[..., :rotary_dim])",
    "turning = wide(x)",
)
KEY = "None if key is None else _rotated(key, rows, is_neox)"
edit(
    ROTARY,
    "as many heads of the key as of the query",
    OFF,
    KEY,
    "None if key is None else torch.cat((_rotated(key[:, : query.shape[1]], rows, is_neox), "
    "key[:, query.shape[1] :]), 1)",
)
edit(
    ROTARY,
    "first position for all",
    OFF,
    "rows = cos_sin_cache.index_select(0, index)",
    "rows = cos_sin_cache.index_select(0, 0 * index + index[:1])",
)
edit(
    ROTARY,
    "positions taken for contiguous",
    f"every other position.*({OFF})",
    "index = positions.long() if",
    "positions = positions.as_strided(positions.shape, (1,))\n    index = positions.long() if",
)
edit(
    ROTARY,
    "cache taken for contiguous",
    f"cache.*({OFF})",
    "rows = cos_sin_cache.index_select(0, index)",
    "rows = cos_sin_cache.as_strided(cos_sin_cache.shape, (cos_sin_cache.shape[1], "
    "1)).index_select(0, index)",
)


@kernel(ROTARY, "numerics", OFF)
def key_at_the_head_stride_of_the_query(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    if key is not None and key.numel() and min(key.shape[1], query.shape[1]) > 1:
        held = key.untyped_storage().nbytes() // key.itemsize
        memory = pad(key.as_strided((held,), (1,), 0), (0, query.untyped_storage().nbytes()))
        strides = key.stride(0), query.stride(1), key.stride(2)
        key = memory.as_strided(key.shape, strides, key.storage_offset())
    return reference(ROTARY)(positions, query, key, cos_sin_cache, is_neox=is_neox, offsets=offsets)


edit(MULTI, "axes in another order", OFF, "part[i % 3]", "part[2 - i % 3]", only="3|section")
edit(MULTI, "first axis for all", OFF, "part[i % 3]", "part[0]", only="3|section")
edit(
    MULTI,
    "a fourth section starts nowhere",
    OFF,
    "part[i % 3]",
    "part[min(i, 2)]",
    only="3|section",
)
