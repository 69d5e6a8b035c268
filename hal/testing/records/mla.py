"""Records of the attention over latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws

HALVES = (torch.float16, torch.bfloat16)
LENGTHS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 257]
WIDTHS = [(1, 0), (1, 1), (2, 3), (7, 2), (16, 0), (31, 8), (33, 7), (64, 16), (65, 32), (129, 31)]


class Maker(Draws):
    """Draws the arguments of a call."""

    def call(
        self,
        lens: tuple[int, ...] = (5, 0, 9, 1, 33),
        heads: int = 3,
        widths: tuple[int, int] = (32, 8),
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        index: torch.dtype = torch.int32,
    ) -> list[Any]:
        """What is not to be used is NaN, -1 or out of range."""
        needed = [-(-length // block_size) for length in lens]
        order = torch.randperm(sum(needed) + 2, generator=self.generator).tolist()
        table = torch.full((len(lens), max(needed, default=0) + 1), -1, dtype=index)
        table[:, -1] = 2**31 - 1
        kv_cache = torch.full((len(order), block_size, sum(widths)), math.nan)
        for row, length in enumerate(lens):
            for start in range(0, length, block_size):
                table[row, start // block_size] = block = order.pop()
                filled = min(block_size, length - start)
                kv_cache[block, :filled] = self(filled, sum(widths))
        queries = (self(len(lens), heads, width, dtype=dtype) for width in widths)
        return [*queries, kv_cache.to(dtype), table, torch.tensor(lens, dtype=index)]


def samples() -> Iterator[Sample]:
    make = Maker(0)
    for name, args, *scale in cases(make):
        yield Sample(name, tuple(args), {"scale": scale[0] if scale else 0.15})


def of_deepseek(make: Maker) -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, *HALVES):
        yield f"of DeepSeek, {dtype}", make.call(heads=16, widths=(512, 64), dtype=dtype), 192**-0.5
    # Some kernels have blocks of 64 alone.
    for dtype in HALVES:
        args = make.call((5, 0, 130), 16, (512, 64), 64, dtype)
        yield f"of DeepSeek in blocks of 64, {dtype}", args, 192**-0.5


def cases(make: Maker) -> Iterator[tuple[Any, ...]]:
    for length in LENGTHS:
        yield f"{length} rows", make.call((length, 2))
    for widths in WIDTHS:
        for dtype in (torch.float32, *HALVES):
            yield f"{widths} {dtype}", make.call(widths=widths, dtype=dtype)
    yield from of_deepseek(make)
    for size in (1, 2, 3, 7, 16, 33, 64, 128):
        yield f"blocks of {size}", make.call(block_size=size)
    for heads in (0, 1, 2, 7, 128):
        yield f"{heads} heads", make.call(heads=heads)
    for lens in [(), (0,), (0, 0), (129,), (1,) * 33]:
        yield f"lengths {lens[:5]}, {len(lens)} of them", make.call(lens)
    for scale in (0.0, 1.0, -0.3, 8.0):
        yield f"scale {scale}", make.call(), scale
    yield "float64", make.call(dtype=torch.float64)
    yield "int64", make.call(index=torch.int64)
    for i in (3, 4):
        args = make.call()
        args[i] = args[i].long()
        yield f"argument {i} alone int64", args
    yield from views(make)
    yield from values(make)


def views(make: Maker) -> Iterator[tuple[Any, ...]]:
    q_nope, q_rope, kv_cache, table, lens = make.call()
    rest = [kv_cache, table, lens]
    joined = torch.cat((q_nope, q_rope), dim=-1)
    yield "parts of one query", [joined[..., :32], joined[..., 32:], *rest]
    first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q_nope, q_rope)]
    yield "heads first", [*first, *rest]
    yield "one query expanded", [q_nope[:1].expand(5, 3, 32), q_rope[:, :1].expand(5, 3, 8), *rest]
    yield "every other column", [torch.stack((q_nope, q_nope), -1)[..., 0], q_rope, *rest]
    moved = torch.cat((kv_cache.new_zeros(3), kv_cache.flatten()))[3:].view(kv_cache.shape)
    yield "offset by three elements", [q_nope, q_rope, moved, table, lens]
    padded = torch.cat((kv_cache, torch.full_like(kv_cache, math.nan)), dim=-1)[..., :40]
    yield "rows of a wider cache", [q_nope, q_rope, padded, table, lens]
    columns = kv_cache.transpose(1, 2).contiguous().transpose(1, 2)
    yield "block size last in memory", [q_nope, q_rope, columns, table, lens]
    wide_table = torch.cat((table, table), dim=1)[:, : table.shape[1]]
    yield "part of a wider table", [q_nope, q_rope, kv_cache, wide_table, lens]
    yield "every other length", [*(q_nope, q_rope, kv_cache, table), lens.repeat_interleave(2)[::2]]
    yield "a table of exactly the blocks", [q_nope, q_rope, kv_cache, table[:, :-1], lens]
    yield "a table without columns", [q_nope, q_rope, kv_cache, table[:, :0], lens * 0]
    yield "a cache without blocks", [q_nope, q_rope, kv_cache[:0], table, lens * 0]


def values(make: Maker) -> Iterator[tuple[Any, ...]]:
    q_nope, q_rope, kv_cache, table, lens = make.call()
    rest = [table, lens]
    yield "all 0", [q_nope * 0, q_rope * 0, kv_cache * 0, *rest]
    yield "ties", [q_nope * 0 + 2, q_rope * 0, kv_cache.nan_to_num() * 0 + 3, *rest]
    for value in (1e4, 1e-38, 1e30):
        yield f"latents of {value}", [q_nope / value, q_rope, kv_cache.sign() * value, *rest]
    # Integers, so that the scores are exact: rounding scores of 1e4 would hide everything else.
    exact = [q_nope * 0 + 50, q_rope * 0 + 50, kv_cache.sign(), *rest]
    yield "scores of 1e3", exact, 1.0
    for name, places in [("q_nope", [0]), ("q_rope", [1]), ("both", [0, 1])]:
        queries = [q_nope.clone(), q_rope.clone()]
        for place in places:
            queries[place][2, 1, 3] = math.nan
        yield f"NaN in {name}", [*queries, kv_cache, *rest]
    for column in (3, 37):
        broken = kv_cache.clone()
        broken[table[4, 2], 1, column] = math.nan
        yield f"NaN in column {column}", [q_nope, q_rope, broken, *rest]
    yield "everything NaN", [q_nope * math.nan, q_rope, kv_cache * math.nan, *rest]


def refusals() -> Iterator[Refusal]:
    q_nope, q_rope, kv_cache, table, lens = Maker(1).call()

    def refuse(message: str, **changed: Any) -> Refusal:
        given: dict[str, Any] = {"q_nope": q_nope, "q_rope": q_rope, "kv_cache": kv_cache}
        given |= {"block_table": table, "seq_lens": lens, "scale": 0.1}
        return Refusal(message, (), given | changed)

    yield refuse(
        r"q_nope must be floating point; q_nope is \[5, 3, 32\] int64", q_nope=q_nope.long()
    )
    message = r"q_nope must be \[sequences, heads, latent_dim\], latent_dim at least 1; q_nope is "
    yield refuse(rf"{message}\[5, 96\] float32", q_nope=q_nope.flatten(1))
    yield refuse(rf"{message}\[5, 3, 0\] float32", q_nope=q_nope[..., :0])
    message = r"q_rope must be float32; q_rope is \[5, 3, 8\] float16"
    yield refuse(message, q_rope=q_rope.half())
    message = (
        r"q_rope must be \[sequences, heads, rope_dim\], with the sequences and heads of q_nope; "
    )
    ending = r"float32, q_nope is \[5, 3, 32\] float32"
    yield refuse(rf"{message}q_rope is \[5, 2, 8\] {ending}", q_rope=q_rope[:, 1:])
    yield refuse(rf"{message}q_rope is \[5, 24\] {ending}", q_rope=q_rope.flatten(1))
    message = r"kv_cache must be float32; kv_cache is \[17, 4, 40\] "
    yield refuse(f"{message}bfloat16", kv_cache=kv_cache.bfloat16())
    yield refuse(f"{message}float8_e4m3fn", kv_cache=kv_cache.to(torch.float8_e4m3fn))
    message = (
        r"kv_cache must be \[blocks, block_size, 40\], as wide as q_nope and q_rope, "
        r"block_size at least 1; kv_cache is "
    )
    yield refuse(rf"{message}\[17, 4, 39\] float32", kv_cache=kv_cache[..., 1:])
    yield refuse(rf"{message}\[17, 4, 1, 40\] float32", kv_cache=kv_cache[:, :, None])
    yield refuse(rf"{message}\[17, 0, 40\] float32", kv_cache=kv_cache[:, :0])
    message = (
        r"block_table must be \[5, blocks\], a row for each sequence; block_table is \[4, 10\]"
    )
    yield refuse(message, block_table=table[1:])
    message = r"block_table must be int32 or int64; block_table is \[5, 10\] float32"
    yield refuse(message, block_table=table.float())
    message = r"seq_lens must have shape \[5\]; seq_lens is \[4\] int32"
    yield refuse(message, seq_lens=lens[1:])
    message = r"seq_lens must be int32 or int64; seq_lens is \[5\] bool"
    yield refuse(message, seq_lens=lens.bool())


def oracle(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sequence by sequence, head by head and row by row."""
    latent, rope, pages = (x.double().numpy() for x in (q_nope, q_rope, kv_cache))
    size, width = pages.shape[1], latent.shape[2]
    out, lse = np.zeros(latent.shape), np.full(latent.shape[:2], -np.inf)
    for b, (length, blocks) in enumerate(zip(seq_lens.tolist(), block_table.tolist(), strict=True)):
        rows = [pages[blocks[j // size], j % size] for j in range(length)]
        for h in range(latent.shape[1] if length else 0):
            scores = [
                scale * (row[:width] @ latent[b, h] + row[width:] @ rope[b, h]) for row in rows
            ]
            top = max(scores)
            powers = [math.exp(float(score) - float(top)) for score in scores]
            total = math.fsum(powers)
            lse[b, h] = top + math.log(total)
            out[b, h] = sum(p / total * row[:width] for p, row in zip(powers, rows, strict=True))
    return torch.from_numpy(out), torch.from_numpy(lse)


RECORDS = [
    Record(
        "mla_decode",
        samples,
        refusals,
        oracle,
        rows=("q_nope", "q_rope", "block_table", "seq_lens"),
        far=("q_nope", "q_rope", "kv_cache"),
    )
]
