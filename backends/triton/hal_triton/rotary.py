"""Rotary position embeddings by Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hal import prepared
from hal_triton.configurations import measured
from hal_triton.kernels.rotary import rotate
from hal_triton.launch import next_power_of_2
from hal_triton.layout import ceil_div, unit
from hal_triton.target import served

_ELEMENTS = 1024
"""Those of a program's heads."""


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    out = _empty(query, key)
    turn(
        out,
        (query, key),
        cos_sin_cache,
        positions,
        is_neox,
        offsets=None if offsets is None else offsets.contiguous(),
    )
    return out


@prepared
def rotary_embedding_(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> Callable[..., Any]:
    both = query, key
    if not lie_together(positions, query, key, cos_sin_cache, offsets):
        return _turned_in_place
    launch = rotate.bind(*how(both, both, cos_sin_cache, is_neox))

    def run(
        positions: Tensor,
        query: Tensor,
        key: Tensor | None,
        cos_sin_cache: Tensor,
        *,
        is_neox: bool = is_neox,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        launch(query, query, key, key, cos_sin_cache, positions, offsets, None, None)
        return query, key

    return run


def _turned_in_place(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    both = query, key
    offsets = None if offsets is None else offsets.contiguous()
    turn(both, both, cos_sin_cache, positions, is_neox, offsets=offsets)
    return both


def multimodal_rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    out = _empty(query, key)
    turn(out, (query, key), cos_sin_cache, positions, is_neox, sections=sections)
    return out


def multimodal_rotary_embedding_(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    both = query, key
    turn(both, both, cos_sin_cache, positions, is_neox, sections=sections)
    return both


def multimodal_rotary_embedding_supports(*args: Any, **kwargs: Any) -> str | None:
    sections = kwargs["sections"] if "sections" in kwargs else args[4]
    return served(*args, **kwargs) if len(sections) == 3 else "takes three sections"


def turn(
    out: tuple[Tensor, Tensor | None],
    x: tuple[Tensor, Tensor | None],
    cos_sin_cache: Tensor,
    positions: Tensor,
    is_neox: bool,
    *,
    offsets: Tensor | None = None,
    sections: Sequence[int] = (),
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
    eps: float | None = None,
) -> None:
    """Rotate x = (query, key) into ``out``, which may be the same, after a norm if by weights."""
    query, key = map(_columns_together, x)
    to, to_key = map(_columns_together, out)
    cache, positions = _columns_together(cos_sin_cache), positions.contiguous()
    launch = rotate.bind(
        *how((to, to_key), (query, key), cache, is_neox, sections, eps, out[0] is not x[0])
    )
    launch(to, query, to_key, key, cache, positions, offsets, *weights)
    for target, wanted in zip((to, to_key), out, strict=True):
        if wanted is not None and target.data_ptr() != wanted.data_ptr():
            wanted.copy_(target)


def how(
    out: tuple[Tensor, Tensor | None],
    x: tuple[Tensor, Tensor | None],
    cos_sin_cache: Tensor,
    is_neox: bool,
    sections: Sequence[int] = (),
    eps: float | None = None,
    copies: bool = False,
) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[Any, ...], int]:
    """Grid, numbers, constants and warps for tensors like these."""
    tokens, q_heads, head_dim = x[0].shape
    k_heads = 0 if x[1] is None else x[1].shape[1]
    half, rest = cos_sin_cache.shape[1] // 2, head_dim - cos_sin_cache.shape[1]
    block, most = next_power_of_2(head_dim), max(q_heads, k_heads)
    if eps is None:
        name, sizes, room, num_warps = "rotary", (tokens, head_dim), _ELEMENTS // block, 4
    else:
        # With a norm there are sums, whose order must not go by the number of tokens. Of several
        # warps all would store the angles and weights that they share, of which compute-sanitizer
        # says that they race.
        name, sizes, room, num_warps = "norm rotary", (head_dim,), _ELEMENTS // 2 // block, 1
    some = min(max(room, 1), next_power_of_2(most))
    usual = max(room, 1) // some, some, num_warps
    several, heads, num_warps = measured(name, x[0].device, sizes, usual)
    row = cos_sin_cache.stride(0)
    grid = ceil_div(tokens, several), ceil_div(q_heads, heads) + ceil_div(k_heads, heads), 1
    strides = (*_strides(out[0]), *_strides(x[0]), *_strides(out[1]), *_strides(x[1]), row)
    bounds = (sections[0], sections[0] + sections[1]) if sections else (0, 0)
    sizes = tokens, q_heads, k_heads, head_dim, half
    blocks = several, heads, next_power_of_2(half), next_power_of_2(rest) if rest else 0
    constants = is_neox, copies, bool(sections), *blocks, unit(head_dim, half, *strides)
    return grid, (*sizes, *strides, tokens, *bounds, eps or 0.0), constants, num_warps


def lie_together(
    positions: Tensor, query: Tensor, key: Tensor | None, cache: Tensor, *others: Tensor | None
) -> bool:
    """Whether a kernel can take all of them, and write into query and key, as they lie."""
    columns = all(x is None or x.stride(-1) == 1 for x in (query, key, cache))
    return columns and all(x is None or x.is_contiguous() for x in (positions, *others))


def _empty(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return query.new_empty(query.shape), None if key is None else key.new_empty(key.shape)


def _columns_together(x: Any) -> Any:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))
