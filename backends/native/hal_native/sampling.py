"""Sampling from logits and probabilities in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from hal_native.arithmetic import fitting, padded, wide
from hal_native.philox import halves, philox4x32


def softmax(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    x = wide(logits).contiguous()
    scale = _beside(temperature, x, x.dtype)
    peak = x.amax(dim=-1, keepdim=True)
    # Shifted before it is divided, so that the largest exponent is 0 at any temperature.
    warm = ((x - peak) / scale).exp()
    greedy = _columns(x) == x.argmax(dim=-1, keepdim=True)
    weights = torch.where(scale <= 0, greedy.to(x.dtype), warm).masked_fill(x == -math.inf, 0)
    return _normalised(torch.where(peak.isnan(), peak, weights))


def top_k_renorm(probs: Tensor, top_k: Tensor | int) -> Tensor:
    return _renorm(probs, partial(_keep, top_k=top_k))


def top_p_renorm(probs: Tensor, top_p: Tensor | float) -> Tensor:
    return _renorm(probs, partial(_keep, top_p=top_p))


def min_p_renorm(probs: Tensor, min_p: Tensor | float) -> Tensor:
    return _renorm(probs, partial(_keep, min_p=min_p))


def sample(
    probs: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
    seed: Tensor | int,
    offset: Tensor | int,
    indices: Tensor | None = None,
) -> Tensor:
    given = wide(probs if indices is None else probs.index_select(0, indices))
    p = torch.where(given > 0, given, 0)  # NaN counts as zero
    keep = _keep(p, top_k=top_k, top_p=top_p, min_p=min_p)
    # A probability of 0 scores -inf, as the tokens left out do.
    score = p.log() - _exponential(p, seed, offset).log()
    return score.masked_fill(~keep, -math.inf).argmax(dim=-1).to(torch.int32)


def apply_token_bitmask_(
    logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None
) -> Tensor:
    bits = bitmask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=bitmask.device) & 1
    bits = bits.flatten(-2)
    # Pads with blocked columns, or drops the bits past the vocabulary.
    blocked = padded(bits, logits.shape[-1]) == 0
    if indices is None:
        return logits.masked_fill_(blocked, -math.inf)
    rows = logits.index_select(0, indices).masked_fill(blocked, -math.inf)
    return logits.index_copy_(0, indices.long(), rows)


def _columns(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device)


def _beside(value: Tensor | float, x: Tensor, dtype: torch.dtype) -> Tensor:
    """One number, or one for each row of ``x``, as a tensor that broadcasts over the columns."""
    if isinstance(value, Tensor):
        return value.to(dtype).unsqueeze(-1)
    value = fitting(value, dtype) if dtype.is_floating_point else value
    return torch.full((1,), value, dtype=dtype, device=x.device)


def _normalised(weights: Tensor) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _renorm(probs: Tensor, keep: Callable[[Tensor], Tensor]) -> Tensor:
    p = wide(probs).contiguous()
    # A NaN is kept, so that the sum carries it to the whole row.
    kept = torch.where(keep(p) | p.isnan(), p, 0)
    return _normalised(kept).to(probs.dtype)


def _keep(
    p: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
) -> Tensor:
    """Which tokens the limits leave; every limit is about the probabilities as given."""
    keep = torch.ones_like(p, dtype=torch.bool)
    if top_k is not None or top_p is not None:
        keep = _leading(p, top_k, top_p)
    if min_p is not None:
        limit = _beside(min_p, p, p.dtype).clamp(0, 1)
        keep = keep & (p >= limit * p.amax(dim=-1, keepdim=True))
    return keep


def _leading(p: Tensor, top_k: Tensor | int | None, top_p: Tensor | float | None) -> Tensor:
    """Which tokens are among the first of their row in descending order."""
    ordered, token = p.sort(dim=-1, descending=True, stable=True)
    rank = _columns(p)
    keep = torch.ones_like(p, dtype=torch.bool)
    if top_k is not None:
        limit = _beside(top_k, p, torch.int64)
        keep = keep & ((rank < limit) | (limit <= 0))
    if top_p is not None:
        limit = _beside(top_p, p, p.dtype)
        # The mass before a token is a sum of its own: a sum less the token would be rounded twice.
        before = pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
        keep = keep & ((before < limit) | (limit >= 1) | (rank == 0))
    return torch.empty_like(keep).scatter(-1, token, keep)


def _exponential(p: Tensor, seed: Tensor | int, offset: Tensor | int) -> Tensor:
    """An exponential variate for each row and token, which depends on nothing else in the batch."""
    if not isinstance(seed, Tensor):
        seed = torch.arange(p.shape[0], device=p.device) + seed
    low, high = halves(_beside(offset, p, torch.int64))
    fours = torch.arange(-(-p.shape[-1] // 4), device=p.device)
    counter = (low, high, fours, torch.zeros_like(low))
    words = philox4x32(counter, halves(seed.unsqueeze(-1)))
    word = torch.stack(words, dim=-1).flatten(-2)[..., : p.shape[-1]]
    uniform = (word.to(p.dtype) + 0.5) * 2.0**-32
    # In float32 the last 128 words round to 1, where the logarithm is infinite.
    below_one = 1 - torch.finfo(p.dtype).eps / 2
    return -torch.log1p(-uniform.clamp(max=below_one))
