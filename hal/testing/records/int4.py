"""Records of the ops that put two 4-bit codes into a byte and take them out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.quant import views

SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 704]
SHAPES = [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 40), (2, 0, 8), (1, 16384)]
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class Maker(Draws):
    """Draws codes, and bytes of two codes."""

    def codes(self, *shape: int) -> Tensor:
        return self.integers(-8, 8, *shape).to(torch.int8)

    def bytes(self, *shape: int) -> Tensor:
        return self.integers(0, 256, *shape).to(torch.uint8)


def pack_samples() -> Iterator[Sample]:
    make = Maker(1)
    for size in SIZES:
        yield Sample(f"3x{2 * size}", (make.codes(3, 2 * size),))
    for shape in SHAPES:
        yield Sample(f"shape {shape}", (make.codes(*shape),))
    for name, x in views(make.codes):
        yield Sample(name, (x if x.shape[-1] % 2 == 0 else x[..., 1:],))
    for dtype in INTEGERS:
        info = torch.iinfo(dtype)
        x = torch.tensor([[info.min, info.max, 0, 1, 7, 8, 15, 16, 17, 127]]).to(dtype)
        for offset in (0, 8, 15):
            yield Sample(f"{dtype} extremes by {offset}", (x,), {"offset": offset})
    for offset in range(16):
        x = torch.arange(-20, 20).view(2, 20)
        yield Sample(f"offset {offset}", (x,), {"offset": offset})


def pack_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 7, dtype=torch.int8)
    yield Refusal(r"x must have an even last dimension; x is \[4, 7\] int8", (x,))
    yield Refusal(r"x must have an even last dimension; x is \[\] int8", (x[0, 0],))
    names = "int8 or uint8 or int16 or int32 or int64"
    yield Refusal(rf"x must be {names}; x is \[4, 7\] float32", (x.float(),))
    yield Refusal(rf"x must be {names}; x is \[4, 7\] bool", (x.bool(),))
    for offset in (-1, 16):
        message = f"offset must be from 0 to 15; offset is {offset}"
        yield Refusal(message, (x[:, :6],), {"offset": offset})


def unpack_samples() -> Iterator[Sample]:
    make = Maker(2)
    for size in SIZES:
        yield Sample(f"3x{size}", (make.bytes(3, size),))
    for shape in SHAPES:
        yield Sample(f"shape {shape}", (make.bytes(*shape),))
    for name, packed in views(make.bytes):
        yield Sample(name, (packed,))
    for offset in range(16):
        every = torch.arange(256).to(torch.uint8).view(2, 128)
        yield Sample(f"every byte by {offset}", (every,), {"offset": offset})


def unpack_refusals() -> Iterator[Refusal]:
    packed = torch.zeros(4, 7, dtype=torch.uint8)
    yield Refusal(r"packed must be uint8; packed is \[4, 7\] int8", (packed.to(torch.int8),))
    yield Refusal(r"packed must be uint8; packed is \[4, 7\] int32", (packed.int(),))
    message = r"packed must have at least one dimension; packed is \[\] uint8"
    yield Refusal(message, (packed[0, 0],))
    for offset in (-1, 16):
        message = f"offset must be from 0 to 15; offset is {offset}"
        yield Refusal(message, (packed,), {"offset": offset})


def pack_oracle(x: Tensor, *, offset: int = 8) -> Tensor:
    result = np.zeros((*x.shape[:-1], x.shape[-1] // 2), dtype=np.int64)
    for index in np.ndindex(*result.shape):
        pair = x[index[:-1]][2 * index[-1] : 2 * index[-1] + 2].tolist()
        low, high = (min(max(code + offset, 0), 15) for code in pair)
        result[index] = low + 16 * high
    return torch.from_numpy(result)


def unpack_oracle(packed: Tensor, *, offset: int = 8) -> Tensor:
    codes = [code for byte in packed.flatten().tolist() for code in (byte % 16, byte // 16)]
    shape = (*packed.shape[:-1], packed.shape[-1] * 2)
    return torch.tensor([code - offset for code in codes], dtype=torch.int64).reshape(shape)


RECORDS = [
    Record("pack_int4", pack_samples, pack_refusals, pack_oracle, rows=("x",)),
    Record("unpack_int4", unpack_samples, unpack_refusals, unpack_oracle, rows=("packed",)),
]
