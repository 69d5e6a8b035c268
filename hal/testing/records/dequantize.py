"""Record of the op that turns 8-bit codes and their scales into numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.quant import CODES, DTYPES, E4M3, E5M2, INT8, SIZES, Maker, views


def dequantize_samples() -> Iterator[Sample]:
    make = Maker(7)
    for size in SIZES:
        group = 100 if size % 2 else 16
        args = make.ints(3, size), make.scales(3, -(-size // group)), group
        yield Sample(f"3x{size} by {group}", args)
        yield Sample(f"3x{size}", (make.ints(3, size), make.scales(3, 1)))
    for dtype in DTYPES:
        for codes in CODES:
            args = make.ints(5, 72).float().to(codes), make.scales(5, 5)
            yield Sample(f"{codes} to {dtype}", (*args, 16), {"dtype": dtype})
        args = make.ints(5, 72), make.scales(5, 5).to(dtype)
        yield Sample(f"scale {dtype}", (*args, 16))
        yield Sample(f"scale {dtype} to bfloat16", (*args, 16), {"dtype": torch.bfloat16})
        whole = make.scales(1).to(dtype)
        yield Sample(f"scale [1] {dtype}", (make.ints(5, 72), whole), {"dtype": dtype})
        yield Sample(f"scale [] {dtype}", (make.ints(5, 72), whole[0]))
    for layout, q in views(make.ints):
        columns = -(-q.shape[-1] // 16)
        yield Sample(layout, (q, make.scales(*q.shape[:-1], columns), 16))
        by_columns = make.scales(*q.shape[:-2], columns, q.shape[-2]).mT
        yield Sample(f"{layout}, scale by columns", (q, by_columns, 16))
    for group in (1, 3, 72, 73, 2**40):
        args = make.ints(5, 72), make.scales(5, -(-72 // group)), group
        yield Sample(f"groups of {group}", args)
    yield from dequantize_shapes()


def dequantize_shapes() -> Iterator[Sample]:
    make = Maker(8)
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 40), (2, 0, 8), (1, 16384)]:
        q = make.ints(*shape)
        yield Sample(f"{shape}", (q, make.scales(*shape[:-1], 1)))
        yield Sample(f"{shape} by 16", (q, make.scales(*shape[:-1], -(-shape[-1] // 16)), 16))
        yield Sample(f"{shape} by one", (q, make.scales(1)))
    yield Sample("one code", (torch.tensor(3.0).to(E4M3), torch.tensor(0.3)))
    for k in (0, 1, 16, 64, 65, 130):
        words = (k + 63) // 64
        scale = make.integers(-(2**31), 2**31, 5, words).int()
        scale = scale & 0x7F7F7F7F | 0x40404040
        yield Sample(f"packed, {k} columns", (make.ints(5, k), scale, 16))
    extreme = torch.tensor([[0x7F80FE7E], [-0x01010102], [0x01010101]]).int()
    yield Sample("packed, extreme", (make.ints(3, 60), extreme, 16), {"dtype": torch.float64})
    broken = torch.tensor([[0x7FFF7F7F], [0x7F7F7FFF], [-0x00808081]]).int()
    yield Sample("packed, an exponent of 255", (make.ints(3, 60), broken, 16))
    codes = torch.arange(256).to(torch.uint8).view(2, 128)
    for dtype in CODES:
        yield Sample(f"every {dtype}", (codes.view(dtype), torch.tensor([[0.3], [7.0]])))
    for value in (0.0, 3e38, math.inf, math.nan, -1.0):
        yield Sample(f"scale {value}", (codes[1:].view(E4M3), torch.full((1, 8), value), 16))


def dequantize_refusals() -> Iterator[Refusal]:
    q, ones = torch.zeros(4, 64, dtype=INT8), torch.ones(4, 1)
    names = "float8_e4m3fn or float8_e5m2 or int8"
    yield Refusal(rf"q must be {names}; q is \[4, 64\] uint8", (q.to(torch.uint8), ones))
    yield Refusal(rf"q must be {names}; q is \[4, 64\] float32", (q.float(), ones))
    message = r"scale must have shape \[4, 4\]; scale is \[4, 1\] float32, q is \[4, 64\] int8"
    yield Refusal(message, (q, ones, 16))
    message = r"scale must have shape \[4, 1\], \[\] or \[1\]; scale is \[4, 4\] float32"
    yield Refusal(message, (q, torch.ones(4, 4)))
    yield Refusal(r"scale must have shape \[4, 1\], .*; scale is \[4\] ", (q, torch.ones(4)))
    yield Refusal(r"scale must have shape \[4, 1\], .*; scale is \[1, 1\]", (q, torch.ones(1, 1)))
    words = torch.zeros(4, 1, dtype=torch.int32)
    yield Refusal(r"packed scales need group_size; scale is \[4, 1\] int32", (q, words))
    message = r"scale must have shape \[4, 2\]; scale is \[4, 1\] int32"
    yield Refusal(message, (torch.zeros(4, 65, dtype=INT8), words, 16))
    message = r"scale must be floating point, or int32 for packed exponents; scale is \[4, 1\]"
    yield Refusal(message + " int64", (q, words.long(), 16))
    yield Refusal(message + " float8_e5m2", (q, ones.to(E5M2)))
    yield Refusal("group_size must be positive; group_size is 0", (q, ones, 0))
    message = "dtype must be floating point of 16 bits or more; dtype is torch."
    for dtype in (torch.int32, E4M3):
        yield Refusal(message + str(dtype)[6:], (q, ones), {"dtype": dtype})


def dequantize_oracle(
    q: Tensor, scale: Tensor, group_size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    del dtype
    if scale.dim() < 2 and scale.numel() == 1 and scale.dtype != torch.int32:
        return q.double() * scale.double().reshape(())
    codes = q.double()
    result = codes.clone()
    for index in np.ndindex(*codes.shape[:-1]):
        row = scale[index].tolist()
        if scale.dtype == torch.int32:
            exponents = b"".join(word.to_bytes(4, "little", signed=True) for word in row)
            row = [math.nan if e == 255 else 2.0 ** (e - 127) if e else 0.0 for e in exponents]
        for i in range(codes.shape[-1]):
            result[(*index, i)] = (
                codes[(*index, i)] * row[0 if group_size is None else i // group_size]
            )
    return result


RECORDS = [
    Record(
        "dequantize",
        dequantize_samples,
        dequantize_refusals,
        dequantize_oracle,
        rows=("q", "scale"),
    ),
]
