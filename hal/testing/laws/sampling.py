"""Laws of the sampling operators."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

VOCABS = st.integers(1, 130)
SHAPE: dict[str, Any] = {"rows": ROWS, "vocab": VOCABS, "seed": SEEDS}


def _probs(values: Values, rows: int, vocab: int) -> Tensor:
    """Multiples of 1/1024, of which the first token has some; sums of them are exact."""
    probs = values.integers(rows, vocab, low=0, high=32).float() / 1024
    probs[:, 0] += 1 / 1024
    return probs


def softmax_sums_to_1(rows: int, vocab: int, seed: int) -> None:
    logits = Values(seed)(rows, vocab) * 4
    probs = hal.ops.softmax(logits)
    near(probs.double().sum(1).float(), logits.new_ones(rows), 16)
    near(hal.ops.softmax(logits + 8), probs, 16)
    # A larger logit has a larger probability.
    equal(probs.gather(1, logits.argmax(1, keepdim=True)), probs.amax(1, keepdim=True))


def temperature_divides(rows: int, vocab: int, power: int, seed: int) -> None:
    logits = Values(seed)(rows, vocab) * 4
    got = hal.ops.softmax(logits, temperature=2.0**power)
    near(got, hal.ops.softmax(logits / 2.0**power), 16)
    greedy = hal.ops.softmax(logits, temperature=0.0)
    equal(greedy.argmax(1), logits.argmax(1))
    equal(greedy.sum(1), logits.new_ones(rows))


def _renorm(op: str, limit: st.SearchStrategy[Any]) -> Law:
    def holds(rows: int, vocab: int, limit: Any, seed: int) -> None:
        probs, function = _probs(Values(seed), rows, vocab), getattr(hal.ops, op)
        got = function(probs, limit)
        near(got.sum(1), probs.new_ones(rows), 16)
        kept = got > 0
        whole = torch.where(kept, probs, 0)
        near(got, whole / whole.sum(1, keepdim=True), 8)
        left = torch.where(kept, 0.0, probs)
        lowest = torch.where(kept, probs, torch.inf).amin(1)
        assert bool((left.amax(1) <= lowest).all()), "a more probable token is left out"

    given = SHAPE | {"limit": limit}
    return Law(f"{op} keeps the most probable, in proportion", (op,), given, holds)


def top_k_keeps_k(rows: int, vocab: int, k: int, seed: int) -> None:
    probs = _probs(Values(seed), rows, vocab)
    kept = hal.ops.top_k_renorm(probs, k)
    wanted = (probs > 0).sum(1).clamp(max=k)
    equal((kept > 0).sum(1), wanted)
    near(hal.ops.top_k_renorm(kept, k), kept, 8)
    more = hal.ops.top_k_renorm(probs, k + 1)
    assert bool(((more > 0) | (kept == 0)).all()), "k + 1 keeps what k keeps"
    equal(hal.ops.top_k_renorm(probs * 8, k), kept)


def top_p_counts_mass(rows: int, vocab: int, seed: int) -> None:
    probs = _probs(Values(seed), rows, vocab)
    ordered, _ = probs.sort(dim=1, descending=True, stable=True)
    for limit in (0.0, 0.125, 0.5, float(probs.sum(1).max())):
        kept = (hal.ops.top_p_renorm(probs, limit) > 0).sum(1)
        before = ordered.cumsum(1) - ordered
        wanted = ((before < limit) & (ordered > 0)).sum(1).clamp(min=1)
        equal(kept, wanted if limit < 1 else (probs > 0).sum(1))


def min_p_compares_with_the_largest(rows: int, vocab: int, seed: int) -> None:
    probs = _probs(Values(seed), rows, vocab)
    for limit in (0.0, 0.25, 0.5, 1.0):
        wanted = (probs >= limit * probs.amax(1, keepdim=True)) & (probs > 0)
        equal(hal.ops.min_p_renorm(probs, limit) > 0, wanted)


LIMITS: dict[str, Any] = {
    "top_k": st.none() | st.integers(1, 9),
    "top_p": st.none() | st.sampled_from([0.0, 0.0625, 0.25, 0.5]),
    "min_p": st.none() | st.sampled_from([0.125, 0.5, 0.75]),
}


def samples_are_in_the_support(
    rows: int, vocab: int, seed: int, top_k: Any, top_p: Any, min_p: Any
) -> None:
    probs = _probs(Values(seed), rows, vocab)
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    ids = hal.ops.sample(probs, seed=seed, offset=0, **limits).long().unsqueeze(1)
    assert bool((probs.gather(1, ids) > 0).all())
    for name, limit in limits.items():
        if limit is not None:
            kept = getattr(hal.ops, f"{name}_renorm")(probs, limit)
            assert bool((kept.gather(1, ids) > 0).all()), f"outside of {name}"


def samples_depend_on_their_seed_alone(
    rows: int, vocab: int, seed: int, top_k: Any, top_p: Any, min_p: Any
) -> None:
    values = Values(seed)
    probs, seeds = _probs(values, rows, vocab), values.integers(rows, low=-9999, high=9999)
    limits, order = {"top_k": top_k, "top_p": top_p, "min_p": min_p}, values.order(rows)
    ids = hal.ops.sample(probs, seed=seeds, offset=7, **limits)
    equal(hal.ops.sample(probs[order], seed=seeds[order], offset=7, **limits), ids[order])
    one = hal.ops.sample(probs, seed=seeds[order], offset=7, indices=order, **limits)
    equal(one, ids[order])
    alone = hal.ops.sample(probs[:1], seed=seeds[:1], offset=7, **limits)
    equal(alone, ids[:1])


def one_token_is_the_largest(rows: int, vocab: int, seed: int) -> None:
    probs = _probs(Values(seed), rows, vocab)
    first = probs.argmax(1).int()
    equal(hal.ops.sample(probs, top_k=1, seed=seed, offset=0), first)
    equal(hal.ops.sample(probs, top_p=0.0, seed=seed, offset=0), first)


def numbers_count_rows(rows: int, vocab: int, seed: int) -> None:
    probs = _probs(Values(seed), rows, vocab)
    seeds = seed + torch.arange(rows, device=probs.device)
    equal(
        hal.ops.sample(probs, seed=seed, offset=3),
        hal.ops.sample(probs, seed=seeds, offset=torch.full_like(seeds, 3)),
    )
    # A power of two changes no order of scores.
    equal(
        hal.ops.sample(probs * 16, seed=seed, offset=3), hal.ops.sample(probs, seed=seed, offset=3)
    )


def _mask(values: Values, rows: int, vocab: int) -> Tensor:
    words = values.integers(rows, -(-vocab // 32), 2, low=-(2**15), high=2**15)
    return (words[..., 0] * 2**16 + words[..., 1]).int()


def masks_meet(rows: int, vocab: int, seed: int) -> None:
    values = Values(seed)
    logits, first, second = (
        values(rows, vocab),
        _mask(values, rows, vocab),
        _mask(values, rows, vocab),
    )
    once = hal.ops.apply_token_bitmask_(logits.clone(), first)
    equal(hal.ops.apply_token_bitmask_(once.clone(), first), once)
    both = hal.ops.apply_token_bitmask_(once.clone(), second)
    equal(hal.ops.apply_token_bitmask_(logits.clone(), first & second), both)
    equal(hal.ops.apply_token_bitmask_(logits.clone(), torch.full_like(first, -1)), logits)
    nothing = hal.ops.apply_token_bitmask_(logits.clone(), torch.zeros_like(first))
    assert bool((nothing == -torch.inf).all())


LIMITED = SHAPE | LIMITS
RENORMS = ("top_k_renorm", "top_p_renorm", "min_p_renorm")
SAMPLE = ("sample",)

LAWS = [
    Law("softmax sums to 1 and forgets a shift", ("softmax",), SHAPE, softmax_sums_to_1),
    Law(
        "the temperature divides logits",
        ("softmax",),
        SHAPE | {"power": st.integers(-3, 3)},
        temperature_divides,
    ),
    _renorm("top_k_renorm", st.integers(-1, 140)),
    _renorm("top_p_renorm", st.sampled_from([0.0, 0.0625, 0.25, 0.5, 0.75, 1.0])),
    _renorm("min_p_renorm", st.sampled_from([0.0, 0.125, 0.5, 0.75, 1.0])),
    Law(
        "top_k_renorm keeps k tokens, which it keeps again",
        RENORMS[:1],
        SHAPE | {"k": st.integers(1, 20)},
        top_k_keeps_k,
    ),
    Law("top_p_renorm counts the mass before a token", RENORMS[1:2], SHAPE, top_p_counts_mass),
    Law(
        "min_p_renorm compares with the largest",
        RENORMS[2:],
        SHAPE,
        min_p_compares_with_the_largest,
    ),
    Law(
        "a sample is within every limit",
        (*SAMPLE, *RENORMS),
        LIMITED,
        samples_are_in_the_support,
    ),
    Law(
        "a sample depends on its row and seed alone",
        SAMPLE,
        LIMITED,
        samples_depend_on_their_seed_alone,
    ),
    Law("the first token alone is the largest", SAMPLE, SHAPE, one_token_is_the_largest),
    Law("a number for a seed counts rows", SAMPLE, SHAPE, numbers_count_rows),
    Law("masks meet", ("apply_token_bitmask_",), SHAPE, masks_meet),
]
