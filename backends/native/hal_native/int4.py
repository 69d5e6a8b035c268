"""Two 4-bit codes to a byte, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_int4(x: Tensor, *, offset: int = 8) -> Tensor:
    # Clamped before the offset is added, which the widest integers have no room for.
    codes = x.to(torch.int64).clamp(-offset, 15 - offset) + offset
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8).contiguous()


def unpack_int4(packed: Tensor, *, offset: int = 8) -> Tensor:
    halves = torch.stack((packed & 15, packed >> 4), dim=-1)
    return (halves.to(torch.int8) - offset).flatten(-2)
