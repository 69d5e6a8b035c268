"""Record of the mask of allowed tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.vocab import HALF, INT32_MIN, SIZES, Maker, views


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


def bitmask_parts(given: dict[str, Any]) -> Iterator[Part]:
    """With indices a row of the logits may have any row of the mask, or none."""
    logits, bitmask, indices = given["logits"], given["bitmask"], given["indices"]
    for rows in spans(len(logits) if logits.dim() > 1 else 0):
        part = cut(given, ["logits", "bitmask"] if indices is None else ["logits"], rows)
        if indices is not None:
            inside = (indices >= rows.start) & (indices < rows.stop)
            part |= {"bitmask": bitmask[inside], "indices": indices[inside] - rows.start}
        yield Part(part, (rows,))


RECORDS = [
    Record(
        "apply_token_bitmask_",
        bitmask_samples,
        bitmask_refusals,
        bitmask_oracle,
        parts=bitmask_parts,
        far=("logits", "bitmask"),
    ),
]
