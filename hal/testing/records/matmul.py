"""Records of the products with quantised matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
COLUMNS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 255, 257, 1408]
ROWS = [1, 2, 3, 7, 16, 33]


class Maker:
    """Draws the same tensors in the same order each time."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def codes(self, *shape: int, dtype: torch.dtype = E4M3) -> Tensor:
        """Codes over the whole range of ``dtype``."""
        if dtype == INT8:
            return torch.randint(-127, 128, shape, generator=self.generator).to(INT8)
        return (torch.randn(shape, generator=self.generator) * 100).clamp(-448, 448).to(dtype)

    def scale(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * 1e-2 + 1e-4

    def nibbles(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=self.generator).to(torch.uint8)

    def factors(self, m: int, n: int, k: int, dtype: torch.dtype = E4M3) -> tuple[Tensor, ...]:
        """Codes and a scale for each row."""
        a, b = self.codes(m, k, dtype=dtype), self.codes(n, k, dtype=dtype)
        return a, b, self.scale(m), self.scale(n)

    def blocks(self, m: int, n: int, k: int, rows: int = 128, columns: int = 128) -> Any:
        """Codes and a scale for each block."""
        across = math.ceil(k / columns)
        a, b = self.codes(m, k), self.codes(n, k)
        return a, b, self.scale(m, across), self.scale(math.ceil(n / rows), across)

    def packed(self, m: int, n: int, k: int, size: int, dtype: torch.dtype = F32) -> Any:
        """Activations, bytes of two codes, and a scale for each group."""
        scales = self.scale(n, math.ceil(k / size)).to(dtype)
        return self.randn(m, k, dtype=dtype), self.nibbles(n, k // 2), scales


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
            kwargs = {"out_dtype": out, "bias": make.randn(17, dtype=bias)}
            yield Sample(f"{out} with bias {bias}", make.factors(9, 17, 130), kwargs)
    kwargs = {"out_dtype": BF16, "bias": make.randn(3)}
    yield Sample("int8 with bias", make.factors(4, 3, 64, INT8), kwargs)
    yield from scaled_shapes(make)
    yield from scaled_values(make)


def scaled_shapes(make: Maker) -> Iterator[Sample]:
    out = {"out_dtype": BF16}
    b, b_scale = make.codes(33, 64), make.scale(33)
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3), (2, 0, 3)]:
        a = make.codes(*rows, 64)
        yield Sample(f"rows {rows}", (a, b, make.scale(*rows), b_scale), out)
        yield Sample(f"rows {rows}, columns", (a, b, make.scale(*rows, 1), b_scale[:, None]), out)
        yield Sample(f"rows {rows}, one scale", (a, b, make.scale(1), make.scale()), out)
    yield Sample("no columns", make.factors(3, 0, 16), out)
    empty = {"out_dtype": F32, "bias": make.randn(3)}
    yield Sample("bias alone", make.factors(2, 3, 0), empty)
    for dtype in (E4M3, INT8):
        a, b, a_scale, b_scale = make.factors(8, 12, 32, dtype)
        laid = (a.t().contiguous().t(), b.t().contiguous().t(), a_scale, b_scale)
        yield Sample(f"column by column {dtype}", laid, out)
        every = (a[::2, ::2], b[::2, ::2], a_scale[::2], b_scale[::2])
        yield Sample(f"every other {dtype}", every, out | {"bias": make.randn(12)[::2]})
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
    bias = torch.where(torch.arange(13) == 4, math.nan, 1.0)
    yield Sample("NaN bias", (a, b, a_scale, b_scale), {"out_dtype": F32, "bias": bias})


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
    for x_dtype, scale_dtype in [(BF16, F32), (F32, F16), (F16, BF16)]:
        args = (x.to(x_dtype), qweight, scales.to(scale_dtype))
        yield Sample(f"{x_dtype} with scales {scale_dtype}", args, {"group_size": 32})
    yield from w4a16_layouts(make)


def w4a16_layouts(make: Maker) -> Iterator[Sample]:
    x, qweight, scales = make.packed(4, 10, 64, 32)
    kwargs: dict[str, Any] = {"group_size": 32}
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3)]:
        yield Sample(f"rows {rows}", (make.randn(*rows, 64), qweight, scales), kwargs)
    yield Sample("no weights", (x, qweight[:0], scales[:0]), kwargs)
    turned = (x.t().contiguous().t(), qweight.t().contiguous().t(), scales.t().contiguous().t())
    yield Sample("column by column", turned, kwargs | {"zeros": scales.t().contiguous().t()})
    yield Sample("every other row", (x[::2], qweight[::2], scales[::2]), kwargs)
    part = (make.randn(4, 99)[:, 3:67], make.nibbles(10, 40)[:, 5:37], scales)
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
    message = "x must be floating point; x is .* float8_e4m3fn"
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


def numbers(x: Tensor) -> np.ndarray:
    """A tensor of any dtype in float64."""
    return (x.double() if x.dtype == torch.float64 else x.float().double()).numpy()


def flat_rows(x: Tensor) -> np.ndarray:
    """[..., k] in float64 as [rows, k]."""
    return numbers(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


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
    Record("scaled_mm", scaled_samples, scaled_refusals, scaled_oracle),
    Record("block_scaled_mm", block_samples, block_refusals, block_oracle),
    Record("w4a16_mm", w4a16_samples, w4a16_refusals, w4a16_oracle),
]
