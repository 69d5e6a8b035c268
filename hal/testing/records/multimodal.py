"""Record of the rotary position embedding with several positions for a token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.rotary import BF16, DOUBLE, FLOAT, HALF, ROTARY_GATES, Heads, cache, plain

# With three positions one rounding gives at most 2.32e-4 and 1.99e-3.
MULTIMODAL_GATES = {**ROTARY_GATES, BF16: 2.05e-3}


def multimodal_samples() -> Iterator[Sample]:
    draw = Heads()
    for is_neox in (True, False):
        for name, args in multimodal_cases(draw):
            layout = "neox" if is_neox else "interleaved"
            yield Sample(f"{layout}, {name}", args, {"is_neox": is_neox})
    _, query, key = draw.call(5, 4, 2, 16)
    args = (draw.positions(15).view(3, 5), query, key, cache(16), (2, 3, 3))
    yield Sample("defaults", args)
    yield Sample("sections in a list", (*args[:4], [2, 3, 3]))
    yield Sample("sections by name", args[:4], {"sections": (2, 3, 3)})


def multimodal_cases(draw: Heads) -> Iterator[tuple[str, tuple[object, ...]]]:
    for rotary_dim, sections in [
        *((128, (16, 24, 24)), (128, (1,) * 60 + (4,)), (64, (8, 12, 12)), (80, (10, 15, 15))),
        *((6, (1, 1, 1)), (6, (3, 0, 0)), (6, (0, 3, 0)), (6, (0, 0, 3)), (10, (0, 2, 3))),
        *((8, (4,)), (8, (1, 3)), (8, (1, 0, 1, 0, 0, 2)), (14, (1,) * 7), (2, (0, 0, 1))),
    ]:
        for dtype in (FLOAT, HALF, BF16):
            # As many tokens as it takes for the errors of one rounding to average out.
            _, *heads = draw.call(17, 3, 2, rotary_dim, dtype)
            args = (draw.positions(51).view(3, 17), *heads, cache(rotary_dim), sections)
            yield f"{rotary_dim} {str(sections)[:30]} {dtype}", args
    for head_dim, rotary_dim in [(7, 6), (128, 64), (96, 24), (1, 0), (8, 0)]:
        third = rotary_dim // 6
        sections = (rotary_dim // 2 - 2 * third, third, third)
        _, *heads = draw.call(3, 3, 1, head_dim)
        args = (draw.positions(9).view(3, 3), *heads, cache(rotary_dim), sections)
        yield f"{rotary_dim} of {head_dim} turn", args
    for tokens, heads, key_heads in [(0, 4, 2), (1, 1, 1), (2, 0, 1), (2, 3, 0), (129, 7, 2)]:
        _, *pair = draw.call(tokens, heads, key_heads, 8)
        args = (draw.positions(3 * tokens).view(3, tokens), *pair, cache(8), (1, 2, 1))
        yield f"{tokens} tokens, {heads}, {key_heads} heads", args
    yield from multimodal_forms(draw)


def multimodal_forms(draw: Heads) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Dtypes, views and values at one size."""
    positions, sections, table = draw.positions(15).view(3, 5), (2, 3, 3), cache(16)
    _, query, key = draw.call(5, 3, 2, 16)
    yield "no key", (positions, query, None, table, sections)
    yield "int32", (positions.int(), query, key, table, sections)
    yield "float64", (positions, query.double(), key.double(), cache(16, DOUBLE), sections)
    yield "dtypes of their own", (positions, query.bfloat16(), key.double(), table, sections)
    yield "bfloat16 cache", (positions, query.half(), key, cache(16, BF16), sections)
    yield "tokens before axes", (positions.t().contiguous().t(), query, key, table, sections)
    every_other = draw.positions(60).view(6, 10)[::2, ::2]
    yield "every other position", (every_other, query, key, table, sections)
    yield "text", (positions[:1].expand(3, 5), query, key, table, sections)
    packed = draw(5, 8, 16, dtype=BF16)
    yield "packed projections", (positions, packed[:, :4], packed[:, 4:6], table, sections)
    wide_heads = draw(4, 5, 16).transpose(0, 1), draw(5, 2, 24)[..., 7:23]
    yield "strided heads", (positions, *wide_heads, table, sections)
    yield "expanded", (positions, query[:, :1].expand(5, 3, 16), key, table, sections)
    yield "cache by columns", (positions, query, key, table.t().contiguous().t(), sections)
    for value in (0.0, 1e4, 1e-38, math.inf, math.nan):
        args = (positions, torch.full((5, 2, 16), value), None, table, sections)
        yield f"all {value}", args
    spoiled = query.clone()
    spoiled[1, 1, 5] = math.nan
    yield "one NaN", (positions, spoiled, key, table, sections)
    broken = table.clone()
    broken[positions[1, 2], 3] = math.nan
    yield "NaN in the cache", (positions, query, key, broken, sections)


def multimodal_refusals() -> Iterator[Refusal]:
    _, query, key = plain()
    positions, sections = torch.zeros(3, 5, dtype=torch.int64), (1, 2, 1)
    args = positions, query, key, cache(8)
    message = r"positions must have shape \[3, 5\]; positions is "
    for wrong, shape in ((positions[0], r"\[5\]"), (positions[:2], r"\[2, 5\]")):
        yield Refusal(f"{message}{shape} int64", (wrong, *args[1:], sections))
    yield Refusal(rf"{message}\[5, 3\] int64", (positions.t(), *args[1:], sections))
    message = r"positions must be int32 or int64; positions is \[3, 5\] float32"
    yield Refusal(message, (positions.float(), *args[1:], sections))
    message = "sections must be one or more numbers of pairs, none negative; sections is "
    yield Refusal(rf"{message}\(\)", (*args, ()))
    yield Refusal(rf"{message}\(5, -2, 1\)", (*args, (5, -2, 1)))
    message = "sections must add up to half the last dimension of cos_sin_cache; sections is "
    ending = r", cos_sin_cache is \[64, 8\] float32"
    yield Refusal(rf"{message}\(2, 3, 3\){ending}", (*args, (2, 3, 3)))
    yield Refusal(rf"{message}\(1, 1, 1\){ending}", (*args, (1, 1, 1)))
    message = "cos_sin_cache must have an even last dimension, at most the head_dim of query; "
    yield Refusal(message, (*args[:3], cache(10), (1, 2, 2)))
    message = r"query must be \[tokens, heads, head_dim\]; query is \[5, 32\] float32"
    yield Refusal(message, (positions, query.view(5, 32), key, cache(8), sections))
    message = (
        r"key must be \[tokens, key heads, head_dim\], with the tokens and head_dim of query; "
    )
    yield Refusal(message, (positions, query, key[:4], cache(8), sections))


def multimodal_oracle(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    sections: Sequence[int],
    *,
    is_neox: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Token by token and pair by pair."""
    axis_of = [s % 3 for s, pairs in enumerate(sections) for _ in range(pairs)]
    half, places, table = len(axis_of), positions.tolist(), cos_sin_cache.double()

    def rotated(x: Tensor) -> Tensor:
        x = x.double().clone()
        for token in range(len(x)):
            for i, axis in enumerate(axis_of):
                first, second = (i, i + half) if is_neox else (2 * i, 2 * i + 1)
                row = table[places[axis][token]]
                cos, sin = row[i].item(), row[half + i].item()
                a, b = x[token, :, first].clone(), x[token, :, second].clone()
                x[token, :, first] = a * cos - b * sin
                x[token, :, second] = a * sin + b * cos
        return x

    return rotated(query), None if key is None else rotated(key)


def multimodal_parts(given: dict[str, Any]) -> Iterator[Part]:
    """Tokens are the second dimension of the positions."""
    for rows in spans(len(given["query"])):
        part = cut(given, ["query", "key"], rows) | {"positions": given["positions"][:, rows]}
        yield Part(part, (rows, slice(0, 0) if given["key"] is None else rows))


RECORDS = [
    Record(
        "multimodal_rotary_embedding",
        multimodal_samples,
        multimodal_refusals,
        multimodal_oracle,
        MULTIMODAL_GATES,
        parts=multimodal_parts,
        far=("query", "key"),
    ),
]
