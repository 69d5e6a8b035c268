"""Records of the norm of packed queries and keys that are then rotated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hal.testing.record import GATES, Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.rotary import POSITIONS, cache

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
HEADS = (3, 2)

# One rounding gives at most 2.17e-4 and 1.79e-3 on these samples, the two of the ops one after the
# other 2.3e-4 to 2.9e-4 and 1.9e-3 to 2.6e-3 on nearly all of them.
QK_NORM_GATES = {**GATES, HALF: 2.3e-4, BF16: 1.85e-3}


class Maker(Draws):
    """Draws the arguments of a call."""

    def call(
        self,
        tokens: int = 5,
        heads: tuple[int, int] = HEADS,
        head_dim: int = 16,
        rotary_dim: int | None = None,
        dtype: torch.dtype = FLOAT,
    ) -> list[Any]:
        width = (heads[0] + 2 * heads[1]) * head_dim
        table = cache(head_dim // 2 * 2 if rotary_dim is None else rotary_dim)
        weights = (self(head_dim, dtype=dtype, mean=1.0) for _ in range(2))
        return [self(tokens, width, dtype=dtype), *weights, table, self.positions(tokens), *heads]

    def positions(self, tokens: int) -> Tensor:
        return self.integers(0, POSITIONS, tokens)


def samples() -> Iterator[Sample]:
    make = Maker()
    for is_neox in (True, False):
        layout = "neox" if is_neox else "interleaved"
        for name, args, *eps in cases(make):
            yield Sample(
                f"{layout}, {name}", tuple(args), {"eps": 1e-6, "is_neox": is_neox, **dict(eps)}
            )


def cases(make: Maker) -> Iterator[tuple[Any, ...]]:
    for size in (1, 2, 3, 6, 7, 8, 16, 31, 34, 64, 65, 80, 96, 128, 129, 256):
        for dtype in (FLOAT, HALF, BF16):
            yield f"head_dim {size} {dtype}", make.call(head_dim=size, dtype=dtype)
    for size, rotary_dim in [(128, 64), (96, 24), (7, 2), (8, 0), (17, 16), (0, 0)]:
        for dtype in (FLOAT, BF16):
            args = make.call(head_dim=size, rotary_dim=rotary_dim, dtype=dtype)
            yield f"{rotary_dim} of {size} turn, {dtype}", args
    for heads in [(1, 1), (8, 1), (1, 3), (0, 2), (4, 0), (0, 0), (32, 4)]:
        yield f"heads {heads}", make.call(heads=heads)
    for tokens in (0, 1, 2, 129):
        yield f"{tokens} tokens", make.call(tokens)
    for eps in (0.0, 1e-12, 1e-3, 10.0):
        yield f"eps {eps}", make.call(), ("eps", eps)
        yield f"eps {eps} bfloat16", make.call(dtype=BF16), ("eps", eps)
    yield from dtypes(make)
    yield from views(make)
    yield from values(make)


def dtypes(make: Maker) -> Iterator[tuple[Any, ...]]:
    for dtype, q_dtype, k_dtype in [
        *((BF16, FLOAT, FLOAT), (HALF, FLOAT, BF16), (FLOAT, BF16, HALF), (BF16, DOUBLE, BF16)),
        *((DOUBLE, DOUBLE, DOUBLE), (DOUBLE, FLOAT, BF16)),
    ]:
        qkv, q_weight, k_weight, *rest = make.call(dtype=dtype)
        args = [qkv, q_weight.to(q_dtype), k_weight.to(k_dtype), *rest]
        yield f"{dtype}, weights {q_dtype} and {k_dtype}", args
    for dtype, cache_dtype in [(FLOAT, BF16), (BF16, BF16), (HALF, DOUBLE), (DOUBLE, DOUBLE)]:
        qkv, q_weight, k_weight, table, *rest = make.call(dtype=dtype)
        yield (
            f"{dtype}, {cache_dtype} cache",
            [
                *(qkv, q_weight, k_weight),
                *(table.to(cache_dtype), *rest),
            ],
        )
    *args, positions, heads, kv_heads = make.call()
    yield "int32 positions", [*args, positions.int(), heads, kv_heads]


def views(make: Maker) -> Iterator[tuple[Any, ...]]:
    qkv, q_weight, k_weight, table, positions, *heads = make.call()
    rest = [q_weight, k_weight, table, positions, *heads]
    yield "transposed", [make(112, 5).t(), *rest]
    yield "transposed bfloat16", [make(112, 5, dtype=BF16).t(), *rest]
    yield "rows of a wider tensor", [make(5, 200)[:, 33:145], *rest]
    yield "every other row", [make(10, 112)[::2], *rest]
    yield "every other column", [make(5, 224)[:, ::2], *rest]
    yield "expanded", [make(1, 112).expand(5, 112), *rest]
    yield "offset by one element", [make(561)[1:].view(5, 112), *rest]
    strided = [make(32, mean=1.0)[::2], make(1).expand(16), table.t().contiguous().t()]
    yield "strided weights and cache", [qkv, *strided, positions, *heads]
    for name, places in [
        ("every other position", make.positions(10)[::2]),
        ("one position expanded", torch.tensor([7]).expand(5)),
    ]:
        yield name, [qkv, q_weight, k_weight, table, places, *heads]


def values(make: Maker) -> Iterator[tuple[Any, ...]]:
    qkv, *rest = make.call()
    for value in (0.0, 1.0, 1e4, 1e-38, math.inf, math.nan):
        yield f"all {value}", [torch.full((5, 112), value), *rest]
    yield "6e4 in float16", [(qkv.sign() * 6e4).half(), *rest]
    yield "1e18 in bfloat16", [(qkv.sign() * 1e18).bfloat16(), *rest]
    # Without values, which would be all there is to see.
    for size, dtype in [(1e4, FLOAT), (6e4, HALF), (1e18, BF16), (1e20, FLOAT)]:
        heads = (qkv[:, :64].sign() * size).to(dtype)
        yield f"{size} in {dtype}, no values", [heads, *rest[:-2], 4, 0]
    yield "small against eps", [qkv * 1e-4, *rest]
    # A query, its last element, a key, a value.
    for value in (math.nan, math.inf, -math.inf):
        for place in (5, 47, 50, 100):
            yield f"{value} at {place}", [spoiled(qkv, (2, place), value), *rest]
    q_weight, k_weight, table, positions, *heads = rest
    nan = spoiled(k_weight, (3,), math.nan)
    yield "NaN in k_weight", [qkv, q_weight, nan, table, positions, *heads]
    broken = spoiled(table, (int(positions[1]), 3), math.nan)
    yield "NaN in the cache", [qkv, q_weight, k_weight, broken, positions, *heads]


def spoiled(x: Tensor, where: tuple[int, ...], value: float) -> Tensor:
    x = x.clone()
    x[where] = value
    return x


def refusals() -> Iterator[Refusal]:
    qkv, q_weight, k_weight, table, positions, *heads = Maker().call()

    def refuse(message: str, **changed: Any) -> Refusal:
        given: dict[str, Any] = {"qkv": qkv, "q_weight": q_weight, "k_weight": k_weight}
        given |= {"cos_sin_cache": table, "positions": positions}
        given |= {"num_q_heads": heads[0], "num_kv_heads": heads[1], "eps": 1e-6, "is_neox": True}
        return Refusal(message, (), given | changed)

    yield refuse(r"qkv must be floating point; qkv is \[5, 112\] int64", qkv=qkv.long())
    message = r"qkv must be \[tokens, heads \* head_dim\]; qkv is \[5, 7, 16\] float32"
    yield refuse(message, qkv=qkv.view(5, 7, 16))
    message = r"qkv must have 7 heads of 16 elements in its last dimension; qkv is \[5, 96\]"
    yield refuse(message, qkv=qkv[:, :96])
    yield refuse(r"qkv must have 8 heads of 16 elements .*; qkv is \[5, 112\]", num_q_heads=4)
    yield refuse("num_q_heads must not be negative; num_q_heads is -1", num_q_heads=-1)
    yield refuse("num_kv_heads must not be negative; num_kv_heads is -2", num_kv_heads=-2)
    message = r"q_weight must be \[head_dim\]; q_weight is \[1, 16\] float32"
    yield refuse(message, q_weight=q_weight[None])
    yield refuse(r"q_weight must be floating point; q_weight is \[16\] int32", q_weight=nothing())
    yield refuse(r"k_weight must be floating point; k_weight is \[16\] int32", k_weight=nothing())
    message = r"k_weight must have shape \[16\]; k_weight is \[15\] float32"
    yield refuse(message, k_weight=k_weight[1:])
    message = r"cos_sin_cache must be \[max_position, rotary_dim\]; cos_sin_cache is \[16\] float32"
    yield refuse(message, cos_sin_cache=table[0])
    message = "cos_sin_cache must have an even last dimension, at most the head_dim of q_weight; "
    for width in (7, 18):
        ending = rf"cos_sin_cache is \[64, {width}\] float32, q_weight is \[16\] float32"
        yield refuse(message + ending, cos_sin_cache=torch.zeros(64, width))
    message = r"positions must be int32 or int64; positions is \[5\] float32"
    yield refuse(message, positions=positions.float())
    message = r"positions must have shape \[5\]; positions is \[4\] int64"
    yield refuse(message, positions=positions[1:])
    for eps in (-1e-6, math.inf, math.nan):
        yield refuse(f"eps must be finite and not negative; eps is {eps}", eps=eps)


def nothing() -> Tensor:
    return torch.zeros(16, dtype=torch.int32)


def oracle(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    eps: float,
    is_neox: bool,
) -> Tensor:
    """Head by head: its length with ``hypot``, then a matrix of rotations."""
    out, size = qkv.double().clone(memory_format=torch.contiguous_format), q_weight.shape[0]
    limit = torch.finfo(DOUBLE if qkv.dtype == DOUBLE else FLOAT).max
    turns = [rotation(cos_sin_cache[p].double(), size, is_neox) for p in positions.tolist()]
    for token, turn in enumerate(turns):
        for head in range((num_q_heads + num_kv_heads) if size else 0):
            weight = q_weight if head < num_q_heads else k_weight
            here = out[token, head * size : (head + 1) * size]
            root = math.hypot(*(here / math.sqrt(size)).tolist(), math.sqrt(eps))
            root = math.inf if root**2 > limit else root
            root = math.nan if here.isnan().any() else root
            normed = here / root * weight.double()
            # A product with the matrix would carry NaN from everywhere to everywhere.
            here[:] = torch.stack([torch.stack([c * normed[i] for i, c in r]).sum() for r in turn])
    return out


def rotation(row: Tensor, size: int, is_neox: bool) -> list[list[tuple[int, float]]]:
    """For each element of a head, which elements make it up, and with what factors."""
    half = len(row) // 2
    parts = [[(i, 1.0)] for i in range(size)]
    for i in range(half):
        a, b = (i, i + half) if is_neox else (2 * i, 2 * i + 1)
        cos, sin = row[i].item(), row[half + i].item()
        parts[a], parts[b] = [(a, cos), (b, -sin)], [(b, cos), (a, sin)]
    return parts


RECORDS = [
    Record(
        "qk_norm_rope",
        samples,
        refusals,
        oracle,
        QK_NORM_GATES,
        rows=("qkv", "positions"),
        far=("qkv",),
    )
]
