"""Record of the draw of a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.checks import describe
from hal.testing.parts import cut, spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.renorm import (
    CLOSE_MASS,
    FAR_TOP_K,
    MIN_P,
    MIN_P_ROWS,
    TOP_K,
    TOP_K_ROWS,
    TOP_P,
    TOP_P_ROWS,
    drawable,
    forms,
)
from hal.testing.records.vocab import HALF, SIZES, Maker, each_row, rows_of, views, with_nan

# With offset 0 the first three draw from the tail below; for the last the word of a token is
# 2**32 - 52, a uniform number that float32 rounds to 1.
TAIL_SEEDS = [5532, 9537, 26289]
LAST_SEED, LAST_TOKEN = 678, 6854


def sample_samples() -> Iterator[Sample]:
    yield from sample_layouts()
    yield from sample_limits()
    yield from sample_noise()
    yield from sample_mass()
    yield from sample_long()


def sample_layouts() -> Iterator[Sample]:
    make = Maker(3)
    noise = {"seed": 1, "offset": 2}
    limits = {"top_k": 5, "top_p": 0.9, "min_p": 0.05}
    for size in SIZES:
        yield Sample(f"5x{size}", (make.probs(5, size),), noise)
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
    # Enough rows that a limit of another row shows in some.
    indices = torch.tensor([2, 0, 2, 1, 2]).repeat(12)
    many = {name: limits.repeat(12) for name, limits in rows.items()}
    yield Sample("limits of each row", (make.probs(5, 40),), rows | noise)
    yield Sample("limits by output row", (make.probs(3, 40),), many | noise | {"indices": indices})


def sample_mass() -> Iterator[Sample]:
    """What comes behind a mass of 1, and what only float64 tells apart."""
    make = Maker(6)
    noise = {"seed": 3, "offset": 1}
    for value in (1.0, 1, 1.5):
        args = (make.probs(40, 66) * 96,)
        yield Sample(f"top_p {value} beyond a mass of 1", args, {"top_p": value} | noise)
    # Beside 1 each of the tail is less than half of float32's last place; the seeds draw from it.
    tail = torch.full((1, 4097), 2.0**-25)
    tail[0, 0] = 1
    kwargs = {"seed": torch.tensor(TAIL_SEEDS), "offset": 0, "top_p": 1.0}
    kwargs["indices"] = torch.zeros(len(TAIL_SEEDS), dtype=torch.int64)
    yield Sample("a tail behind a mass of 1", (tail,), kwargs)
    alone = torch.zeros(1, LAST_TOKEN + 1)
    alone[0, -1] = 0.5
    kwargs = {"seed": torch.tensor([LAST_SEED]), "offset": 0}
    yield Sample("a uniform number that rounds to 1", (alone,), kwargs)
    many = {"indices": torch.zeros(60, dtype=torch.int64)} | noise
    yield Sample("a close call of float64", (CLOSE_MASS,), {"top_p": 0.7} | many)
    kwargs = {"top_k": FAR_TOP_K.repeat(12), "indices": torch.arange(5).repeat(12)}
    yield Sample("top_k of each beyond 32 bits", (make.probs(5, 40),), kwargs | noise)
    for dtype in (torch.float64, *HALF):
        limits = {"top_p": TOP_P_ROWS.to(dtype), "min_p": MIN_P_ROWS.to(dtype)}
        yield Sample(f"limits {dtype}", (make.probs(5, 40),), limits | noise)


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


def sample_long() -> Iterator[Sample]:
    """Rows that kernels take in parts; half of what is drawn without limits is beyond these."""
    make = Maker(7)
    noise = {"seed": 4, "offset": 3}
    limits: list[tuple[str, dict[str, Any]]] = [
        ("top_p", {"top_p": 0.5}),
        ("top_p and min_p", {"top_p": 0.5, "min_p": 0.02}),
        ("top_p of each", {"top_p": TOP_P_ROWS[:4]}),
        ("top_k and top_p", {"top_k": 40, "top_p": 0.5}),
    ]
    for name, given in limits:
        yield Sample(f"long rows, {name}", (make.probs(4, 4112),), given | noise)
    indices = torch.tensor([2, 0, 2, 1, 0, 2])
    given = {"top_p": 0.75, "indices": indices}
    yield Sample("long rows of indices", (make.probs(3, 8201),), given | noise)


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
        ("seed", f"seed must fit in a signed 64-bit integer; found {2**63}", 2**63),
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


def philox_oracle(seed: int, offset: int, tokens: np.ndarray) -> np.ndarray:
    """The word of Philox4x32-10 for each token, four to a call, with 64-bit unsigned products."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    full = np.full(tokens.shape, offset % 2**64, dtype=np.uint64)
    state = [full & mask, full >> shift, (tokens // 4).astype(np.uint64), np.zeros_like(full)]
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
    return np.choose(tokens % 4, state)


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
    p = rows_of(probs)
    chosen = range(len(p)) if indices is None else indices.tolist()
    rows = len(chosen)
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    of_rows = {name: each_row(v, probs, rows) for name, v in limits.items() if v is not None}
    seeds = seed.tolist() if isinstance(seed, Tensor) else [seed + row for row in range(rows)]
    offsets = each_row(offset, probs, rows)
    ids = [
        draw_oracle(p[i], seeds[r], offsets[r], **{name: v[r] for name, v in of_rows.items()})
        for r, i in enumerate(chosen)
    ]
    return torch.tensor(ids, dtype=torch.int64)


def sample_parts(given: dict[str, Any]) -> Iterator[Part]:
    """Parameters follow the output row; a seed that is a number counts the rows on from itself."""
    seed, chosen = given["seed"], "probs" if given["indices"] is None else "indices"
    names = [chosen, "top_k", "top_p", "min_p", "seed", "offset"]
    for rows in spans(len(given[chosen])):
        part = cut(given, names, rows)
        if isinstance(seed, int):
            part["seed"] = (seed + rows.start + 2**63) % 2**64 - 2**63
        yield Part(part, (rows,))


RECORDS = [
    Record(
        "sample",
        sample_samples,
        sample_refusals,
        sample_oracle,
        parts=sample_parts,
        far=("probs",),
        free=("seed", "offset"),
    ),
]
