"""Records of the operators before and after the experts of a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.topk import BF16, DOUBLE, EXPERTS, FLOAT, HALF, INF, NAN


def align_samples() -> Iterator[Sample]:
    draw = Draws(5)
    for experts in EXPERTS:
        block = (1, 16, 64)[experts % 3]
        ids = draw.integers(0, experts, 33, 6)
        yield Sample(f"33x6 of {experts} by {block}", (ids.int(), experts, block))
    for shape in [(), (0,), (1,), (7,), (0, 8), (1, 8), (3, 1), (2, 3, 4), (257, 2)]:
        for dtype in (torch.int32, torch.int64):
            ids = draw.integers(0, 8, *shape).to(dtype)
            yield Sample(f"{shape} {dtype}", (ids, 8, 4))
    yield from align_values(draw)


def align_values(draw: Draws) -> Iterator[Sample]:
    for dtype in (torch.int32, torch.int64):
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        some = draw.integers(-2, 10, 20, 3).to(dtype)
        some[3] = torch.tensor([low, high, -1], dtype=dtype)
        yield Sample(f"ids that are no expert {dtype}", (some, 8, 4))
    yield Sample("no id is an expert", (torch.full((5, 2), -1), 8, 4))
    yield Sample("no ids for many experts", (torch.zeros(0, 8, dtype=torch.int32), 600, 16))
    yield Sample("one expert has all", (torch.full((9, 2), 5), 8, 4))
    yield Sample("whole blocks", (torch.arange(8).repeat(16), 8, 16))
    yield Sample("one more than whole blocks", (torch.arange(8).repeat(17), 8, 16))
    yield Sample("the worst case", (torch.tensor([0, 1, 2, 3, 3, 3, 3]), 4, 3))
    yield Sample("a block larger than all", (draw.integers(0, 4, 3, 2), 4, 128))
    ids = draw.integers(0, 8, 6, 10)
    yield Sample("transposed", (ids.t(), 8, 4))
    yield Sample("every other column", (ids[:, ::2], 8, 4))
    yield Sample("expanded", (ids[:1].expand(6, 10), 8, 4))
    yield Sample("offset by one element", (ids.flatten()[1:], 8, 4))


def align_refusals() -> Iterator[Refusal]:
    ids = torch.zeros(4, 2).int()
    for dtype in ("float32", "int16"):
        message = rf"topk_ids must be int32 or int64; topk_ids is \[4, 2\] {dtype}"
        yield Refusal(message, (ids.to(getattr(torch, dtype)), 8, 4))
    yield Refusal("num_experts must be at least 1; num_experts is 0", (ids, 0, 4))
    yield Refusal("block_size must be at least 1; block_size is 0", (ids, 8, 0))
    message = r"must be below 2\*\*31; "
    yield Refusal(f"num_experts {message}num_experts is {2**31}", (ids, 2**31, 4))
    yield Refusal(f"block_size {message}block_size is {2**31}", (ids, 8, 2**31))
    message = r"block_size must leave fewer than 2\*\*31 places in the blocks; block_size is "
    yield Refusal(f"{message}{2**28}, topk_ids is", (ids, 8, 2**28))
    huge = ids[:1, :1].expand(2**16, 2**15)
    message = r"topk_ids must have fewer than 2\*\*31 elements; topk_ids is \[65536, 32768\] int32"
    yield Refusal(message, (huge, 8, 4))


def sum_samples() -> Iterator[Sample]:
    draw = Draws(6, 2.0)
    for hidden in [0, 1, 2, 3, 7, 8, 17, 63, 65, 128, 511, 1024]:
        for dtype in (FLOAT, HALF, BF16):
            yield Sample(f"3x6x{hidden} {dtype}", (draw(3, 6, hidden, dtype=dtype),))
    for k in (0, 1, 2, 9, 64):
        yield Sample(f"{k} experts", (draw(4, k, 65),), {"scale": 2.5})
    for shape in [(3, 8), (0, 3, 8), (2, 0, 3, 8), (2, 5, 3, 9), (1, 1, 1), (2, 1, 2, 3, 8)]:
        yield Sample(f"shape {shape}", (draw(*shape),))
    yield Sample("float64", (draw(5, 4, 33, dtype=DOUBLE),), {"scale": 0.3})
    for scale in (0.0, 1, -2.5, 16.0, 1e-3):
        yield Sample(f"scale {scale}", (draw(5, 8, 65, dtype=BF16),), {"scale": scale})
    yield Sample("hidden first", (draw(65, 3, 4).permute(2, 1, 0),))
    yield Sample("experts first", (draw(3, 4, 65).transpose(0, 1),))
    yield Sample("columns of a wider tensor", (draw(4, 3, 96)[..., 17:80],))
    yield Sample("every other column", (draw(4, 3, 65)[..., ::2],))
    yield Sample("every other expert", (draw(4, 6, 65)[:, ::2],))
    yield Sample("expanded", (draw(4, 1, 65).expand(4, 6, 65),))
    yield Sample("offset by one element", (draw(4 * 3 * 17 + 1)[1:].view(4, 3, 17),))
    for value in (0.0, -6e4, 1e-38, INF, NAN):
        yield Sample(f"all {value}", (torch.full((2, 3, 65), value),))
        one = draw(4, 3, 65)
        one[1, 2, 5] = value
        yield Sample(f"one {value}", (one,))
    one[2, 0, 7], one[2, 1, 7] = INF, -INF
    yield Sample("two infinities", (one,))
    many = torch.full((2, 9, 65), 6e4)
    yield Sample("beyond float16", (many.half(),), {"scale": 0.1})
    yield Sample("4096 ones", (torch.ones(1, 4096, 65, dtype=BF16),))


def sum_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 2, 8)
    yield Refusal(r"x must be \[..., k, hidden\]; x is \[8\] float32", (x[0, 0],))
    yield Refusal(r"x must be floating point; x is \[4, 2, 8\] int64", (x.long(),))
    for scale in (INF, NAN):
        yield Refusal(f"scale must be finite; scale is {scale}", (x,), {"scale": scale})


def align_oracle(topk_ids: Tensor, num_experts: int, block_size: int) -> Any:
    flat = topk_ids.flatten().tolist()
    blocks: list[tuple[int, list[int]]] = []
    for expert in range(num_experts):
        own = [pair for pair, e in enumerate(flat) if e == expert]
        for start in range(0, len(own), block_size):
            block = own[start : start + block_size]
            blocks.append((expert, block + [len(flat)] * (block_size - len(block))))
    used = len(blocks) * block_size
    # The worst case: a pair for each expert, and the others such that they need whole blocks.
    worst = len(flat)
    if len(flat) > num_experts:
        worst = num_experts + (len(flat) - num_experts) // block_size
    blocks += [(-1, [len(flat)] * block_size)] * (worst - len(blocks))
    pairs = torch.tensor([pair for _, block in blocks for pair in block], dtype=torch.int64)
    return pairs, torch.tensor([e for e, _ in blocks], dtype=torch.int64), torch.tensor([used])


def sum_oracle(x: Tensor, *, scale: float = 1.0) -> Tensor:
    total = torch.zeros(*x.shape[:-2], x.shape[-1], dtype=DOUBLE)
    for one in x.double().unbind(-2):
        total = total + one
    return total * scale


def sum_parts(given: dict[str, Any]) -> Iterator[Part]:
    """None of [k, hidden], whose leading dimension is what is summed."""
    for rows in spans(len(given["x"]) if given["x"].dim() > 2 else 0):
        yield Part(cut(given, ["x"], rows), (rows,))


RECORDS = [
    Record("moe_align_block_size", align_samples, align_refusals, align_oracle, far=("topk_ids",)),
    Record("moe_sum", sum_samples, sum_refusals, sum_oracle, parts=sum_parts, far=("x",)),
]
