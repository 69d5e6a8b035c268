"""Record of the rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hal.testing.record import GATES, Record, Refusal, Sample
from hal.testing.records.draws import Draws

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
POSITIONS = 64
# One rounding gives at most 2.22e-4 and 1.82e-3 on these samples. A cache cast to the heads' dtype
# reaches 2.7e-4 and 2.4e-3, and rounded products 3.4e-4 and 2.6e-3: most of that would pass GATES.
ROTARY_GATES = {**GATES, HALF: 2.4e-4, BF16: 1.95e-3}


def cache(rotary_dim: int, dtype: torch.dtype = FLOAT, positions: int = POSITIONS) -> Tensor:
    """The cosines and sines that models are trained with, base 10000."""
    rates = 10000.0 ** -(torch.arange(0, rotary_dim, 2, dtype=DOUBLE) / max(rotary_dim, 1))
    angles = torch.arange(positions, dtype=DOUBLE)[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(dtype)


class Heads(Draws):
    """Draws heads and positions."""

    def positions(self, tokens: int, below: int = POSITIONS) -> Tensor:
        return self.integers(0, below, tokens)

    def call(
        self, tokens: int, heads: int, key_heads: int, head_dim: int, dtype: torch.dtype = FLOAT
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = self(tokens, heads, head_dim, dtype=dtype)
        return self.positions(tokens), query, self(tokens, key_heads, head_dim, dtype=dtype)


def samples() -> Iterator[Sample]:
    for is_neox in (True, False):
        layout = "neox" if is_neox else "interleaved"
        for case in cases(Heads()):
            kwargs = {"is_neox": is_neox, **case.kwargs}
            yield Sample(f"{layout}, {case.name}", case.args, kwargs)
    positions, query, key = Heads().call(5, 4, 2, 16)
    yield Sample("defaults", (positions, query, key, cache(16)))
    # As many rows as it takes, all in one place.
    large = torch.tensor([[0.6, 0.8]]).half().expand(2**31 + POSITIONS, 2)
    last = torch.full((5,), 2**31 - 1, dtype=torch.int32)
    kwargs = {"offsets": torch.arange(1, 6, dtype=torch.int32)}
    yield Sample("positions and offsets whose sum is beyond", (last, query, key, large), kwargs)


def cases(draw: Heads) -> Iterator[Sample]:
    for head_dim in (2, 6, 8, 16, 34, 64, 80, 96, 128, 192, 256):
        for dtype in (FLOAT, HALF, BF16):
            yield Sample(
                f"head_dim {head_dim} {dtype}",
                (*draw.call(3, 4, 2, head_dim, dtype), cache(head_dim)),
            )
    for head_dim, rotary_dim in [(128, 64), (96, 24), (7, 2), (7, 6), (1, 0), (8, 0), (576, 64)]:
        for dtype in (FLOAT, BF16):
            args = (*draw.call(3, 3, 1, head_dim, dtype), cache(rotary_dim))
            yield Sample(f"{rotary_dim} of {head_dim} turn, {dtype}", args)
    sizes = [(0, 4, 2), (1, 1, 1), (7, 1, 3), (2, 0, 1), (2, 3, 0), (129, 7, 2), (33, 1, 9)]
    for tokens, heads, key_heads in sizes:
        yield Sample(
            f"{tokens} tokens, {heads}, {key_heads} heads",
            (*draw.call(tokens, heads, key_heads, 8), cache(8)),
        )
    yield Sample("no tokens, empty cache", (*draw.call(0, 4, 2, 8), cache(8, positions=0)))
    yield from dtypes(draw)
    yield from offsets(draw)
    yield from views(draw)
    yield from values(draw)


def dtypes(draw: Heads) -> Iterator[Sample]:
    for dtype in (FLOAT, HALF, BF16, DOUBLE):
        for cache_dtype in (HALF, BF16, DOUBLE):
            args = (*draw.call(5, 3, 2, 32, dtype), cache(32, cache_dtype))
            yield Sample(f"{dtype} heads, {cache_dtype} cache", args)
    positions, query, key = draw.call(5, 3, 2, 32)
    yield Sample(
        "float64 key beside bfloat16 query",
        (positions, query.bfloat16(), key.double(), cache(32, DOUBLE)),
    )
    yield Sample("float16 key beside float32 query", (positions, query, key.half(), cache(32)))
    yield Sample("no key", (positions, query, None, cache(32)))
    yield Sample("no key, bfloat16", (positions, query.bfloat16(), None, cache(32)))
    yield Sample("int32 positions", (positions.int(), query, key, cache(32)))


def offsets(draw: Heads) -> Iterator[Sample]:
    half = POSITIONS // 2
    for dtype in (torch.int32, torch.int64):
        for offset_dtype in (torch.int32, torch.int64):
            positions, shift = draw.positions(5, half), draw.positions(5, half)
            args = (positions.to(dtype), draw(5, 3, 16), draw(5, 2, 16), cache(16))
            yield Sample(
                f"{dtype} positions, {offset_dtype} offsets",
                args,
                {"offsets": shift.to(offset_dtype)},
            )
    positions = draw.positions(5, half) + half
    heads = draw(5, 3, 16), draw(5, 2, 16)
    yield Sample(
        "negative offsets", (positions, *heads, cache(16)), {"offsets": -draw.positions(5, half)}
    )
    far = 2**40
    yield Sample(
        "positions beyond 32 bits, brought back",
        (positions + far, *heads, cache(16)),
        {"offsets": torch.full((5,), -far)},
    )
    yield Sample(
        "one offset expanded",
        (positions, *heads, cache(16)),
        {"offsets": torch.tensor([-3]).expand(5)},
    )


def views(draw: Heads) -> Iterator[Sample]:
    positions, table = draw.positions(5), cache(16)
    packed = draw(5, 8, 16, dtype=BF16)
    yield Sample("packed projections", (positions, packed[:, :4], packed[:, 4:6], table))
    yield Sample(
        "heads before tokens", (positions, draw(4, 5, 16).transpose(0, 1), draw(5, 2, 16), table)
    )
    yield Sample(
        "key at another head stride", (positions, draw(5, 4, 16), draw(5, 2, 24)[..., 8:], table)
    )
    yield Sample(
        "tail of wider heads",
        (positions, draw(5, 4, 48)[..., 31:47], draw(5, 1, 48)[..., 1:17], table),
    )
    yield Sample(
        "transposed heads",
        (positions, draw(5, 16, 4).transpose(1, 2), draw(16, 2, 5).permute(2, 1, 0), table),
    )
    yield Sample(
        "every other element", (positions, draw(5, 4, 32)[..., ::2], draw(10, 2, 16)[::2], table)
    )
    yield Sample(
        "expanded heads",
        (positions, draw(5, 1, 16).expand(5, 4, 16), draw(1, 2, 16).expand(5, 2, 16), table),
    )
    yield Sample(
        "offset by one element",
        (positions, draw(321)[1:].view(5, 4, 16), draw(161)[1:].view(5, 2, 16), table),
    )
    heads = draw(5, 4, 16), draw(5, 2, 16)
    yield Sample("every other position", (draw.positions(10)[::2], *heads, table))
    yield Sample("one position expanded", (torch.tensor([7]).expand(5), *heads, table))
    yield Sample("cache within a wider one", (positions, *heads, cache(16).repeat(1, 2)[:, 16:]))
    yield Sample("cache by columns", (positions, *heads, table.t().contiguous().t()))
    yield Sample(
        "every other row of the cache", (positions, *heads, cache(16, positions=2 * POSITIONS)[::2])
    )


def values(draw: Heads) -> Iterator[Sample]:
    positions, table = torch.tensor([0, 1, 63]), cache(16)
    for value in (0.0, 1e4, 1e-38, math.inf, -math.inf, math.nan):
        yield Sample(f"all {value}", (positions, torch.full((3, 2, 16), value), None, table))
    yield Sample(
        "6e4 in float16", (positions, torch.full((3, 2, 16), 6e4, dtype=HALF), None, table)
    )
    for value in (math.nan, math.inf):
        for place in (5, 15):
            query = draw(3, 2, 16)
            query[1, 1, place] = value
            yield Sample(f"{value} at {place}", (positions, query, draw(3, 1, 16), table))
            yield Sample(
                f"{value} at {place}, partial", (positions, query, draw(3, 1, 16), cache(8))
            )
    broken = table.clone()
    broken[1, 3] = math.nan
    yield Sample("NaN in the cache", (positions, draw(3, 2, 16), draw(3, 1, 16), broken))
    yield Sample(
        "first and last position", (torch.tensor([0, 0, 63]), draw(3, 2, 16), draw(3, 1, 16), table)
    )


def refusals() -> Iterator[Refusal]:
    yield from head_refusals()
    yield from position_refusals()
    args = plain()
    message = "cos_sin_cache must have an even last dimension, at most the head_dim of query; "
    for width in (7, 10):
        ending = rf"cos_sin_cache is \[16, {width}\] float32, query is \[5, 4, 8\] float32"
        yield Refusal(message + ending, (*args, torch.zeros(16, width)))
    message = r"cos_sin_cache must be \[max_position, rotary_dim\]; cos_sin_cache is "
    yield Refusal(message + r"\[8\] float32", (*args, torch.zeros(8)))
    yield Refusal(message + r"\[16, 2, 4\] float32", (*args, torch.zeros(16, 2, 4)))
    message = r"cos_sin_cache must be floating point; cos_sin_cache is \[64, 8\] int64"
    yield Refusal(message, (*args, cache(8, torch.int64)))


def plain() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(5, dtype=torch.int64), torch.zeros(5, 4, 8), torch.zeros(5, 2, 8)


def head_refusals() -> Iterator[Refusal]:
    positions, query, key = plain()
    message = r"query must be \[tokens, heads, head_dim\]; query is "
    yield Refusal(message + r"\[5, 32\] float32", (positions, query.view(5, 32), key, cache(8)))
    yield Refusal(message + r"\[1, 5, 4, 8\] float32", (positions, query[None], key, cache(8)))
    message = r"query must be floating point; query is \[5, 4, 8\] int32"
    yield Refusal(message, (positions, query.int(), key, cache(8)))
    message = r"key must be floating point; key is \[5, 2, 8\] bool"
    yield Refusal(message, (positions, query, key.bool(), cache(8)))
    message = (
        r"key must be \[tokens, key heads, head_dim\], with the tokens and head_dim of query; "
    )
    for wrong in (key.view(5, 16), key[:4], key[..., :6]):
        found = str(list(wrong.shape)).replace("[", r"\[")
        ending = rf"key is {found} float32, query is \[5, 4, 8\] float32"
        yield Refusal(message + ending, (positions, query, wrong, cache(8)))


def position_refusals() -> Iterator[Refusal]:
    positions, query, _ = plain()
    args = query, None, cache(8)
    message = r"positions must be int32 or int64; positions is \[5\] "
    yield Refusal(message + "int16", (positions.short(), *args))
    yield Refusal(message + "float32", (positions.float(), *args))
    message = r"positions must have shape \[5\]; positions is "
    yield Refusal(message + r"\[4\] int64", (positions[:4], *args))
    yield Refusal(message + r"\[1, 5\] int64", (positions[None], *args))
    yield Refusal(message + r"\[\] int64", (positions[0], *args))
    message = r"offsets must have shape \[5\]; offsets is \[1\] int64"
    yield Refusal(message, (positions, *args), {"offsets": positions[:1]})
    message = r"offsets must be int32 or int64; offsets is \[5\] uint8"
    yield Refusal(message, (positions, *args), {"offsets": positions.byte()})


def oracle(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    shifts = [0] * len(positions) if offsets is None else offsets.tolist()
    places = [position + shift for position, shift in zip(positions.tolist(), shifts, strict=True)]
    rows = [cos_sin_cache[place].double() for place in places]
    table = torch.stack(rows) if rows else torch.zeros(0, cos_sin_cache.shape[1], dtype=DOUBLE)
    half = table.shape[1] // 2

    def rotated(x: Tensor) -> Tensor:
        out = x.double().clone()
        for i in range(half):
            first, second = (i, i + half) if is_neox else (2 * i, 2 * i + 1)
            a, b = x[..., first].double(), x[..., second].double()
            cos, sin = table[:, i, None], table[:, half + i, None]
            out[..., first] = a * cos - b * sin
            out[..., second] = a * sin + b * cos
        return out

    return rotated(query), None if key is None else rotated(key)


RECORDS = [
    Record(
        "rotary_embedding",
        samples,
        refusals,
        oracle,
        ROTARY_GATES,
        rows=("query", "key", "positions", "offsets"),
        far=("query", "key"),
    ),
]
