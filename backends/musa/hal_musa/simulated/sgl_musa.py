"""What Moore Threads added to sgl_kernel: rotations, products with a row, a product and sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from hal_musa.simulated.cards import arch
from hal_musa.simulated.host import check, host, memory, only, write

__all__ = ["KERNELS"]

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_HALF)


def _turn(x: Tensor, rows: Tensor, is_neox: bool) -> Tensor:
    """``x`` [tokens, heads, dim] by rows of cosines and sines, each product rounded."""
    cos, sin = rows.chunk(2, -1)
    width = rows.shape[-1]
    turn = x[..., :width]
    first, second = turn.chunk(2, -1) if is_neox else (turn[..., 0::2], turn[..., 1::2])
    cos, sin = cos[:, None], sin[:, None]
    found = first * cos - second * sin, second * cos + first * sin
    turned = torch.cat(found, -1) if is_neox else torch.stack(found, -1).flatten(-2)
    return torch.cat([turned, x[..., width:]], -1)


def _rotated(x: Tensor, head_size: int, rows: Tensor, is_neox: bool) -> None:
    here = host(x)
    heads = here.unflatten(-1, (-1, head_size)) if here.shape[-1] != head_size else here
    write(x, _turn(heads.flatten(0, -3), rows, is_neox).reshape(x.shape))


def _rotary(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    _same(positions, cos_sin_cache, query)
    check(query.stride(-1) == 1, "query's last dimension has to be contiguous")
    rows = host(cos_sin_cache)[host(positions).flatten()]
    _rotated(query, head_size, rows, is_neox)
    if key is None:
        return
    distance = query.stride(-2) if query.dim() == 3 else head_size
    if key.dim() == 3 and key.shape[-2] > 1 and key.stride(-2) != distance:
        # The heads of key are looked for where those of query would be.
        key = key.as_strided(key.shape, (key.stride(0), distance, 1))
    _rotated(key, head_size, rows, is_neox)


def _same(positions: Tensor, cache: Tensor, *rotated: Tensor) -> None:
    check(positions.dtype == torch.int64, "expected scalar type Long")
    for x in rotated:
        only("what is rotated", x.dtype, *_FLOATS)
        check(x.dtype == cache.dtype, f"expected scalar type {x.dtype}, found {cache.dtype}")


def _musa_rotary(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    tokens = positions.shape[0]
    check(len(query) == len(key) == tokens, "query, key and positions differ in their tokens")
    offsets = torch.zeros_like(positions, device="cpu")
    width = cos_sin_cache.shape[1]
    _batched(positions, query, key, head_size, cos_sin_cache, is_neox, width, offsets)


def _batched(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rot_dim: int,
    cos_sin_cache_offsets: Tensor,
) -> None:
    """Rows of the cache are ``rot_dim`` apart, whatever its width; strides may be any."""
    _same(positions, cos_sin_cache, query, key)
    check(cos_sin_cache_offsets.dtype == torch.int64, "expected scalar type Long")
    check(len(positions) == len(cos_sin_cache_offsets), "positions and offsets differ in length")
    check(query.dim() == key.dim() == 3, "query and key must be 3D")
    where = host(positions) + host(cos_sin_cache_offsets)
    table = host(memory(cos_sin_cache, cos_sin_cache.numel()))
    rows = table[where[:, None] * rot_dim + torch.arange(rot_dim)]
    for x in (query, key):
        _rotated(x, head_size, rows, is_neox)


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """Weights [n, k] of nibbles, the low one first: less 8 in groups, signed in channels."""
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).float()
    groups = scales.shape[1]
    if groups == 1:
        return torch.where(nibbles > 7, nibbles - 16, nibbles) * scales.float()
    size = -(-nibbles.shape[1] // groups)
    return (nibbles - 8) * scales.float().repeat_interleave(size, 1)[:, : nibbles.shape[1]]


def _blocks(x: Tensor, scale: Tensor, rows: int) -> Tensor:
    wide = scale.repeat_interleave(rows, 0)[: x.shape[0]].repeat_interleave(128, 1)
    return x.float() * wide[:, : x.shape[1]]


# (rows, threads in k): the tiles that the kernel has, and what it takes where none fits.
_TILES = ((8, 16), (16, 8), (32, 4), (4, 32))


def _tiled(b: Tensor, k: int, scale: Tensor | None, four: bool) -> None:
    """Refuse sizes that no tile divides: of k it takes 16 bytes a thread."""
    group, vector = 128, 32 if four else 16 // b.element_size()
    if scale is not None and scale.shape[1] != 1:
        group = -(-k // scale.shape[1])
        check(group in (64, 128), "scale_k_group_tile only support 128 or 64")
    fits = any(
        len(b) % rows == 0 and k % (threads * vector) == 0 and threads * vector % group == 0
        for rows, threads in _TILES
    )
    last = 32 if arch() >= 30 else 128
    fits = fits or (len(b) % last == 0 and k % vector == 0)
    check(fits, f"N ({len(b)}) or K ({k}) is no multiple of a tile")


def _product(
    a: Tensor, b: Tensor, scales: tuple[Tensor | None, Tensor | None], four: bool
) -> Tensor:
    left, right = host(a), host(b)
    a_scale, b_scale = (None if x is None else host(x) for x in scales)
    if b.dtype == torch.float8_e4m3fn:
        check(arch() >= 30, "FP8 needs an S5000")
        assert b_scale is not None
        # Nobody asks whether there is a scale of x; without one its address is null.
        check(a_scale is not None, "MUSA error: an illegal memory access was encountered")
        assert a_scale is not None
        return _blocks(left, a_scale, 1) @ _blocks(right, b_scale, 128).T
    only("A", a.dtype, *_HALF)
    if four:
        assert b_scale is not None
        return left.float() @ _unpacked(right, b_scale).T
    check(a.dtype == b.dtype, "A and B have to be of one dtype")
    return left.float() @ right.float().T


def _gemv(
    A: Tensor,  # noqa: N803 - the operator's names
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    A_scale: Tensor | None,  # noqa: N803
    B_scale: Tensor | None,  # noqa: N803
    use_int4_w4a16: bool,
    use_swigelu: bool,
    use_rms_norm: bool,
    gamma: Tensor | None,
    eps: float,
) -> None:
    """The norm adds the squares of all rows into one sum: that of several rows is lost."""
    check(A.dim() == 2, "A must be dim 2.")
    check(B.dim() == 2, "B must be dim 2.")
    n = len(B)
    _tiled(B, A.shape[1], B_scale, use_int4_w4a16)
    found = _product(A, B, (A_scale, B_scale), use_int4_w4a16)
    if use_swigelu:
        found = F.silu(found[:, : n // 2]) * found[:, n // 2 :]
    if use_rms_norm:
        assert gamma is not None
        weight = host(gamma).view(torch.bfloat16)[:n].float()  # Whatever its dtype is.
        found = found * torch.rsqrt(found.square().mean(-1, keepdim=True) + eps) * weight
        found = found if len(found) == 1 else torch.full_like(found, torch.nan)
    write(C, found)


def _mul_add(output: Tensor, self: Tensor, bias: Tensor, scale: float) -> None:
    """In vectors of 16 bytes, the last one whole: what lies behind is read, and written over.

    The output's strides are not looked at.
    """
    only("self", self.dtype, *_FLOATS)
    check(self.dtype == bias.dtype == output.dtype, "self, bias and output should be same type")
    check(self.shape == bias.shape == output.shape, "self, bias and output differ in shape")
    self, bias = self.contiguous(), bias.contiguous()
    vector = 16 // self.element_size()
    count = -(-self.numel() // vector) * vector
    out = memory(output, count)
    left, right = (host(memory(x, count)) for x in (self, bias))
    found = torch.full((len(out),), torch.nan, dtype=self.dtype)
    size = min(len(left), len(right), len(out))
    factor = torch.tensor(scale, dtype=self.dtype)
    found[:size] = left[:size] * factor + right[:size]
    write(out, found)


KERNELS: dict[str, Callable[..., Any]] = {
    "rotary_embedding": _rotary,
    "musa_rotary_embedding_contiguous": _musa_rotary,
    "musa_batched_rotary_embedding_contiguous": _batched,
    "musa_fused_gemv": _gemv,
    "musa_fused_mul_add": _mul_add,
}
