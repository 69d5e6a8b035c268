"""What the samplers keep, what they draw and how often, by checks that catch planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal.testing.checks import statistics
from hal.testing.checks.statistics import Sampler
from hal.testing.records.sample import philox_oracle
from hal_native import sampling
from hal_native.philox import WORD, halves, philox4x32
from hal_native.sampling import (
    apply_token_bitmask_,
    min_p_renorm,
    sample,
    softmax,
    top_k_renorm,
    top_p_renorm,
)

INF, NAN = math.inf, math.nan

few = settings(max_examples=100, deadline=None, derandomize=True)
# Sixteenths: ties are frequent and every sum is exact, so that limits are hit exactly.
rows = st.lists(st.integers(0, 8), min_size=1, max_size=12).map(lambda n: torch.tensor(n) / 16)
top_ks = st.integers(-1, 13)
top_ps = st.integers(-1, 18).map(lambda n: n / 16)
min_ps = st.integers(-1, 9).map(lambda n: n / 8)
words = st.integers(0, WORD)
longs = st.integers(-(2**63), 2**63 - 1)


def draws(row: Tensor, seed: Tensor | int, count: int, **kw: Any) -> Tensor:
    """Ids drawn ``count`` times from one row of probabilities."""
    return statistics.draws(row, seed, count, sample, **kw)


def kept(row: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[bool]:
    """The definition, token by token."""
    p = row.tolist()
    keeps = []
    for token, mass in enumerate(p):
        ahead = [m for t, m in enumerate(p) if m > mass or (m == mass and t < token)]
        by_rank = top_k <= 0 or len(ahead) < top_k
        by_mass = top_p >= 1 or not ahead or sum(ahead) < top_p
        keeps.append(by_rank and by_mass and mass >= min(max(min_p, 0), 1) * max(p))
    return keeps


# Philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    result = philox4x32([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(word.item() for word in result) == expected


@given(seed=longs, offset=longs, token=st.integers(0, 2**31 - 1))
@few
def test_philox_is_keyed_by_seed_and_counts_offset_and_token(
    seed: int, offset: int, token: int
) -> None:
    tokens = torch.tensor([token])
    counter = (*halves(torch.tensor([offset])), tokens // 4, torch.zeros_like(tokens))
    word = philox4x32(counter, halves(torch.tensor([seed])))[token % 4]
    assert word.tolist() == philox_oracle(seed, offset, tokens.numpy()).tolist()


# softmax


def test_temperature_0_takes_the_first_of_the_largest_logits() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [-INF, -1e4, -INF]])
    probs = softmax(logits, temperature=torch.tensor([0.0, 1e30, 0.0]))
    assert probs[0].tolist() == [0, 1, 0]
    assert probs[1].tolist() == pytest.approx([1 / 3] * 3)
    assert probs[2].tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-38, 0.7, 1.0, INF])
def test_a_softmax_without_any_token_is_zeros_and_nan_stays_in_its_row(temperature: float) -> None:
    logits = torch.tensor([[-INF] * 3, [0.0, NAN, -INF], [2.0, 1.0, -INF]])
    probs = softmax(logits, temperature=temperature)
    assert probs[0].tolist() == [0, 0, 0]
    assert probs[1].isnan().all()
    assert probs[2].sum().item() == pytest.approx(1)
    assert probs[2, 2] == 0


def test_numbers_beyond_float32_are_as_infinity() -> None:
    probs = torch.tensor([[0.5, 0.125, 0.25]])
    assert torch.equal(softmax(probs, temperature=1e300), torch.full((1, 3), 1 / 3))
    assert torch.equal(top_p_renorm(probs, 1e300), top_p_renorm(probs, INF))
    assert torch.equal(top_p_renorm(probs, -1e300), top_p_renorm(probs, -INF))
    assert torch.equal(min_p_renorm(probs, 1e300), torch.tensor([[1.0, 0.0, 0.0]]))
    drawn = sample(probs, top_p=1e300, min_p=-1e300, seed=3, offset=0)
    assert torch.equal(drawn, sample(probs, seed=3, offset=0))


def test_a_small_temperature_does_not_overflow() -> None:
    probs = softmax(torch.tensor([[3e38, -3e38, 3e38]]), temperature=1e-30)
    assert probs.tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_logits_are_float32(dtype: torch.dtype) -> None:
    probs = softmax(torch.zeros(1, 3, dtype=dtype))
    assert probs.dtype == torch.float32
    assert probs.tolist() == torch.full((1, 3), 1 / 3).tolist()


logit_rows = st.lists(st.integers(-64, 64), min_size=1, max_size=12).map(
    lambda n: torch.tensor(n) / 8
)


@given(
    row=logit_rows, shift=st.integers(-100, 100), temperature=st.sampled_from([0.0, 0.5, 1.0, 8])
)
@few
def test_softmax_does_not_change_when_the_logits_shift(
    row: Tensor, shift: int, temperature: float
) -> None:
    shifted = softmax(row + shift, temperature=temperature)
    assert torch.equal(shifted, softmax(row, temperature=temperature))


@given(
    row=logit_rows, temperature=st.sampled_from([0.0, 0.25, 2.0, 64.0]), scale=st.integers(-3, 3)
)
@few
def test_softmax_depends_on_logits_over_temperature(
    row: Tensor, temperature: float, scale: int
) -> None:
    scaled = softmax(row * 2.0**scale, temperature=temperature * 2.0**scale)
    assert torch.equal(scaled, softmax(row, temperature=temperature))


@given(
    columns=st.lists(
        st.lists(st.integers(-40, 40), min_size=4, max_size=4), min_size=1, max_size=6
    ),
    temperatures=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
)
@few
def test_softmax_takes_each_row_by_itself(
    columns: list[list[int]], temperatures: list[float]
) -> None:
    logits = torch.tensor(columns).T / 8
    whole = softmax(logits, temperature=torch.tensor(temperatures))
    alone = [softmax(row, temperature=t) for row, t in zip(logits, temperatures, strict=True)]
    assert torch.equal(whole, torch.stack(alone))


# Limits


RENORMS: list[tuple[str, Callable[..., Tensor], st.SearchStrategy[Any]]] = [
    ("top_k", top_k_renorm, top_ks),
    ("top_p", top_p_renorm, top_ps),
    ("min_p", min_p_renorm, min_ps),
]


@pytest.mark.parametrize(("name", "renorm", "limits"), RENORMS, ids=[r[0] for r in RENORMS])
@given(row=rows, data=st.data())
@few
def test_renormalising_keeps_what_the_definition_keeps(
    name: str, renorm: Callable[..., Tensor], limits: Any, row: Tensor, data: st.DataObject
) -> None:
    limit = data.draw(limits)
    left = row * torch.tensor(kept(row, **{name: limit}))
    result = renorm(row, limit)
    assert torch.equal(result > 0, left > 0)
    assert result.sum().item() == pytest.approx(1 if left.sum() > 0 else 0)
    assert torch.allclose(result * left.sum(), left)


@given(row=rows, top_k=top_ks)
@few
def test_top_k_of_what_top_k_left_is_the_same(row: Tensor, top_k: int) -> None:
    once = top_k_renorm(row, top_k)
    assert torch.allclose(top_k_renorm(once, top_k), once)


def test_top_k_keeps_at_most_k_of_ties_the_first() -> None:
    assert top_k_renorm(torch.full((4,), 0.25), 2).tolist() == [0.5, 0.5, 0, 0]
    assert top_k_renorm(torch.tensor([0.25, 0.5, 0.25]), 2)[2] == 0


@pytest.mark.parametrize("top_k", [0, -1, 3, 4, 2**40])
def test_top_k_that_keeps_all_still_normalises(top_k: int) -> None:
    assert top_k_renorm(torch.tensor([1.0, 2.0, 1.0]), top_k).tolist() == [0.25, 0.5, 0.25]


def test_top_p_drops_a_token_with_exactly_top_p_before_it() -> None:
    row = torch.tensor([0.25, 0.5, 0.25])
    assert top_p_renorm(row, 0.5).tolist() == [0, 1, 0]
    assert draws(row, 0, 64, top_p=0.5).unique().tolist() == [1]
    assert top_p_renorm(row, 0.501).tolist() == pytest.approx([1 / 3, 2 / 3, 0])


@pytest.mark.parametrize("top_p", [1, 1.0, 1.5, INF])
def test_top_p_of_1_keeps_a_tail_that_rounding_would_cut(top_p: float) -> None:
    row = torch.tensor([1.0, 2.0**-10])
    assert (top_p_renorm(row, top_p) > 0).all()
    assert draws(row, 0, 8192, top_p=top_p).unique().tolist() == [0, 1]


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1e-30])
def test_top_p_always_keeps_the_first_token(top_p: float) -> None:
    row = torch.tensor([0.25, 0.375, 0.375])
    assert top_p_renorm(row, top_p).tolist() == [0, 1, 0]
    assert draws(row, 0, 64, top_p=top_p).unique().tolist() == [1]


def test_top_p_is_about_the_mass_as_given() -> None:
    assert top_p_renorm(torch.tensor([0.125, 0.25, 0.125]), 0.5).tolist() == [0.25, 0.5, 0.25]
    assert top_p_renorm(torch.tensor([2.0, 4.0, 2.0]), 0.75).tolist() == [0, 1, 0]


def test_min_p_keeps_a_token_at_exactly_the_limit() -> None:
    row = torch.tensor([0.25, 0.5, 0.125, 0.125])
    assert (min_p_renorm(row, 0.5) > 0).tolist() == [True, True, False, False]
    assert (min_p_renorm(row, 0.25) > 0).all()
    assert min_p_renorm(row, 2.0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("renorm", "limit"), [(top_k_renorm, 1), (top_p_renorm, 0.5), (min_p_renorm, 0.5)]
)
def test_nan_fills_its_row_and_a_zero_sum_gives_zeros(renorm: Any, limit: float) -> None:
    result = renorm(torch.tensor([[0.75, NAN, 0.25], [0, 0, 0], [0.75, 0, 0.25]]), limit)
    assert result[0].isnan().all()
    assert result[1:].tolist() == [[0, 0, 0], [1, 0, 0]]


# What may be drawn


@given(row=rows, top_k=top_ks, top_p=top_ps, min_p=min_ps, seed=longs)
@few
def test_a_drawn_token_passes_every_limit(
    row: Tensor, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    allowed = [
        k and p > 0 for k, p in zip(kept(row, top_k, top_p, min_p), row.tolist(), strict=True)
    ]
    ids = draws(row, seed, 64, top_k=top_k, top_p=top_p, min_p=min_p)
    assert all(allowed[i] for i in ids.tolist()) if any(allowed) else not ids.any()


def test_top_p_sees_the_given_probabilities_not_what_top_k_left() -> None:
    # Of the two that top_k leaves, the first holds 4/7 after a renormalisation.
    row = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert draws(row, 0, 256, top_k=2, top_p=0.5).unique().tolist() == [0, 1]


def test_a_token_without_probability_is_never_drawn() -> None:
    probs = torch.tensor([[0, 0.5, 0], [0, 0, 0], [NAN, NAN, NAN], [NAN, 0, 0.5], [-1, 0.5, -1]])
    for offset in range(20):
        assert sample(probs, seed=0, offset=offset).tolist() == [1, 0, 0, 2, 1]
        limited = sample(probs, top_k=2, top_p=0.9, min_p=0.1, seed=0, offset=offset)
        assert limited.tolist() == [1, 0, 0, 2, 1]


def test_nan_counts_as_zero_in_the_limits() -> None:
    row = torch.tensor([NAN, 0.5, 0.25, NAN, 0.25])
    assert draws(row, 0, 256, top_k=2).unique().tolist() == [1, 2]
    assert draws(row, 0, 256, top_p=0.6).unique().tolist() == [1, 2]
    assert draws(row, 0, 256, min_p=0.6).unique().tolist() == [1]


def test_limits_and_noise_go_by_the_output_row() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.25, 0.25, 0.5]])
    indices = torch.tensor([1, 1, 0, 0]).repeat_interleave(200)
    min_p = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(200)
    ids = sample(probs, min_p=min_p, seed=0, offset=0, indices=indices).view(4, 200)
    assert [row.unique().tolist() for row in ids] == [[3], [1, 2, 3], [0], [0, 1, 2]]


def test_the_extreme_words_of_the_generator_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.tensor([[0, 0.25, 0.75], [0, 0.5, 0.5], [0, 0.001, 0]])
    for word in (0, WORD, WORD - 127):
        same = torch.full((3, 1), word)
        monkeypatch.setattr(sampling, "philox4x32", lambda *_, same=same: (same,) * 4)
        for dtype in (torch.float32, torch.float64):
            assert sample(probs.to(dtype), seed=0, offset=0).tolist() == [2, 1, 1]


# What the noise depends on


@given(seed=longs, offset=longs, count=st.integers(1, 5))
@few
def test_an_integer_seed_is_that_of_the_first_row(seed: int, offset: int, count: int) -> None:
    row = torch.full((64,), 1 / 64)
    wrapped = [(seed + i + 2**63) % 2**64 - 2**63 for i in range(count)]
    each = draws(row, torch.tensor(wrapped), count, offset=torch.full((count,), offset))
    assert torch.equal(draws(row, seed, count, offset=offset), each)
    assert torch.equal(draws(row, seed, count, offset=torch.tensor(offset)), each)


@given(seed=longs, offset=longs)
@few
def test_the_noise_is_that_of_the_documented_counter(seed: int, offset: int) -> None:
    # Of equal probabilities the one with the least exponential variate wins: the smallest word.
    words = philox_oracle(seed, offset, torch.arange(64).numpy())
    drawn = draws(torch.full((64,), 1 / 64), torch.tensor([seed]), 1, offset=offset)
    assert drawn.tolist() == [words.argmin()]


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 33, 62, 63])
def test_all_bits_of_seed_and_offset_count(bit: int) -> None:
    row, flipped = torch.full((64,), 1 / 64), torch.tensor(1) << bit
    base = draws(row, torch.arange(8) * 2, 8, offset=torch.arange(8) * 2)
    seeds = draws(row, torch.arange(8) * 2 ^ flipped, 8, offset=torch.arange(8) * 2)
    offsets = draws(row, torch.arange(8) * 2, 8, offset=torch.arange(8) * 2 ^ flipped)
    assert (seeds != base).sum() >= 6
    assert (offsets != base).sum() >= 6
    assert (seeds != offsets).sum() >= 6


@given(row=rows, top_k=top_ks, top_p=top_ps, min_p=min_ps, seed=longs)
@few
def test_a_limit_that_leaves_the_drawn_token_leaves_the_draw(
    row: Tensor, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    free = draws(row, seed, 16).long()
    limited = draws(row, seed, 16, top_k=top_k, top_p=top_p, min_p=min_p).long()
    passes = torch.tensor(kept(row, top_k, top_p, min_p))[free]
    assert torch.equal(free[passes], limited[passes])


@given(row=rows, others=st.lists(rows, max_size=3), seed=longs, offset=longs)
@few
def test_a_draw_does_not_depend_on_the_batch(
    row: Tensor, others: list[Tensor], seed: int, offset: int
) -> None:
    one = sample(row[None], top_k=3, seed=torch.tensor([seed]), offset=offset)
    batch = torch.zeros(len(others) + 1, len(row))
    for i, other in enumerate(others):
        batch[i, : len(other)] = other[: len(row)]
    batch[-1] = row
    seeds = torch.arange(len(batch)).index_fill(0, torch.tensor([len(others)]), seed)
    top_k = torch.where(torch.arange(len(batch)) == len(others), 3, 0)
    assert sample(batch, top_k=top_k, seed=seeds, offset=offset)[-1] == one[0]


@given(
    table=st.lists(st.lists(st.integers(0, 8), min_size=5, max_size=5), min_size=1, max_size=5),
    data=st.data(),
    seed=longs,
)
@few
def test_indices_choose_the_probability_rows(
    table: list[list[int]], data: st.DataObject, seed: int
) -> None:
    probs = torch.tensor(table) / 16
    indices = torch.tensor(data.draw(st.lists(st.integers(0, len(table) - 1), max_size=8))).int()
    chosen = sample(probs, top_p=0.5, seed=seed, offset=1, indices=indices)
    assert torch.equal(chosen, sample(probs[indices.long()], top_p=0.5, seed=seed, offset=1))


# How often: checks of a sampler that a fault must not pass


def test_sample_draws_as_the_probabilities_say() -> None:
    for statistic in statistics.STATISTICS:
        statistic(sample, "cpu", 2**15)


def hotter(probs: Tensor, **kw: Any) -> Tensor:
    return sample(probs ** (1 / 1.05), **kw)


def one_more(probs: Tensor, *, top_k: int, **kw: Any) -> Tensor:
    return sample(probs, top_k=top_k + 1, **kw)


def one_less(probs: Tensor, *, top_k: int, **kw: Any) -> Tensor:
    return sample(probs, top_k=top_k - 1, **kw)


def leaky(probs: Tensor, **kw: Any) -> Tensor:
    """One row in a thousand ignores the limits."""
    ids = sample(probs, **kw)
    return torch.where(torch.arange(len(ids)) % 1000 == 999, probs[0].argmin().int(), ids)


def without_seed(probs: Tensor, *, seed: Tensor, **kw: Any) -> Tensor:
    return sample(probs, seed=torch.zeros_like(seed), **kw)


def without_offset(probs: Tensor, *, offset: Tensor | int, **kw: Any) -> Tensor:
    return sample(probs, offset=0, **kw)


def by_row(probs: Tensor, *, seed: Tensor | int, **kw: Any) -> Tensor:
    return sample(probs, seed=7, **kw)


def by_rank(probs: Tensor, **kw: Any) -> Tensor:
    ordered, token = probs.sort(dim=-1, descending=True, stable=True)
    return token.gather(1, sample(ordered, **kw).long()[:, None])[:, 0].to(torch.int32)


@pytest.mark.parametrize(
    ("fault", "check", "complaint"),
    [
        (hotter, statistics.seeds, "drawn too often or too seldom"),
        (one_more, statistics.seeds, "drawn from outside the support"),
        (one_less, statistics.seeds, "never drawn"),
        (leaky, statistics.seeds, "drawn from outside the support"),
        (without_seed, statistics.seeds, "never drawn"),
        (without_offset, statistics.offsets, "never drawn"),
        (without_offset, statistics.pairs, "draws depend on each other"),
        (by_row, statistics.placement, "the place in the batch counts"),
        (by_rank, statistics.losers, "noise moves among tokens"),
    ],
)
def test_a_planted_fault_is_caught(
    fault: Sampler, check: Callable[[Sampler, str, int], None], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(fault, "cpu", 2**15)


@pytest.mark.parametrize("top_k", [0, 50])
def test_sample_draws_as_the_probabilities_say_from_32768_tokens(top_k: int) -> None:
    row = torch.randn(2**15, generator=torch.Generator().manual_seed(0)).mul(3).softmax(0)
    left = top_k_renorm(row, top_k)
    statistics.frequencies(draws(row, 1000, 64, top_k=top_k), left)


def test_the_chi_square_test_has_its_level() -> None:
    row = torch.tensor([0.5, 0.2, 0.1, 0.08, 0.06, 0.03, 0.02, 0.01])
    ids = draws(row, torch.arange(100_000), 100_000).view(200, 500)
    values = torch.tensor([statistics.p_value(run, row) for run in ids])
    # 200 uniform numbers: 4.9 standard deviations of their mean are 0.1.
    assert abs(values.mean() - 0.5) < 0.1
    assert values.min() > statistics.ALPHA


# apply_token_bitmask_


def test_the_lowest_bit_is_the_first_token_and_the_sign_bit_the_last() -> None:
    logits = apply_token_bitmask_(torch.zeros(1, 34), torch.tensor([[-(2**31) + 1, 2]]).int())
    assert (logits[0] == 0).nonzero().flatten().tolist() == [0, 31, 33]
    assert (logits[0] == -INF).sum() == 31


def test_columns_beyond_the_mask_are_forbidden() -> None:
    logits = torch.zeros(2, 70)
    apply_token_bitmask_(logits, torch.full((2, 2), -1, dtype=torch.int32))
    assert (logits[:, :64] == 0).all()
    assert (logits[:, 64:] == -INF).all()


def test_the_mask_goes_to_the_rows_of_indices_and_through_strides() -> None:
    memory = torch.arange(4 * 80.0).view(4, 80)
    before = memory.clone()
    view = memory[:, 4:76:2]
    mask = torch.tensor([[0, 0], [1, 0]], dtype=torch.int32)
    assert apply_token_bitmask_(view, mask, indices=torch.tensor([3, 1])) is view
    assert (view[3] == -INF).all()
    assert view[1, 0] == before[1, 4]
    assert (view[1, 1:] == -INF).all()
    view[1], view[3] = before[1, 4:76:2], before[3, 4:76:2]
    assert torch.equal(memory, before)


def test_a_forbidden_nan_is_masked_and_an_allowed_one_stays() -> None:
    logits = apply_token_bitmask_(torch.tensor([[NAN, NAN, INF, INF]]), torch.tensor([[5]]).int())
    assert logits[0, 0].isnan()
    assert logits[0, 1:].tolist() == [-INF, INF, -INF]


@given(
    first=st.lists(words, min_size=2, max_size=2), second=st.lists(words, min_size=2, max_size=2)
)
@few
def test_two_masks_are_their_intersection(first: list[int], second: list[int]) -> None:
    one, two = (torch.tensor([m]).to(torch.int32) for m in (first, second))
    logits = torch.arange(50.0)[None]
    both = apply_token_bitmask_(logits.clone(), one & two)
    assert torch.equal(apply_token_bitmask_(apply_token_bitmask_(logits, one), two), both)
