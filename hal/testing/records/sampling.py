"""Records of the sampling operators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.checks import describe
from hal.testing.record import Record, Refusal, Sample

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1408]
HALF = torch.float16, torch.bfloat16
INT32_MIN = -(2**31)


class Maker:
    """Draws the same tensors in the same order each time."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def logits(self, *shape: int, scale: float = 3.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def probs(self, *shape: int) -> Tensor:
        """Multiples of 2**-22 that sum to about 1: in float32 any partial sum of them is exact."""
        return (self.logits(*shape).softmax(-1) * 2**22).round() / 2**22

    def bits(self, *shape: int) -> Tensor:
        return torch.randint(INT32_MIN, 2**31, shape, generator=self.generator).to(torch.int32)


def views(values: Any) -> Iterator[tuple[str, Tensor]]:
    """Six rows or fewer of ``values(*shape)``, laid out in memory in every unusual way."""
    yield "transposed", values(6, 40).t().contiguous().t()
    yield "rows of a wider tensor", values(4, 96)[:, 16:80]
    yield "every other row", values(8, 33)[::2]
    yield "every other column", values(4, 64)[:, ::2]
    yield "expanded", values(1, 32).expand(4, 32)
    yield "offset by one element", values(129)[1:].view(2, 64)


def with_nan(values: Tensor) -> Tensor:
    values[1, 5] = math.nan
    return values


def softmax_samples() -> Iterator[Sample]:
    yield from softmax_layouts()
    yield from softmax_temperatures()
    yield from softmax_values()


def softmax_layouts() -> Iterator[Sample]:
    make = Maker(1)
    for size in SIZES:
        yield Sample(f"3x{size}", (make.logits(3, size),))
        yield Sample(f"3x{size} at 0", (make.logits(3, size),), {"temperature": 0.0})
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (2, 0, 8), (1, 32000)]:
        yield Sample(f"shape {shape}", (make.logits(*shape),))
    for name, x in views(make.logits):
        yield Sample(name, (x,), {"temperature": 0.8})


def softmax_temperatures() -> Iterator[Sample]:
    make = Maker(7)
    for dtype in HALF:
        for temperature in (0.0, 0.7, 1.0):
            x = make.logits(4, 130).to(dtype)
            yield Sample(f"{dtype} at {temperature}", (x,), {"temperature": temperature})
    for temperature in (0.3, 1, 1e-30, 1e-50, math.inf):
        yield Sample(f"at {temperature}", (make.logits(3, 65),), {"temperature": temperature})
    yield Sample("float64", (make.logits(5, 64).double(),), {"temperature": 0.7})
    per_row = torch.tensor([0.5, 0.0, 1.0, 2.0, -1.0, math.inf, math.nan])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        kwargs = {"temperature": per_row.to(dtype)}
        yield Sample(f"temperatures {dtype}", (make.logits(7, 40),), kwargs)
    yield Sample("strided temperatures", (make.logits(4, 40),), {"temperature": per_row[:8:2]})
    yield Sample("temperature []", (make.logits(3, 40),), {"temperature": torch.tensor(0.7)})
    grid = {"temperature": torch.tensor([[0.5, 0.0, 1.0], [2.0, 0.1, 3.0]])}
    yield Sample("temperature of each [2, 3]", (make.logits(2, 3, 8),), grid)


def softmax_values() -> Iterator[Sample]:
    make = Maker(8)
    for value in (0.0, 1e4, -6e4, 1e-38, 3e38, math.inf, -math.inf, math.nan):
        for temperature in (0.0, 0.5):
            x = torch.full((2, 64), value)
            yield Sample(f"all {value} at {temperature}", (x,), {"temperature": temperature})
    for value in (math.nan, math.inf, -math.inf, 1e4, -1e4, 3e38):
        for temperature in (0.0, 1.0, math.inf):
            x = make.logits(4, 64)
            x[1, 5] = x[1, 40] = value
            yield Sample(f"two {value} at {temperature}", (x,), {"temperature": temperature})


def softmax_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 7)
    empty = r"logits must have a last dimension of at least 1; logits is \[4, 0\] float32"
    yield Refusal(empty, (torch.zeros(4, 0),))
    yield Refusal(r"logits must have .*; logits is \[\] float32", (torch.tensor(0.0),))
    yield Refusal(r"logits must be floating point; logits is \[4, 7\] int64", (x.long(),))
    for value in (-0.5, -math.inf):
        message = f"temperature must not be negative; temperature is {value}"
        yield Refusal(message, (x,), {"temperature": value})
    yield Refusal("temperature must not be NaN", (x,), {"temperature": math.nan})
    message = r"temperature must have shape \[4\]; temperature is \[7\] float32"
    yield Refusal(message, (x,), {"temperature": torch.ones(7)})
    message = r"temperature must have shape \[4\]; temperature is \[4, 1\] float32"
    yield Refusal(message, (x,), {"temperature": torch.ones(4, 1)})
    message = r"temperature must be floating point; temperature is \[4\] int32"
    yield Refusal(message, (x,), {"temperature": torch.ones(4).int()})


def limit_samples(name: str, numbers: list[Any], tensors: list[Tensor]) -> Iterator[Sample]:
    """Samples of the op whose limit is ``name``; tensors hold a limit for each of five rows."""
    make = Maker(2)
    for size in SIZES:
        yield Sample(f"3x{size}", (make.probs(3, size), numbers[0]))
    for number in numbers:
        for dtype in (torch.float32, torch.float64, *HALF):
            yield Sample(f"{name} {number} {dtype}", (make.probs(4, 66).to(dtype), number))
        yield Sample(f"{name} {number}, ties", (torch.full((2, 8), 0.125), number))
        few = torch.tensor([[0.25, 0.125, 0.25, 0.125, 0.25], [0.0, 0.5, 0.0, 0.5, 0.0]])
        yield Sample(f"{name} {number}, some ties", (few, number))
        yield Sample(f"{name} {number}, sum of 96", (make.probs(3, 34) * 96, number))
    for tensor in tensors:
        described = f"{name} {tensor.dtype} {list(tensor.shape)}"
        for dtype in (torch.float32, torch.bfloat16):
            yield Sample(f"{described} {dtype}", (make.probs(5, 40).to(dtype), tensor))
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (2, 0, 8), (1, 8000)]:
        yield Sample(f"shape {shape}", (make.probs(*shape), numbers[0]))
    grid = torch.stack([tensors[0][:3], tensors[0][2:]])
    yield Sample(f"{name} of each [2, 3]", (make.probs(2, 3, 8), grid))
    yield Sample(f"{name} of each, strided", (make.probs(2, 8), tensors[0][1::2]))
    for layout, p in views(make.probs):
        yield Sample(layout, (p, numbers[0]))
    for value in (0.0, 1e4, 6e4, 1e-38, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value), numbers[0]))
    yield Sample("one NaN", (with_nan(make.probs(4, 64)), numbers[0]))
    zeros = make.probs(4, 64) * torch.tensor([[1], [0], [1], [1]])
    yield Sample("one row of zeros", (zeros, numbers[0]))


TOP_K = [3, 1, 2, 0, -1, 66, 67, 2**31, 2**40, -(2**63)]
TOP_K_ROWS = torch.tensor([3, 0, 40, 1, -5])
TOP_P = [0.75, 0.5, 0.9, 0.25, 0.125, 0.0, -1.0, 1.0, 1, 1.5, math.inf, 1e-30]
TOP_P_ROWS = torch.tensor([0.75, 0.0, 1.0, 0.3, 0.9])
MIN_P = [0.25, 0.5, 0.1, 0.0, -1.0, 1.0, 1, 2.0, math.inf, 1e-30]
MIN_P_ROWS = torch.tensor([0.25, 0.0, 1.0, 0.03, 2.0])


def forms(rows: Tensor, *dtypes: torch.dtype) -> list[Tensor]:
    return [rows.to(dtype) for dtype in dtypes] + [rows[0]]


def top_k_samples() -> Iterator[Sample]:
    return limit_samples("top_k", TOP_K, forms(TOP_K_ROWS, torch.int64, torch.int32))


def top_p_samples() -> Iterator[Sample]:
    dtypes = torch.float32, torch.float64, *HALF
    return limit_samples("top_p", TOP_P, forms(TOP_P_ROWS, *dtypes))


def min_p_samples() -> Iterator[Sample]:
    dtypes = torch.float32, torch.float64, *HALF
    return limit_samples("min_p", MIN_P, forms(MIN_P_ROWS, *dtypes))


def limit_refusals(name: str, number: Any, kind: str, other: Tensor) -> Iterator[Refusal]:
    p = torch.ones(4, 7)
    message = r"probs must have a last dimension of at least 1; probs is \[4, 0\] float32"
    yield Refusal(message, (torch.zeros(4, 0), number))
    yield Refusal(r"probs must have .*; probs is \[\] float32", (torch.tensor(1.0), number))
    yield Refusal(r"probs must be floating point; probs is \[4, 7\] int64", (p.long(), number))
    limit = torch.full((7,), number)
    dtype = str(limit.dtype).removeprefix("torch.")
    message = rf"{name} must have shape \[4\]; {name} is \[7\] {dtype}"
    yield Refusal(message, (p, limit))
    yield Refusal(rf"{name} must have shape \[\]; {name} is \[1\] {dtype}", (p[0], limit[:1]))
    yield Refusal(rf"{name} must be {kind}; {name} is \[4\] ", (p, other))


def top_k_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("top_k", 2, "int32 or int64", torch.ones(4))
    message = f"top_k must fit in a signed 64-bit integer; top_k is {2**63}"
    yield Refusal(message, (torch.ones(4, 7), 2**63))


def top_p_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("top_p", 0.5, "floating point", torch.ones(4).int())
    yield Refusal("top_p must not be NaN", (torch.ones(4, 7), math.nan))


def min_p_refusals() -> Iterator[Refusal]:
    yield from limit_refusals("min_p", 0.5, "floating point", torch.ones(4).int())
    yield Refusal("min_p must not be NaN", (torch.ones(4, 7), math.nan))


def sample_samples() -> Iterator[Sample]:
    yield from sample_layouts()
    yield from sample_limits()
    yield from sample_noise()


def sample_layouts() -> Iterator[Sample]:
    make = Maker(3)
    noise = {"seed": 1, "offset": 2}
    for size in SIZES:
        yield Sample(f"5x{size}", (make.probs(5, size),), noise)
        limits = {"top_k": 5, "top_p": 0.9, "min_p": 0.05}
        yield Sample(f"5x{size} with all limits", (make.probs(5, size),), limits | noise)
    for dtype in (torch.float64, *HALF):
        yield Sample(f"{dtype}", (make.probs(40, 65).to(dtype),), noise)
        yield Sample(f"{dtype} top_p", (make.probs(40, 65).to(dtype),), {"top_p": 0.8} | noise)
    for shape in [(0, 8), (1, 1), (1, 32000), (300, 3)]:
        yield Sample(f"shape {shape}", (make.probs(*shape),), noise)
        yield Sample(f"shape {shape} top_k", (make.probs(*shape),), {"top_k": 2} | noise)
    for layout, p in views(make.probs):
        yield Sample(layout, (p,), {"top_p": 0.9} | noise)
    for value in (0.0, 1e4, 6e4, 1e-38, -1.0, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value),), noise)
        yield Sample(f"all {value} limits", (torch.full((2, 64), value),), limits | noise)
    one_nan = with_nan(make.probs(4, 64))
    yield Sample("one NaN", (one_nan,), noise)
    yield Sample("one NaN with limits", (one_nan,), limits | noise)
    zeros = make.probs(4, 64) * torch.tensor([[1], [0], [1], [1]])
    yield Sample("one row of zeros", (zeros,), limits | noise)
    yield Sample("one-hot", (torch.eye(9)[torch.tensor([3, 0, 8])],), noise)
    for dtype in (torch.int32, torch.int64):
        indices = torch.tensor([2, 2, 0, 4, 2, 1], dtype=dtype)
        yield Sample(f"indices {dtype}", (make.probs(5, 33),), {"indices": indices} | noise)
    yield Sample("no indices", (make.probs(5, 33),), {"indices": indices[:0]} | noise)
    yield Sample("strided indices", (make.probs(5, 33),), {"indices": indices[::2]} | noise)


def sample_limits() -> Iterator[Sample]:
    make = Maker(4)
    noise = {"seed": -3, "offset": 0}
    choices = [("top_k", TOP_K, forms(TOP_K_ROWS, torch.int64, torch.int32))]
    choices += [("top_p", TOP_P, forms(TOP_P_ROWS, torch.float32, torch.bfloat16))]
    choices += [("min_p", MIN_P, forms(MIN_P_ROWS, torch.float32, torch.float64))]
    for name, numbers, tensors in choices:
        for value in [*numbers, *tensors]:
            described = f"{name} {describe(value)}"
            yield Sample(described, (make.probs(5, 66),), {name: value} | noise)
            yield Sample(f"{described}, ties", (torch.full((5, 8), 0.125),), {name: value} | noise)
    rows = {"top_k": TOP_K_ROWS, "top_p": TOP_P_ROWS, "min_p": MIN_P_ROWS}
    indices = torch.tensor([2, 0, 2, 1, 2])
    yield Sample("limits of each row", (make.probs(5, 40),), rows | noise)
    yield Sample("limits by output row", (make.probs(3, 40),), rows | noise | {"indices": indices})


def sample_noise() -> Iterator[Sample]:
    make = Maker(5)
    p = make.probs(6, 33)
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
    for number in (0, 1, -1, 2**32, 2**63 - 1, -(2**63)):
        yield Sample(f"seed {number}", (p,), {"seed": number, "offset": 0})
        yield Sample(f"offset {number}", (p,), {"seed": 0, "offset": number})
    yield Sample("seeds", (p,), {"seed": seeds, "offset": 7})
    yield Sample("offsets", (p,), {"seed": 7, "offset": seeds})
    yield Sample("seeds and offsets", (p,), {"seed": seeds, "offset": seeds.flip(0)})
    yield Sample("offset []", (p,), {"seed": seeds, "offset": torch.tensor(2**33 + 1)})
    both = {"seed": seeds[::2], "offset": seeds[1::2]}
    yield Sample("strided seeds", (p,), both | {"indices": torch.tensor([5, 5, 0])})


def sample_refusals() -> Iterator[Refusal]:
    p, noise = torch.ones(4, 7), {"seed": 0, "offset": 0}
    yield Refusal(r"probs must be \[rows, vocab\]; probs is \[7\] float32", (p[0],), noise)
    yield Refusal(r"probs must be \[rows, vocab\]; probs is \[1, 4, 7\] float32", (p[None],), noise)
    yield Refusal(r"probs must have .* at least 1; probs is \[4, 0\] float32", (p[:, :0],), noise)
    yield Refusal(r"probs must be floating point; probs is \[4, 7\] int64", (p.long(),), noise)
    wrong: list[tuple[str, str, Any]] = [
        ("seed", r"seed must have shape \[4\]; seed is \[\] int64", torch.tensor(0)),
        ("seed", r"seed must have shape \[4\]; seed is \[3\] int64", torch.zeros(3).long()),
        ("seed", r"seed must be int64; seed is \[4\] int32", torch.zeros(4).int()),
        ("seed", f"seed must fit in a signed 64-bit integer; seed is {2**63}", 2**63),
        ("offset", r"offset must have shape \[4\]; offset is \[3\] int64", torch.zeros(3).long()),
        ("offset", r"offset must be int64; offset is \[\] int32", torch.tensor(0).int()),
        ("offset", "offset must fit in a signed 64-bit integer", -(2**63) - 1),
        ("top_k", r"top_k must have shape \[4\]; top_k is \[5\] int64", torch.ones(5).long()),
        ("top_k", r"top_k must be int32 or int64; top_k is \[4\] float32", torch.ones(4)),
        ("top_p", r"top_p must have shape \[4\]; top_p is \[4, 1\] float32", torch.ones(4, 1)),
        ("top_p", "top_p must not be NaN", math.nan),
        ("min_p", r"min_p must have shape \[4\]; min_p is \[1\] float32", torch.ones(1)),
        ("min_p", "min_p must not be NaN", math.nan),
        ("indices", r"indices must be int32 or int64; indices is \[4\] float32", torch.ones(4)),
        ("indices", r"indices must have one dimension; indices is \[\] int64", torch.tensor(0)),
    ]
    for name, message, value in wrong:
        yield Refusal(message, (p,), noise | {name: value})
    by_output = {"top_k": torch.ones(4).int(), "indices": torch.tensor([0, 1])}
    yield Refusal(r"top_k must have shape \[2\]; top_k is \[4\] int32", (p,), noise | by_output)


def bitmask_samples() -> Iterator[Sample]:
    make = Maker(6)
    for size in [0, *SIZES]:
        words = -(-size // 32)
        yield Sample(f"3x{size}", (make.logits(3, size), make.bits(3, words)))
    for dtype in (torch.float64, *HALF):
        yield Sample(f"{dtype}", (make.logits(3, 70).to(dtype), make.bits(3, 3)))
    for words in (0, 1, 2):
        yield Sample(f"{words} words of 3", (make.logits(3, 70), make.bits(3, words)))
    for word in (0, 1, -1, INT32_MIN, 2**31 - 1, 0x55555555):
        mask = torch.full((2, 2), word, dtype=torch.int32)
        yield Sample(f"word {word}", (make.logits(2, 50), mask))
    for rows in [(), (0,), (2, 3), (2, 1, 3)]:
        yield Sample(f"rows {rows}", (make.logits(*rows, 40), make.bits(*rows, 2)))
    for layout, x in views(make.logits):
        logits = x.clone() if layout == "expanded" else x
        yield Sample(layout, (logits, make.bits(x.shape[0], -(-x.shape[1] // 32))))
    yield Sample("strided mask", (make.logits(3, 40), make.bits(6, 4)[::2, 1:3]))
    yield Sample("one mask for all", (make.logits(3, 40), make.bits(1, 2).expand(3, 2)))
    for value in (0.0, -0.0, 6e4, math.inf, -math.inf, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value), make.bits(2, 2)))
    for dtype in (torch.int32, torch.int64):
        kwargs = {"indices": torch.tensor([4, 0, 2], dtype=dtype)}
        yield Sample(f"indices {dtype}", (make.logits(5, 40), make.bits(3, 2)), kwargs)
    yield Sample("short mask", (make.logits(5, 40), make.bits(3, 1)), kwargs)
    yield Sample("indices, strided", (make.logits(9, 80)[::2, ::2], make.bits(3, 2)), kwargs)
    kwargs = {"indices": torch.zeros(0, dtype=torch.int32)}
    yield Sample("no indices", (make.logits(5, 40), make.bits(0, 2)), kwargs)


def bitmask_refusals() -> Iterator[Refusal]:
    logits, mask = torch.zeros(4, 40), torch.zeros(4, 2, dtype=torch.int32)
    message = r"logits must be \[\.\.\., vocab\]; logits is \[\] float32"
    yield Refusal(message, (torch.tensor(0.0), mask))
    yield Refusal(r"logits must be floating .*; logits is \[4, 40\] int64", (logits.long(), mask))
    yield Refusal(r"bitmask must be int32; bitmask is \[4, 2\] int64", (logits, mask.long()))
    message = r"bitmask must have shape \[4, 'words'\]; bitmask is \[3, 2\] int32"
    yield Refusal(message, (logits, mask[:3]))
    yield Refusal(r"bitmask must have .*; bitmask is \[2\] int32", (logits, mask[0]))
    message = r"bitmask must have at most ceil\(vocab / 32\) words; bitmask is \[4, 2\]"
    yield Refusal(message, (logits[:, :32], mask))
    two = {"indices": torch.tensor([0, 1])}
    message = r"bitmask must have shape \[2, 'words'\]; bitmask is \[4, 2\] int32"
    yield Refusal(message, (logits, mask), two)
    message = r"logits must be \[rows, vocab\] with indices; logits is \[1, 4, 40\] float32"
    yield Refusal(message, (logits[None], mask[:2]), two)
    message = r"indices must be int32 or int64; indices is \[4\] float32"
    yield Refusal(message, (logits, mask), {"indices": torch.zeros(4)})
    message = r"indices must have one dimension; indices is \[2, 2\] int64"
    yield Refusal(message, (logits, mask), {"indices": torch.zeros(2, 2).long()})


def _rows(x: Tensor) -> np.ndarray:
    """[..., vocab] as float64 [rows, vocab]."""
    return x.double().reshape(math.prod(x.shape[:-1]), x.shape[-1]).numpy()


def _each(value: Any, x: Tensor, rows: int) -> list[Any]:
    """The parameter of each row, rounded to the precision that ``x`` is computed in."""
    if isinstance(value, Tensor):
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
        return _rounded(np.broadcast_to(value.reshape(-1), rows), x)
    return _rounded(np.full(rows, value), x)


def _rounded(values: np.ndarray, x: Tensor) -> list[Any]:
    if values.dtype.kind == "f" and x.dtype != torch.float64:
        values = values.astype(np.float32)
    return values.tolist()


def softmax_oracle(logits: Tensor, *, temperature: Any = 1.0) -> Tensor:
    x = _rows(logits)
    results = np.zeros_like(x)
    for row, t, result in zip(x, _each(temperature, logits, len(x)), results, strict=True):
        top = row.max()
        if np.isnan(row).any() or np.isnan(t) or (t > 0 and top == np.inf):
            result[:] = np.nan
        elif top > -np.inf and t <= 0:
            result[row.tolist().index(top)] = 1
        elif top > -np.inf:
            seen = row > -np.inf
            powers = [math.exp((value - top) / t) for value in row[seen]]
            result[seen] = np.array(powers) / math.fsum(powers)
    return torch.from_numpy(results).reshape(logits.shape)


def drawable(row: np.ndarray, top_k: Any = None, top_p: Any = None, min_p: Any = None) -> list[int]:
    """The ids of the tokens that the limits leave, in descending order."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if min_p is not None:
        limit = min(max(min_p, 0.0), 1.0) * row.max()
        order = [token for token in order if row[token] >= limit]
    if top_k is not None and top_k > 0:
        order = order[:top_k]
    if top_p is not None and top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(row[order])[:-1]])
        order = order[: max(1, int((before < top_p).sum()))]
    return order


def renorm_oracle(limit_name: str, probs: Tensor, limit: Any) -> Tensor:
    p = _rows(probs)
    results = np.zeros_like(p)
    for row, value, result in zip(p, _each(limit, probs, len(p)), results, strict=True):
        if np.isnan(row).any():
            result[:] = np.nan
            continue
        tokens = drawable(row, **{limit_name: value})
        total = math.fsum(row[tokens])
        if total > 0:
            result[tokens] = row[tokens] / total
    return torch.from_numpy(results).reshape(probs.shape)


def top_k_oracle(probs: Tensor, top_k: Any) -> Tensor:
    return renorm_oracle("top_k", probs, top_k)


def top_p_oracle(probs: Tensor, top_p: Any) -> Tensor:
    return renorm_oracle("top_p", probs, top_p)


def min_p_oracle(probs: Tensor, min_p: Any) -> Tensor:
    return renorm_oracle("min_p", probs, min_p)


def philox_oracle(seed: int, offset: int, tokens: np.ndarray) -> np.ndarray:
    """The first word of Philox4x32-10 for each token, with 64-bit unsigned products."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    full = np.full(tokens.shape, offset % 2**64, dtype=np.uint64)
    state = [full & mask, full >> shift, tokens.astype(np.uint64), np.zeros_like(full)]
    key = [seed % 2**32, seed % 2**64 >> 32]
    for _ in range(10):
        first = state[0] * np.uint64(0xD2511F53)
        second = state[2] * np.uint64(0xCD9E8D57)
        state = [
            (second >> shift) ^ state[1] ^ np.uint64(key[0]),
            second & mask,
            (first >> shift) ^ state[3] ^ np.uint64(key[1]),
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return state[0]


def draw_oracle(row: np.ndarray, seed: int, offset: int, **limits: Any) -> int:
    row = np.where(row > 0, row, 0.0)
    tokens = np.array(sorted(t for t in drawable(row, **limits) if row[t] > 0), dtype=np.int64)
    if not len(tokens):
        return 0
    uniform = (philox_oracle(seed, offset, tokens).astype(np.float64) + 0.5) / 2**32
    # The first to arrive of exponential clocks with these rates.
    return int(tokens[(-np.log1p(-uniform) / row[tokens]).argmin()])


def sample_oracle(
    probs: Tensor,
    *,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    seed: Any,
    offset: Any,
    indices: Tensor | None = None,
) -> Tensor:
    p = _rows(probs)
    chosen = range(len(p)) if indices is None else indices.tolist()
    rows = len(chosen)
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    of_rows = {name: _each(v, probs, rows) for name, v in limits.items() if v is not None}
    seeds = seed.tolist() if isinstance(seed, Tensor) else [seed + row for row in range(rows)]
    offsets = _each(offset, probs, rows)
    ids = [
        draw_oracle(p[i], seeds[r], offsets[r], **{name: v[r] for name, v in of_rows.items()})
        for r, i in enumerate(chosen)
    ]
    return torch.tensor(ids, dtype=torch.int64)


def bitmask_oracle(logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None) -> Tensor:
    result = logits.double().clone()
    vocab, words = logits.shape[-1], bitmask.shape[-1]
    rows = result.reshape(math.prod(logits.shape[:-1]), vocab)
    masks = bitmask.reshape(math.prod(bitmask.shape[:-1]), words).tolist()
    targets = range(len(rows)) if indices is None else indices.tolist()
    for target, mask in zip(targets, masks, strict=True):
        # Bit t of one long unsigned integer is that of token t.
        number = sum((word % 2**32) << 32 * i for i, word in enumerate(mask))
        for token in range(vocab):
            if not number >> token & 1:
                rows[target, token] = -math.inf
    return rows.reshape(logits.shape)


RECORDS = [
    Record("softmax", softmax_samples, softmax_refusals, softmax_oracle),
    Record("top_k_renorm", top_k_samples, top_k_refusals, top_k_oracle),
    Record("top_p_renorm", top_p_samples, top_p_refusals, top_p_oracle),
    Record("min_p_renorm", min_p_samples, min_p_refusals, min_p_oracle),
    Record("sample", sample_samples, sample_refusals, sample_oracle),
    Record("apply_token_bitmask_", bitmask_samples, bitmask_refusals, bitmask_oracle),
]
