"""Record of the product with a matrix of 4-bit codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.factors import BF16, E4M3, F16, F32, Maker, flat_rows, numbers


def w4a16_samples() -> Iterator[Sample]:
    make = Maker(3)
    for i, k in enumerate([0, 2, 4, 6, 14, 16, 30, 34, 62, 66, 126, 128, 130, 256, 1408]):
        for dtype in (F32, F16, BF16):
            args = make.packed(3, 5 + i, k, (32, 128, 64)[i % 3], dtype)
            kwargs = {"group_size": (32, 128, 64)[i % 3]}
            yield Sample(f"k {k} {dtype}", args, kwargs)
    for size in (1, 2, 3, 32, 64, 65, 128, 130, 131, 2**40):
        x, qweight, scales = make.packed(4, 33, 130, size)
        kwargs = {"group_size": size}
        yield Sample(f"groups of {size}", (x, qweight, scales), kwargs)
        for dtype in (torch.uint8, F16, F32):
            zeros = (torch.rand(scales.shape, generator=make.generator) * 15).to(dtype)
            shifted = kwargs | {"zeros": zeros}
            yield Sample(f"groups of {size}, zeros {dtype}", (x, qweight, scales), shifted)
    x, qweight, scales = make.packed(4, 9, 64, 32)
    yield Sample("float64", (x.double(), qweight, scales.double()), {"group_size": 32})
    zeros = {"zeros": torch.rand(scales.shape, generator=make.generator).double() * 15}
    args = (x.double(), qweight, scales.double())
    yield Sample("float64, zeros", args, {"group_size": 32} | zeros)
    yield Sample("zeros float64", (x, qweight, scales), {"group_size": 32} | zeros)
    for x_dtype, scale_dtype in [(BF16, F32), (F32, F16), (F16, BF16)]:
        args = (x.to(x_dtype), qweight, scales.to(scale_dtype))
        yield Sample(f"{x_dtype} with scales {scale_dtype}", args, {"group_size": 32})
    yield from w4a16_layouts(make)


def w4a16_layouts(make: Maker) -> Iterator[Sample]:
    x, qweight, scales = make.packed(4, 10, 64, 32)
    kwargs: dict[str, Any] = {"group_size": 32}
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3)]:
        yield Sample(f"rows {rows}", (make(*rows, 64), qweight, scales), kwargs)
    yield Sample("no weights", (x, qweight[:0], scales[:0]), kwargs)
    turned = (x.t().contiguous().t(), qweight.t().contiguous().t(), scales.t().contiguous().t())
    yield Sample("column by column", turned, kwargs | {"zeros": scales.t().contiguous().t()})
    yield Sample("every other row", (x[::2], qweight[::2], scales[::2]), kwargs)
    part = (make(4, 99)[:, 3:67], make.nibbles(10, 40)[:, 5:37], scales)
    yield Sample("parts of wider tensors", part, kwargs)
    yield Sample("expanded", (x[:1].expand(4, 64), qweight, scales[:, :1].expand(10, 2)), kwargs)
    for byte in (0, 0x0F, 0xF0, 0x88, 0xFF):
        yield Sample(f"all bytes {byte}", (x, torch.full_like(qweight, byte), scales), kwargs)
    for value in (0.0, 1e-38, 6e4, math.inf, math.nan):
        one = x.clone()
        one[1, 5] = value
        yield Sample(f"one {value} in x", (one, qweight, scales), kwargs)
    broken = scales.clone()
    broken[3, 1] = math.nan
    yield Sample("one NaN in scales", (x, qweight, broken), kwargs)
    yield Sample("one NaN in zeros", (x, qweight, scales), kwargs | {"zeros": broken})
    yield Sample("overflow", (x.to(F16), qweight, (scales * 1e6).to(F16)), kwargs)


def w4a16_refusals() -> Iterator[Refusal]:
    x, qweight, scales = Maker(0).packed(4, 3, 64, 32)
    size = {"group_size": 32}
    message = "x must be floating point of 16 bits or more; x is .* float8_e4m3fn"
    yield Refusal(message, (x.to(E4M3), qweight, scales), size)
    message = r"qweight must be uint8; qweight is \[3, 32\] int32"
    yield Refusal(message, (x, qweight.int(), scales), size)
    message = r"qweight must be \[n, k / 2\]; qweight is \[32\] uint8"
    yield Refusal(message, (x, qweight[0], scales), size)
    message = "x must have two columns for each of qweight; x is .*63.*, qweight is .*32"
    yield Refusal(message, (x[:, :63], qweight, scales), size)
    yield Refusal(r"x must be \[\.\.\., k\]; x is \[\]", (x[0, 0], qweight, scales), size)
    message = r"scales must have shape \[3, 4\]; scales is \[3, 2\] float32"
    yield Refusal(message, (x, qweight, scales), {"group_size": 16})
    for group_size in (0, -1):
        message = f"group_size must be at least 1; group_size is {group_size}"
        yield Refusal(message, (x, qweight, scales), {"group_size": group_size})
    message = r"zeros must have shape \[3, 2\]; zeros is \[3, 1\] float32"
    yield Refusal(message, (x, qweight, scales), size | {"zeros": scales[:, :1]})
    message = r"zeros must be uint8 or floating point; zeros is \[3, 2\] int32"
    yield Refusal(message, (x, qweight, scales), size | {"zeros": scales.int()})


def w4a16_oracle(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Any = None
) -> Tensor:
    rows, factor, bytes_ = flat_rows(x), numbers(scales), qweight.numpy()
    zero = np.full(factor.shape, 8.0) if zeros is None else numbers(zeros)
    result = np.zeros((len(rows), len(factor)))
    for column in range(rows.shape[1]):
        byte, group = bytes_[:, column // 2], column // group_size
        code = (byte // 16 if column % 2 else byte % 16).astype(np.float64)
        # An infinity times a weight of 0 is NaN.
        with np.errstate(invalid="ignore"):
            result += np.outer(rows[:, column], (code - zero[:, group]) * factor[:, group])
    return torch.from_numpy(result).reshape(*x.shape[:-1], len(factor))


RECORDS = [
    Record("w4a16_mm", w4a16_samples, w4a16_refusals, w4a16_oracle, rows=("x",)),
]
