"""Records of the ops that quantise to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import Codes, Part, Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.ties import odd_ties

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
CODES = (E4M3, E5M2, INT8)
LIMITS = {E4M3: 448.0, E5M2: 57344.0, INT8: 127.0}
SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 255, 256, 257, 1408]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
VALUES = (0.0, 1e-10, 1e-12, 1e-38, 448.0, 1.0, 1e4, -6e4, 3e38, math.inf, -math.inf, math.nan)
TIES = [448.0, 2.5, 3.5, 17.0, 19.0, -17.0, -19.0, 0.0009765625, 0.0029296875, -2.5, 432.0, 127.0]


class Maker(Draws):
    """Draws rows, and codes with their scales."""

    def rows(self, *shape: int) -> Tensor:
        """Rows of very different magnitudes."""
        x = self(*shape)
        if len(shape) > 1:
            x *= 2.0 ** self.integers(-12, 12, *shape[:-1], 1)
        return x

    def scales(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) + 0.5

    def ints(self, *shape: int) -> Tensor:
        return self.integers(-128, 128, *shape).to(INT8)


def views(values: Callable[..., Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "transposed", values(40, 6).t()
    yield "one row, transposed", values(40, 1).t()
    yield "rows of a wider tensor", values(4, 96)[:, 16:80]
    yield "one row of a wider tensor", values(4, 96)[1:2, 16:80]
    yield "every other row", values(8, 33)[::2]
    yield "every other column", values(4, 64)[:, ::2]
    yield "expanded", values(1, 32).expand(4, 32)
    yield "offset by one element", values(129)[1:].view(2, 64)
    yield "leading dimensions swapped", values(2, 3, 40).transpose(0, 1)


def inputs(seed: int) -> Iterator[tuple[str, Tensor]]:
    """Arguments ``x`` for any of the quantisers."""
    make = Maker(seed)
    yield from ((f"3x{size}", make.rows(3, size)) for size in SIZES)
    for dtype in DTYPES:
        yield f"{dtype}", make.rows(5, 200).clamp(-6e4, 6e4).to(dtype)
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 40), (2, 0, 8), (1, 16384)]:
        yield f"shape {shape}", make.rows(*shape)
    yield from views(make.rows)
    yield from ((f"all {value}", torch.full((2, 64), value)) for value in VALUES)
    yield "all 1e300", torch.full((2, 64), 1e300, dtype=torch.float64)
    for value in (math.nan, math.inf, -math.inf, 3e38):
        x = make.rows(4, 200)
        x[1, 5] = value
        yield f"one {value}", x
    yield "ties", torch.tensor([TIES, [-each for each in TIES]])


def group_samples() -> Iterator[Sample]:
    for name, x in inputs(1):
        yield Sample(name, (x, 128 if x.shape[-1] > 128 else 16))
    make = Maker(2)
    yield Sample("defaults", (make.rows(3, 200),))
    for dtype in CODES:
        for size in (16, 32, 64, 128):
            x = make.rows(5, 200)
            yield Sample(f"{dtype} groups of {size}", (x, size), {"dtype": dtype})
        x = torch.full((2, 64), math.nan)
        yield Sample(f"{dtype} all NaN", (x,), {"dtype": dtype})
        x = make.rows(3, 200)
        x[1, 5], x[2, 150] = math.nan, math.inf
        for ue8m0 in (False, True):
            kwargs = {"dtype": dtype, "ue8m0": ue8m0}
            yield Sample(f"{dtype} NaN and infinity, ue8m0 {ue8m0}", (x, 32), kwargs)
        yield Sample(f"{dtype} ties of odd scales", (odd_ties(dtype),), {"dtype": dtype})
        powers = LIMITS[dtype] * 2.0 ** torch.arange(-40, 40).repeat_interleave(16).view(10, 128)
        kwargs = {"dtype": dtype, "ue8m0": True}
        yield Sample(f"{dtype} powers of two", (powers, 16), kwargs)
    yield from group_layouts()


def group_layouts() -> Iterator[Sample]:
    make = Maker(3)
    for layout in ("row", "column", "tma"):
        for ue8m0 in (False, True):
            kwargs = {"scale_layout": layout, "ue8m0": ue8m0}
            name = f"{layout} ue8m0 {ue8m0}"
            for rows in (0, 1, 4, 5):
                yield Sample(f"{name} {rows} rows", (make.rows(rows, 80), 16), kwargs)
            for k in (0, 1, 64, 65):
                yield Sample(f"{name} {k} columns", (make.rows(3, k), 16), kwargs)
            for shape in [(2, 1, 3, 40), (2, 0, 40), (1, 1, 1)]:
                yield Sample(f"{name} {shape}", (make.rows(*shape), 16), kwargs)
            x = make.rows(5, 160)
            x[0, 3], x[1, 40], x[2] = math.nan, math.inf, 0
            yield Sample(f"{name} special values", (x, 32), kwargs | {"dtype": INT8})
            powers = 448 * 2.0 ** torch.arange(-40, 40).repeat_interleave(16).view(10, 128)
            yield Sample(f"{name} powers of two", (powers, 16), kwargs)
            beside = powers.clone().view(10, 8, 16)
            beside[..., 0] = beside[..., 0].nextafter(torch.tensor(math.inf))
            yield Sample(f"{name} past powers of two", (beside.view(10, 128), 16), kwargs)


def group_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 64)
    yield from common_refusals(())
    for size in (0, -16, 8, 48, 256):
        message = f"group_size must be 16, 32, 64 or 128; group_size is {size}"
        yield Refusal(message, (x, size))
    message = "scale_layout must be row, column or tma; scale_layout is 'col'"
    yield Refusal(message, (x,), {"scale_layout": "col"})
    for layout in ("column", "tma"):
        message = rf"x must be \[\.\.\., rows, k\] for the {layout} layout; x is \[64\] float32"
        yield Refusal(message, (x[0],), {"scale_layout": layout})
    yield Refusal(r"x must have at least one dimension; x is \[\] float32", (x[0, 0],))


def common_refusals(rest: tuple[Any, ...]) -> Iterator[Refusal]:
    """What every op refuses that takes ``x`` first and a dtype of codes."""
    x = torch.zeros(4, 64)
    yield Refusal(r"x must be floating point; x is \[4, 64\] int64", (x.long(), *rest))
    yield Refusal(r"x must be floating .*; x is \[4, 64\] float8_e4m3fn", (x.to(E4M3), *rest))
    names = "torch.float8_e4m3fn or torch.float8_e5m2 or torch.int8"
    for dtype in (torch.float16, torch.uint8, torch.float8_e4m3fnuz):
        message = f"dtype must be {names}; dtype is {dtype}"
        yield Refusal(message, (x, *rest), {"dtype": dtype})
    yield Refusal("dtype must be dtype, not 'int8' of type str", (x, *rest), {"dtype": "int8"})


def token_samples() -> Iterator[Sample]:
    for name, x in inputs(4):
        yield Sample(name, (x,))
    make = Maker(9)
    for dtype in CODES:
        kwargs = {"dtype": dtype}
        for given in DTYPES:
            yield Sample(f"{given} to {dtype}", (make.rows(5, 65).to(given),), kwargs)
        for value in VALUES:
            x = make.rows(3, 40)
            x[1] = value
            x[2, 7] = value
            yield Sample(f"{value} to {dtype}", (x,), kwargs)
        for scale in (1, 3):
            ties = torch.tensor([TIES, [LIMITS[dtype], *TIES[1:]]]) * scale
            yield Sample(f"ties of {scale} to {dtype}", (ties,), kwargs)
        yield Sample(f"ties of odd scales to {dtype}", (odd_ties(dtype),), kwargs)


def token_refusals() -> Iterator[Refusal]:
    yield from common_refusals(())
    message = r"x must have at least one dimension; x is \[\] float32"
    yield Refusal(message, (torch.tensor(1.0),))


def tensor_samples() -> Iterator[Sample]:
    for i, (name, x) in enumerate(inputs(5)):
        yield Sample(name, (x,))
        if i % 2:
            yield Sample(f"{name} by 0.37", (x, torch.tensor([0.37])))
    make = Maker(6)
    for dtype in CODES:
        kwargs = {"dtype": dtype}
        for value in (math.nan, math.inf, 1e30, 0.0):
            x = make.rows(3, 40)
            x[1, 2] = value
            yield Sample(f"one {value} to {dtype}", (x,), kwargs)
            yield Sample(f"one {value} to {dtype} by 2", (x, torch.tensor(2.0)), kwargs)
        yield Sample(f"ties by 1 to {dtype}", (torch.tensor(TIES), torch.tensor([1.0])), kwargs)
        for row in odd_ties(dtype)[24:94:7]:
            scale = row[:1] / LIMITS[dtype]
            yield Sample(f"ties of {int(scale)} to {dtype}", (row,), kwargs)
            yield Sample(f"ties by {int(scale)} to {dtype}", (row[1:], scale), kwargs)
        yield Sample(f"scalar to {dtype}", (torch.tensor(-3.0),), kwargs)
        yield Sample(f"scalar by 1.5 to {dtype}", (torch.tensor(3.1), torch.tensor(1.5)), kwargs)
    x = make.rows(2, 5)
    yield Sample("scale of a wider tensor", (x, torch.tensor([[0.3, 0.7], [1.0, 2.0]])[1:, 1:]))


def tensor_refusals() -> Iterator[Refusal]:
    yield from common_refusals(())
    x = torch.zeros(4, 64)
    message = r"scale must have one element; scale is \[4, 1\] float32"
    yield Refusal(message, (x, torch.ones(4, 1)))
    yield Refusal(r"scale must have one element; scale is \[0\] float32", (x, torch.ones(0)))
    yield Refusal(r"scale must be float32; scale is \[1\] float16", (x, torch.ones(1).half()))


def _rows(x: Tensor) -> np.ndarray:
    return x.double().reshape(math.prod(x.shape[:-1]), x.shape[-1]).numpy()


def scale_of(values: np.ndarray, limit: float, ue8m0: bool) -> float:
    """The scale of some values, of which there may be none."""
    peak = float(np.abs(values).max(initial=0.0))
    scale = float(np.float32((peak if math.isnan(peak) else max(peak, 1e-10)) / limit))
    if ue8m0 and math.isfinite(scale):
        mantissa, exponent = math.frexp(scale)
        return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)
    return scale


def codes_of(values: np.ndarray, scale: float, dtype: torch.dtype) -> np.ndarray:
    found = np.clip(values / np.float64(scale), -LIMITS[dtype], LIMITS[dtype])
    return np.nan_to_num(found, nan=0.0) if dtype == INT8 else found


def packed_of(scales: list[float]) -> list[int]:
    """Biased exponents as bytes, in little-endian words."""
    found = [int(math.log2(s)) + 127 if math.isfinite(s) else 255 for s in scales]
    found += [0] * (-len(found) % 4)
    fours = [bytes(found[i : i + 4]) for i in range(0, len(found), 4)]
    return [int.from_bytes(four, "little", signed=True) for four in fours]


@np.errstate(all="ignore")
def group_oracle(
    x: Tensor,
    group_size: int = 128,
    *,
    dtype: torch.dtype = E4M3,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Codes, Tensor]:
    rows, groups = _rows(x), -(-x.shape[-1] // group_size)
    codes, scales = np.zeros_like(rows), np.zeros((len(rows), groups))
    for i, row in enumerate(rows):
        for j in range(groups):
            part = slice(j * group_size, (j + 1) * group_size)
            scales[i, j] = scale_of(row[part], LIMITS[dtype], ue8m0)
            codes[i, part] = codes_of(row[part], scales[i, j], dtype)
    found = Codes(torch.from_numpy(codes).reshape(x.shape))
    if ue8m0 and scale_layout == "tma":
        words = torch.tensor([packed_of(row) for row in scales.tolist()], dtype=torch.int32)
        return found, words.reshape(*x.shape[:-1], -(-groups // 4))
    return found, torch.from_numpy(scales).reshape(*x.shape[:-1], groups)


def token_oracle(x: Tensor, *, dtype: torch.dtype = E4M3) -> tuple[Codes, Tensor]:
    if x.shape[-1]:
        return group_oracle(x, x.shape[-1], dtype=dtype)
    scale = torch.full((*x.shape[:-1], 1), 1e-10 / LIMITS[dtype], dtype=torch.float64)
    return Codes(x.double()), scale


@np.errstate(all="ignore")
def tensor_oracle(
    x: Tensor, scale: Tensor | None = None, *, dtype: torch.dtype = E4M3
) -> tuple[Codes, Tensor]:
    values = x.double().numpy()
    one = scale_of(values, LIMITS[dtype], False) if scale is None else scale.item()
    codes = torch.from_numpy(np.asarray(codes_of(values, one, dtype)))
    return Codes(codes), torch.tensor([one], dtype=torch.float64)


def static_parts(given: dict[str, Any]) -> Iterator[Part]:
    """None with a dynamic scale, which depends on every row."""
    for rows in spans(len(given["x"]) if given["x"].dim() > 1 else 0):
        if given["scale"] is not None:
            yield Part(cut(given, ["x"], rows), (rows, slice(None)))


RECORDS = [
    Record("per_token_group_quant", group_samples, group_refusals, group_oracle, rows=("x",)),
    Record("per_token_quant", token_samples, token_refusals, token_oracle, rows=("x",)),
    Record(
        "per_tensor_quant",
        tensor_samples,
        tensor_refusals,
        tensor_oracle,
        parts=static_parts,
        far=("x",),
    ),
]
