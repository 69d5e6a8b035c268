"""Declarations of the ops that put two 4-bit codes into a byte and take them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hal.checks import check, check_dtype
from hal.op import op

if TYPE_CHECKING:
    from torch import Tensor

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def _check_offset(offset: int) -> None:
    check(0 <= offset <= 15, "offset must be from 0 to 15", offset=offset)


@op
def pack_int4(x: Tensor, *, offset: int = 8) -> Tensor:
    """Put 4-bit codes into bytes: ``x[2i] + offset`` low, ``x[2i + 1] + offset`` high.

    This is the layout of weights with 4 bits in ``[n, k / 2]``. What 4 bits cannot hold is clamped:
    with an offset of 8 to -8 and 7, and never spills into the neighbour.

    Args:
        x: [..., k], int8, uint8, int16, int32 or int64; k is even; empty gives empty.
        offset: From 0 to 15; 8 for signed codes, 0 for those that a zero point is taken from.

    Returns:
        [..., k / 2] uint8.

    Example:
        >>> packed = hal.ops.pack_int4(torch.tensor([[-8, 7, 0, -1]]))
        >>> [hex(byte) for byte in packed[0].tolist()]
        ['0xf0', '0x78']
    """
    check_dtype(INTEGERS, x=x)
    _check_offset(offset)
    even = x.dim() > 0 and x.shape[-1] % 2 == 0
    check(even, "x must have an even last dimension", x=x)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.uint8)


@op
def unpack_int4(packed: Tensor, *, offset: int = 8) -> Tensor:
    """Take 4-bit codes out of bytes: the low half less ``offset``, then the high half.

    The inverse of ``pack_int4``. With the group scales of the weights, ``dequantize`` reads them.

    Args:
        packed: [..., k / 2] uint8, at least one dimension; empty gives empty.
        offset: What ``pack_int4`` has added, from 0 to 15.

    Returns:
        [..., k] int8, from ``-offset`` to ``15 - offset``.

    Example:
        >>> q = hal.ops.unpack_int4(torch.tensor([[0xF0, 0x78]], dtype=torch.uint8))
        >>> q
        tensor([[-8,  7,  0, -1]], dtype=torch.int8)
        >>> hal.ops.dequantize(q, torch.tensor([[0.5, 2.0]]), 2)
        tensor([[-4.0000,  3.5000,  0.0000, -2.0000]])
    """
    check_dtype((torch.uint8,), packed=packed)
    _check_offset(offset)
    check(packed.dim() > 0, "packed must have at least one dimension", packed=packed)
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=torch.int8)
