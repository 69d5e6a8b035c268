"""Random cases of the sampling operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.testing.cases.draw import BF16, F16, F32, F64, HALVES, NORMED, Draw
from hal.testing.record import Sample

__all__ = ["CASES"]

INDEX = (torch.int32, torch.int64)


def probs(draw: Draw, *shape: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 2**-22 whose sums are exact in float32; ties, zeros and large ones among them.

    A sum that is rounded may fall to either side of a limit.
    """
    kind, share = draw.below(4), 2**22 // max(shape[-1], 1)
    if kind == 0:
        units = draw.integers(*shape, low=0, high=4) * (share // 4)
    elif kind == 1:
        units = draw.integers(*shape).abs().long() * share >> 15
    else:
        units = (draw.integers(*shape).abs() * 2.0**-15) ** 3 * share
    x = (units.float().floor() * 2.0**-22).to(dtype)
    return draw.laid(_broken(draw, x), expand=dtype not in HALVES)


def _broken(draw: Draw, x: Tensor) -> Tensor:
    """A row of zeros or a NaN, now and then."""
    if not x.numel() or not draw.once_in(10):
        return x
    x = x.clone()
    rows = x.view(-1, x.shape[-1])
    row = draw.below(len(rows))
    if draw.once_in(2):
        rows[row] = 0
    else:
        rows[row, draw.below(x.shape[-1])] = math.nan
    return x


def each(draw: Draw, shape: Sequence[int], numbers: Sequence[Any], *dtypes: torch.dtype) -> Any:
    """One of ``numbers``, or a tensor of them, for all or for each row."""
    if draw.once_in(2):
        return draw.among(*numbers)
    shape = () if draw.once_in(4) else tuple(shape)
    taken = [draw.among(*numbers) for _ in range(math.prod(shape))]
    return draw.laid(torch.tensor(taken, dtype=F64).view(shape).to(draw.among(*dtypes)))


def top_k_for(draw: Draw, shape: Sequence[int], vocab: int) -> Any:
    numbers = (1, 2, 3, 5, 8, 0, -1, vocab - 1, vocab, vocab + 1, 2**31 - 1)
    return each(draw, shape, numbers, *INDEX)


def top_p_for(draw: Draw, shape: Sequence[int]) -> Any:
    numbers = (0.75, 0.5, 0.9, 0.25, 0.1, 0.0, -1.0, 1.0, 1.5, 0.99)
    return each(draw, shape, numbers, F32, F64, BF16, F16)


def min_p_for(draw: Draw, shape: Sequence[int]) -> Any:
    """Of few bits, so that the product with a probability is exact."""
    numbers = (0.25, 0.5, 0.125, 0.0625, 0.0, -1.0, 1.0, 2.0, 0.75)
    return each(draw, shape, numbers, F32, F64, BF16, F16)


def renorm_probs(draw: Draw) -> Tensor:
    """Probabilities; few of 16 bits, of which a large one would outweigh the others."""
    dtype, vocab, lead = draw.floating(), draw.size(129), draw.lead(4)
    if dtype in HALVES and math.prod(lead) * vocab >= NORMED:
        lead, vocab = (3,), min(vocab, 17)
    return probs(draw, *lead, vocab, dtype=dtype)


def top_k_renorm(draw: Draw) -> Sample:
    p = renorm_probs(draw)
    return draw.sample(p, top_k_for(draw, p.shape[:-1], p.shape[-1]))


def top_p_renorm(draw: Draw) -> Sample:
    p = renorm_probs(draw)
    return draw.sample(p, top_p_for(draw, p.shape[:-1]))


def min_p_renorm(draw: Draw) -> Sample:
    p = renorm_probs(draw)
    return draw.sample(p, min_p_for(draw, p.shape[:-1]))


def softmax(draw: Draw) -> Sample:
    dtype, vocab, lead = draw.floating(), draw.size(129), draw.lead(4)
    x = draw.values(*lead, vocab) * draw.power(-2, 3)
    x = draw.spoiled(draw.coarse(*lead, vocab, most=3) if draw.once_in(6) else x)
    numbers = (1.0, 0.7, 0.5, 2.0, 0.0, 1e-30, math.inf)
    temperature = each(draw, lead, numbers, F32, F64, BF16) if draw.once_in(2) else None
    return draw.sample(draw.laid(x.to(dtype)), temperature=temperature)


def bits64(draw: Draw, rows: int) -> Tensor:
    drawn = [draw.random.getrandbits(64) - 2**63 for _ in range(rows)]
    return draw.laid(torch.tensor(drawn, dtype=torch.int64))


def sample(draw: Draw) -> Sample:
    vocab, count = draw.size(65), draw.among(0, 1, 2, 3)
    p = probs(draw, count, vocab, dtype=draw.floating())
    indices = None
    if count and draw.once_in(3):
        chosen = [draw.below(count) for _ in range(draw.below(5))]
        indices = draw.laid(torch.tensor(chosen, dtype=draw.among(*INDEX)))
    rows = count if indices is None else len(indices)
    given: dict[str, Any] = {"indices": indices}
    if draw.once_in(2):
        given["top_k"] = top_k_for(draw, (rows,), vocab)
    if draw.once_in(2):
        given["top_p"] = top_p_for(draw, (rows,))
    if draw.once_in(3):
        given["min_p"] = min_p_for(draw, (rows,))
    number = draw.random.getrandbits(64) - 2**63
    seed = bits64(draw, rows) if draw.once_in(2) else number
    offset = draw.among(0, 1, draw.below(1000), number, bits64(draw, rows))
    return draw.sample(p, seed=seed, offset=offset, **given)


def bitmask(draw: Draw) -> Sample:
    """Few logits: the oracle looks at them one by one."""
    dtype, vocab, lead = draw.floating(), draw.size(65, least=0), draw.among((1,), (2,), (), (0,))
    rows, indices = lead, None
    if lead and draw.once_in(3):
        order = list(range(lead[0]))
        draw.random.shuffle(order)
        order = order[: draw.below(lead[0] + 1)]
        indices = draw.laid(torch.tensor(order, dtype=draw.among(*INDEX)), expand=False)
        rows = (len(order),)
    words = draw.below(-(-vocab // 32) + 1)
    pairs = draw.integers(*rows, words, 2).to(torch.int16)
    mask = pairs.view(torch.int32).squeeze(-1)
    logits = draw.spoiled((draw.values(*lead, vocab) * 8).to(dtype))
    return draw.sample(draw.laid(logits, expand=False), draw.laid(mask), indices=indices)


CASES: dict[str, Callable[[Draw], Sample]] = {
    "softmax": softmax,
    "top_k_renorm": top_k_renorm,
    "top_p_renorm": top_p_renorm,
    "min_p_renorm": min_p_renorm,
    "sample": sample,
    "apply_token_bitmask_": bitmask,
}
