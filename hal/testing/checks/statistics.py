"""How often: what a sampler draws, against the probabilities it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.testing.checks.check import Effort, check, each
from hal.testing.outcome import NotApplicable
from hal.testing.subject import HOST, Subject

__all__ = ["ALPHA", "MIXED", "STATISTICS", "Sampler", "draws", "frequencies", "p_value"]

Sampler = Callable[..., Tensor]
"""A function with the signature of ``hal.ops.sample``."""

ALPHA = 1e-6
"""The chance of a false alarm of one test; seeds are fixed, so there is none by luck."""

_RANKS = torch.arange(1, 25, dtype=torch.float64).pow(-1.5)
_ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(0))
MIXED = (_RANKS / _RANKS.sum()).float()[_ORDER]
"""Probabilities of 24 tokens that fall with the rank's 1.5th power, in no order."""

# The steepest: a ten-thousandth that leaks to the last token is seen in it.
_SKEWED = torch.tensor([0.6, 0.25, 0.1, 0.03, 0.015, 0.004, 0.00098, 0.00002])


def draws(probs: Tensor, seed: Any, count: int, sampler: Sampler, **kwargs: Any) -> Tensor:
    """Draw ``count`` tokens from one row of probabilities."""
    indices = torch.zeros(count, dtype=torch.int64, device=probs.device)
    kwargs = {"offset": 0} | kwargs
    return sampler(probs[None], seed=seed, indices=indices, **kwargs).to(HOST)


def p_value(ids: Tensor, probs: Tensor) -> float:
    """Of a chi-square test over bands of half a bit of probability."""
    band = (2 * probs.log2()).floor().nan_to_num(neginf=0).long()
    band = (band.max() - band).clamp(max=60)
    share = torch.zeros(61, dtype=torch.float64).index_add(0, band, probs.double())
    expected = share / share.sum() * len(ids)
    seen = torch.bincount(band[ids.long()], minlength=61)
    full = expected >= 5
    # The bands that are seldom drawn make up one.
    seen = torch.cat([seen[full], seen[~full].sum()[None]])
    expected = torch.cat([expected[full], expected[~full].sum()[None]])
    used = expected >= 1
    assert used.sum() > 1, "one band says nothing"
    statistic = ((seen - expected).square() / expected)[used].sum()
    freedom = used.sum().double() - 1
    return torch.special.gammaincc(freedom / 2, statistic / 2).item()


def frequencies(ids: Tensor, probs: Tensor) -> None:
    """Nothing outside the support, all that was bound to come, each band as often as it should."""
    expected = probs.double() / probs.double().sum() * len(ids)
    seen = torch.bincount(ids.long(), minlength=len(probs))
    assert not seen[probs == 0].any(), "drawn from outside the support"
    assert seen[expected >= 30].all(), "never drawn"
    assert p_value(ids, probs) > ALPHA, "drawn too often or too seldom"


def _drawn(sampler: Sampler, device: str, row: Tensor, count: int, **limits: Any) -> Tensor:
    return draws(row.to(device), torch.arange(count, device=device), count, sampler, **limits)


def seeds(sampler: Sampler, device: str, count: int) -> None:
    """Other seeds, other tokens; limits hold exactly."""
    kept = MIXED.sort(descending=True).values[19] <= MIXED
    frequencies(_drawn(sampler, device, MIXED, count, top_k=20), MIXED * kept)
    most = _SKEWED.cumsum(0) - _SKEWED < 0.9
    frequencies(_drawn(sampler, device, _SKEWED, count, top_p=0.9), _SKEWED * most)
    frequencies(_drawn(sampler, device, _SKEWED, count, min_p=0.02), _SKEWED * (_SKEWED >= 0.012))


def tail(sampler: Sampler, device: str, count: int) -> None:
    """What is seldom is drawn as seldom as it should be."""
    frequencies(_drawn(sampler, device, _SKEWED, count), _SKEWED)


def offsets(sampler: Sampler, device: str, count: int) -> None:
    """Other offsets, other tokens."""
    count = min(count, 2**13)
    offset = torch.arange(count, device=device)
    seed = torch.full((count,), 12345, device=device)
    frequencies(draws(MIXED.to(device), seed, count, sampler, offset=offset), MIXED)


def pairs(sampler: Sampler, device: str, count: int) -> None:
    """The next draw of a row knows nothing of the last: they agree as often as chance has it."""
    count = min(count, 2**13)
    row = MIXED.to(device)
    first, second = (draws(row, 99, count, sampler, offset=offset) for offset in (4, 5))
    same, chance = (first == second).double().mean(), MIXED.double().square().sum()
    deviation = (chance * (1 - chance) / count).sqrt()
    assert abs(same - chance) < 4.9 * deviation, "draws depend on each other"


def placement(sampler: Sampler, device: str, count: int) -> None:
    """A row draws the same wherever it is in the batch."""
    del count
    seed = torch.randint(2**40, (256,), generator=torch.Generator().manual_seed(0)).to(device)
    row = MIXED.to(device)
    there, back = draws(row, seed, 256, sampler), draws(row, seed.flip(0), 256, sampler)
    assert torch.equal(there, back.flip(0)), "the place in the batch counts"


def losers(sampler: Sampler, device: str, count: int) -> None:
    """A token that wins still wins when others lose some of their probability."""
    del count
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(256, 24, generator=generator)
    winners = sampler(probs.to(device), seed=0, offset=0).to(HOST)
    weaker = probs * torch.rand(256, 24, generator=generator)
    weaker.scatter_(1, winners.long()[:, None], probs.gather(1, winners.long()[:, None]))
    again = sampler(weaker.to(device), seed=0, offset=0).to(HOST)
    assert torch.equal(again, winners), "noise moves among tokens"


STATISTICS = (seeds, tail, offsets, pairs, placement, losers)
"""Each takes a sampler, a device and a number of draws."""


@check("statistics")
def statistics(subject: Subject, effort: Effort) -> int:
    """Draws: exact support, what must be drawn, how often, independent of seed, row and rank."""
    if subject.op.name != "sample":
        raise NotApplicable("nothing is drawn")

    def sampler(*args: Any, **kwargs: Any) -> Tensor:
        return subject.run(subject.op.flatten(args, kwargs))

    device = str(subject.device)
    return each(
        STATISTICS,
        lambda statistic: statistic(sampler, device, effort.draws),
        lambda statistic: statistic.__name__,
    )
