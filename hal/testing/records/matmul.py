"""Records of the products of 8-bit matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.factors import (
    BF16,
    COLUMNS,
    E4M3,
    E5M2,
    F16,
    F32,
    INT8,
    ROWS,
    Maker,
    flat_rows,
    numbers,
)


def scaled_samples() -> Iterator[Sample]:
    make = Maker(1)
    for i, k in enumerate(COLUMNS):
        for dtype in (E4M3, INT8):
            args = make.factors(5, ROWS[i % len(ROWS)], k, dtype)
            yield Sample(f"k {k} {dtype}", args, {"out_dtype": (F32, BF16, F16)[i % 3]})
    for a_dtype, b_dtype in [(E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)]:
        args = make.codes(9, 66, dtype=a_dtype), make.codes(7, 66, dtype=b_dtype)
        args = (*args, make.scale(9), make.scale(7))
        yield Sample(f"{a_dtype} with {b_dtype}", args, {"out_dtype": BF16})
    for out in (F32, F16, BF16):
        for bias in (F32, F16, BF16, torch.float64):
            kwargs = {"out_dtype": out, "bias": make(17, dtype=bias)}
            yield Sample(f"{out} with bias {bias}", make.factors(9, 17, 130), kwargs)
    kwargs = {"out_dtype": BF16, "bias": make(3)}
    yield Sample("int8 with bias", make.factors(4, 3, 64, INT8), kwargs)
    yield from scaled_shapes(make)
    yield from scaled_values(make)
    # Some kernels have whole tiles alone.
    for out in (BF16, F16):
        yield Sample(f"tiles of 16, {out}", Maker(5).factors(9, 48, 64), {"out_dtype": out})


def scaled_shapes(make: Maker) -> Iterator[Sample]:
    out = {"out_dtype": BF16}
    b, b_scale = make.codes(33, 64), make.scale(33)
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3), (2, 0, 3)]:
        a = make.codes(*rows, 64)
        yield Sample(f"rows {rows}", (a, b, make.scale(*rows), b_scale), out)
        yield Sample(f"rows {rows}, columns", (a, b, make.scale(*rows, 1), b_scale[:, None]), out)
        yield Sample(f"rows {rows}, one scale", (a, b, make.scale(1), make.scale()), out)
    yield Sample("no columns", make.factors(3, 0, 16), out)
    empty = {"out_dtype": F32, "bias": make(3)}
    yield Sample("bias alone", make.factors(2, 3, 0), empty)
    for dtype in (E4M3, INT8):
        a, b, a_scale, b_scale = make.factors(8, 12, 32, dtype)
        laid = (a.t().contiguous().t(), b.t().contiguous().t(), a_scale, b_scale)
        yield Sample(f"column by column {dtype}", laid, out)
        every = (a[::2, ::2], b[::2, ::2], a_scale[::2], b_scale[::2])
        yield Sample(f"every other {dtype}", every, out | {"bias": make(12)[::2]})
        yield Sample(f"part of {dtype}", (a[1:, 3:18], b[2:, 5:20], a_scale[1:], b_scale[2:]), out)
        expanded = (a[:1].expand(8, 32), b, a_scale[:1].expand(8), b_scale[:1].expand(12))
        yield Sample(f"expanded {dtype}", expanded, out)
    turned = make.codes(3, 2, 16).transpose(0, 1)
    args = (turned, make.codes(5, 16), make.scale(3, 2).t(), make.scale(5))
    yield Sample("leading dimensions swapped", args, out)


def scaled_values(make: Maker) -> Iterator[Sample]:
    for value, dtype in [(448.0, E4M3), (57344.0, E5M2), (127, INT8), (-128, INT8), (0, INT8)]:
        a, b = (torch.full((n, 1500), value).to(dtype) for n in (4, 16))
        for out in (F32, F16):
            args = (a, b, torch.full((4,), 1e-3), torch.full((16,), 1e-2))
            yield Sample(f"all {value} {out}", args, {"out_dtype": out})
    a, b, a_scale, b_scale = make.factors(5, 13, 33)
    for name, scale in [("1e-30", 1e-30), ("1e30", 1e30), ("0", 0.0), ("NaN", math.nan)]:
        scaled = torch.where(torch.arange(5) == 1, scale, a_scale)
        yield Sample(f"one scale {name}", (a, b, scaled, b_scale), {"out_dtype": BF16})
    for dtype, value in [(E4M3, math.nan), (E5M2, math.nan), (E5M2, math.inf)]:
        broken = make.codes(5, 33).float()
        broken[2, 7] = value
        args = (broken.to(dtype), b, a_scale, b_scale)
        yield Sample(f"one {value} in a {dtype}", args, {"out_dtype": BF16})
        args = (b, broken.to(dtype), b_scale, a_scale)
        yield Sample(f"one {value} in b {dtype}", args, {"out_dtype": F32})
    # Half of the products are above 0 and half below: what is lost of sums beyond 2^24 is all.
    a, b = torch.full((4, 8192), 127).to(INT8), make.integers(1, 128, 32, 8192)
    b = torch.cat((b[:, :4096], -b[:, :4096] + (torch.arange(4096) % 512 == 7)), dim=1).to(INT8)
    args = (a, b, torch.ones(4), torch.ones(32))
    yield Sample("int8 sums beyond float32", args, {"out_dtype": F32})
    a, b, a_scale, b_scale = make.factors(5, 13, 33)
    bias = torch.where(torch.arange(13) == 4, math.nan, 1.0)
    yield Sample("NaN bias", (a, b, a_scale, b_scale), {"out_dtype": F32, "bias": bias})
    for out in (F16, BF16):
        # Rounded before the bias is added, nothing would be left.
        codes, scale = torch.ones(8, 1).to(E4M3), torch.full((1,), 1 + torch.finfo(out).eps / 2)
        kwargs = {"out_dtype": out, "bias": -torch.ones(8)}
        yield Sample(f"a bias of the opposite {out}", (codes, codes, scale, torch.ones(8)), kwargs)


def scaled_refusals() -> Iterator[Refusal]:
    a, b, a_scale, b_scale = Maker(0).factors(4, 3, 8)
    out: dict[str, Any] = {"out_dtype": BF16}
    rest = (a_scale, b_scale)
    message = "a must be float8_e4m3fn or float8_e5m2 or int8; a is .* float32"
    yield Refusal(message, (a.float(), b, *rest), out)
    message = "a and b must both be int8 or both be 8-bit floats; a is .* int8, b is .* float8"
    yield Refusal(message, (a.to(INT8), b, *rest), out)
    yield Refusal(r"b must be \[n, k\]; b is \[8\] float8_e4m3fn", (a, b[0], *rest), out)
    yield Refusal(r"a must be \[\.\.\., k\]; a is \[\] float8", (a[0, 0], b, *rest), out)
    message = r"a must have as many columns as b; a is \[4, 8\] .*, b is \[3, 7\] float8_e4m3fn"
    yield Refusal(message, (a, b[:, :7], *rest), out)
    message = r"a_scale must have one element or shape \[4\] or \[4, 1\]; a_scale is \[3\] float32"
    yield Refusal(message, (a, b, b_scale, b_scale), out)
    message = r"b_scale must have .* \[3\] or \[3, 1\]; b_scale is \[1, 3\] float32"
    yield Refusal(message, (a, b, a_scale, b_scale[None]), out)
    message = r"a_scale must be float32; a_scale is \[4\] bfloat16"
    yield Refusal(message, (a, b, a_scale.to(BF16), b_scale), out)
    message = "out_dtype must be float32, float16 or bfloat16; out_dtype is torch.float64"
    yield Refusal(message, (a, b, *rest), {"out_dtype": torch.float64})
    yield Refusal(
        "out_dtype must be dtype, not 'bfloat16'", (a, b, *rest), {"out_dtype": "bfloat16"}
    )
    message = r"bias must have shape \[3\]; bias is \[1\] float32"
    yield Refusal(message, (a, b, *rest), out | {"bias": a_scale[:1]})
    message = r"bias must be floating point; bias is \[3\] int32"
    yield Refusal(message, (a, b, *rest), out | {"bias": torch.ones(3).int()})


def block_samples() -> Iterator[Sample]:
    make = Maker(2)
    outs = F32, BF16, F16
    for i, k in enumerate([*COLUMNS, 256, 384]):
        args = make.blocks(ROWS[i % len(ROWS)], 20 + i, k)
        yield Sample(f"k {k}", args, {"out_dtype": outs[i % 3]})
    for i, n in enumerate([0, 1, 127, 128, 129, 255, 256, 257, 300]):
        yield Sample(f"n {n}", make.blocks(3, n, 200), {"out_dtype": outs[i % 3]})
    for block in [(1, 1), (1, 2), (3, 5), (64, 128), (128, 64), (16, 1000), (2**40, 2**40)]:
        for out in outs:
            kwargs = {"block": block, "out_dtype": out}
            yield Sample(f"blocks {block} {out}", make.blocks(5, 40, 70, *block), kwargs)
    out = {"out_dtype": BF16}
    b, b_scale = make.codes(33, 200), make.scale(1, 2)
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3), (2, 0, 3)]:
        args = (make.codes(*rows, 200), b, make.scale(*rows, 2), b_scale)
        yield Sample(f"rows {rows}", args, out)
    yield Sample("list for block", make.blocks(2, 3, 40, 2, 16), out | {"block": [2, 16]})
    yield from block_layouts(make, out)
    yield from block_values(make)
    yield Sample("whole blocks", Maker(6).blocks(5, 192, 256), out)


def block_layouts(make: Maker, out: dict[str, Any]) -> Iterator[Sample]:
    a, b, a_scale, b_scale = make.blocks(7, 130, 300)
    column = a_scale.t().contiguous().t()
    yield Sample("scales column by column", (a, b, column, b_scale.t().contiguous().t()), out)
    padded = torch.full((3, 8), math.nan)
    padded[:, :7] = a_scale.t()
    yield Sample("scale columns padded to 16 bytes", (a, b, padded.t()[:7], b_scale), out)
    turned = (a.t().contiguous().t(), b.t().contiguous().t(), a_scale, b_scale)
    yield Sample("codes column by column", turned, out)
    wider = (make.codes(7, 500)[:, 3:303], make.codes(260, 300)[::2], a_scale, b_scale)
    yield Sample("parts of wider codes", wider, out)
    alike = (a[:1].expand(7, 300), b, a_scale[:1].expand(7, 3), b_scale[:1, :1].expand(2, 3))
    yield Sample("expanded", alike, out)
    for dtype in (E5M2, E4M3):
        mixed = (make.codes(7, 300, dtype=dtype), b.to(E5M2), a_scale, b_scale)
        yield Sample(f"{dtype} with e5m2", mixed, out)


def block_values(make: Maker) -> Iterator[Sample]:
    a, b, a_scale, b_scale = make.blocks(4, 150, 200)
    for value in (448.0, -448.0, 2.0**-9, 0.0):
        full = (torch.full_like(a, value), torch.full_like(b, value), a_scale, b_scale)
        yield Sample(f"all {value}", full, {"out_dtype": F32})
    yield Sample("overflow", (a, b, a_scale * 100, b_scale * 100), {"out_dtype": F16})
    uneven = a_scale * torch.tensor([1e-6, 1e6])
    yield Sample("scales far apart", (a, b, uneven, b_scale), {"out_dtype": F32})
    spots = [("a", 0, (2, 130)), ("b", 1, (140, 5)), ("a_scale", 2, (1, 1)), ("b_scale", 3, (1, 0))]
    for name, i, spot in spots:
        args = [a, b, a_scale, b_scale]
        broken = args[i].float()
        broken[spot] = math.nan
        args[i] = broken.to(args[i].dtype)
        yield Sample(f"one NaN in {name}", tuple(args), {"out_dtype": BF16})


def block_refusals() -> Iterator[Refusal]:
    a, b, a_scale, b_scale = Maker(0).blocks(4, 130, 200)
    out: dict[str, Any] = {"out_dtype": BF16}
    message = r"a must be float8_e4m3fn or float8_e5m2; a is \[4, 200\] int8"
    yield Refusal(message, (a.to(INT8), b, a_scale, b_scale), out)
    message = "a must have as many columns as b; a is .*, b is "
    yield Refusal(message, (a, b[:, :199], a_scale, b_scale), out)
    message = r"a_scale must have shape \[4, 2\]; a_scale is \[4, 1\] float32"
    yield Refusal(message, (a, b, a_scale[:, :1], b_scale), out)
    message = r"b_scale must have shape \[2, 2\]; b_scale is \[1, 2\] float32"
    yield Refusal(message, (a, b, a_scale, b_scale[:1]), out)
    message = r"b_scale must have shape \[3, 4\]; b_scale is \[2, 2\] float32"
    smaller = out | {"block": (64, 64)}
    args = (a, b, torch.ones(4, 4), b_scale)
    yield Refusal(message, args, smaller)
    message = r"a_scale must be float32; a_scale is \[4, 2\] int32"
    yield Refusal(message, (a, b, a_scale.int(), b_scale), out)
    for block in [(0, 128), (128,), (128, 128, 1), (128, -1)]:
        message = r"block must be \(rows, columns\), each at least 1; block is \("
        yield Refusal(message, (a, b, a_scale, b_scale), out | {"block": block})
    message = "out_dtype must be .*; out_dtype is torch.float8_e4m3fn"
    yield Refusal(message, (a, b, a_scale, b_scale), {"out_dtype": E4M3})


def scaled_oracle(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, out_dtype: Any, bias: Any = None
) -> Tensor:
    left, right = flat_rows(a), flat_rows(b)
    result = np.zeros((len(left), len(right)))
    by_row = np.broadcast_to(numbers(a_scale).reshape(-1), len(left))
    by_column = np.broadcast_to(numbers(b_scale).reshape(-1), len(right))
    added = np.zeros(len(right)) if bias is None else numbers(bias)
    for m, row in enumerate(left):
        for n, other in enumerate(right):
            result[m, n] = (row * other).sum() * by_row[m] * by_column[n] + added[n]
    return torch.from_numpy(result).reshape(*a.shape[:-1], len(right))


def block_oracle(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: Any = (128, 128),
    out_dtype: Any,
) -> Tensor:
    left, right, by_row, by_block = (flat_rows(x) for x in (a, b, a_scale, b_scale))
    result = np.zeros((len(left), len(right)))
    for i in range(by_block.shape[1]):
        columns = slice(i * block[1], (i + 1) * block[1])
        for n, other in enumerate(right):
            sums = (left[:, columns] * other[columns]).sum(axis=1)
            result[:, n] += sums * by_row[:, i] * by_block[n // block[0], i]
    return torch.from_numpy(result).reshape(*a.shape[:-1], len(right))


RECORDS = [
    Record(
        "scaled_mm",
        scaled_samples,
        scaled_refusals,
        scaled_oracle,
        rows=("a", "a_scale"),
        far=("a",),
    ),
    Record("block_scaled_mm", block_samples, block_refusals, block_oracle, rows=("a", "a_scale")),
]
