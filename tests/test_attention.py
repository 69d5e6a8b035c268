"""What attention decides where kernels disagree, and the laws it obeys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import hal
from hal_native.attention import merge_attention_states, paged_attention, varlen_attention

INF = math.inf
LAW = settings(max_examples=100, deadline=None, derandomize=True)


def starts(*lens: int) -> Tensor:
    return torch.tensor([sum(lens[:i]) for i in range(len(lens) + 1)], dtype=torch.int32)


def one(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention of one sequence."""
    return varlen_attention(q, k, v, starts(len(q)), starts(len(k)), len(q), len(k), **options)


def uniform(queries: int, keys: int, heads: int = 1, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Equal scores, so that lse is the log of the number of visible keys; values 0, 1, 2 ..."""
    v = torch.arange(float(keys)).view(keys, 1, 1).expand(keys, heads, 1)
    return torch.zeros(queries, heads, dim), torch.zeros(keys, heads, dim), v


def logs(*counts: float) -> Tensor:
    return torch.tensor(counts).log().view(-1, 1)


def test_causal_mask_ends_at_the_last_key() -> None:
    assert_close(one(*uniform(2, 5), causal=True)[1], logs(4, 5))


def test_more_queries_than_keys_leaves_the_first_ones_without_any() -> None:
    out, lse = one(*uniform(4, 2), causal=True)
    assert_close(lse, logs(0, 0, 1, 2))
    assert_close(out.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.5]))


def test_attention_is_not_causal_unless_asked() -> None:
    assert_close(one(*uniform(2, 5))[1], logs(5, 5))
    q, k, v = uniform(2, 4)
    table, lens = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([4])
    lse = paged_attention(q, k[None], v[None], table, lens, starts(2), 2, 4)[1]
    assert_close(lse, logs(4, 4))


@pytest.mark.parametrize(
    ("window", "causal", "counts"),
    [
        ((0, 0), False, (1, 1, 1)),
        ((1, 0), False, (2, 2, 2)),
        ((2, 1), False, (4, 4, 3)),
        ((-1, 1), False, (4, 5, 5)),
        ((1, -1), False, (4, 3, 2)),
        ((1, 1), True, (2, 2, 2)),
        ((-1, -1), True, (3, 4, 5)),
        ((-1, 0), False, (3, 4, 5)),
    ],
)
def test_window_counts_keys_beside_the_own_one(
    window: tuple[int, int], causal: bool, counts: tuple[int, ...]
) -> None:
    assert_close(one(*uniform(3, 5), window=window, causal=causal)[1], logs(*counts))


def test_lse_is_a_natural_log_in_float32() -> None:
    lse = one(*(x.half() for x in uniform(1, 3)))[1]
    assert lse.dtype == torch.float32
    assert_close(lse, torch.tensor([[1.0986123]]))
    assert one(*(x.double() for x in uniform(1, 3)))[1].dtype == torch.float64


def test_default_scale_is_that_of_the_keys_not_of_the_values() -> None:
    q, k, v = torch.ones(1, 1, 16), torch.ones(1, 1, 16), torch.ones(1, 1, 4)
    assert_close(one(q, k, v)[1], torch.tensor([[4.0]]))
    assert_close(one(q, k, v, scale=0.5)[1], torch.tensor([[8.0]]))


def test_softcap_follows_the_scale_and_precedes_the_mask() -> None:
    q, k, v = torch.ones(2, 1, 1), torch.full((2, 1, 1), 6.0), torch.ones(2, 1, 1)
    lse = one(q, k, v, scale=0.5, softcap=2.0, causal=True)[1]
    capped = 2 * math.tanh(3 / 2)
    assert_close(lse, torch.tensor([[capped], [capped + math.log(2)]]))


@pytest.mark.parametrize("value", [INF, -INF, math.nan])
@pytest.mark.parametrize("name", ["softcap", "scale"])
def test_a_factor_of_the_scores_that_is_not_finite_is_refused(name: str, value: float) -> None:
    args = *uniform(1, 2), starts(1), starts(2), 1, 2
    with pytest.raises(hal.InvalidInput, match=f"^varlen_attention: {name} must"):
        hal.ops.varlen_attention(*args, **{name: value})


def test_sinks_join_the_denominator_unscaled_and_uncapped() -> None:
    q, k, v = torch.zeros(1, 2, 4), torch.zeros(3, 2, 4), torch.ones(3, 2, 1)
    sinks = torch.tensor([math.log(5.0), -INF])
    out, lse = one(q, k, v, sinks=sinks, softcap=0.1, scale=7.0)
    assert_close(out.flatten(), torch.tensor([3 / 8, 1.0]))
    assert_close(lse.flatten(), torch.tensor([8.0, 3.0]).log())


def test_a_query_without_keys_gives_zero_and_the_sink() -> None:
    q, k, v = torch.ones(1, 1, 4), torch.ones(0, 1, 4), torch.ones(0, 1, 3)
    out, lse = one(q, k, v)
    assert torch.equal(out, torch.zeros(1, 1, 3))
    assert torch.equal(lse, torch.tensor([[-INF]]))
    out, lse = one(q, k, v, sinks=torch.tensor([2.5]))
    assert torch.equal(out, torch.zeros(1, 1, 3))
    assert_close(lse, torch.tensor([[2.5]]))


def test_scores_of_minus_infinity_are_like_no_keys() -> None:
    out, lse = one(torch.ones(1, 1, 1), torch.full((2, 1, 1), -INF), torch.ones(2, 1, 1))
    assert torch.equal(out, torch.zeros(1, 1, 1))
    assert torch.equal(lse, torch.tensor([[-INF]]))


def test_neighbouring_heads_share_a_kv_head() -> None:
    v = torch.tensor([1.0, 2.0]).view(1, 2, 1)
    out, _ = one(torch.zeros(1, 6, 4), torch.zeros(1, 2, 4), v)
    assert out.flatten().tolist() == [1, 1, 1, 2, 2, 2]


def test_padding_behind_the_last_sequence_is_empty_whatever_it_holds() -> None:
    q, k, v = torch.full((5, 1, 4), math.nan), torch.zeros(3, 1, 4), torch.ones(3, 1, 2)
    q[:2] = 0
    args = (q, k, v, starts(1, 0, 1, 0), starts(1, 0, 2, 0), 5, 7)
    out, lse = varlen_attention(*args, sinks=torch.zeros(1))
    assert_close(out[:, 0, 0], torch.tensor([1 / 2, 2 / 3, 0, 0, 0]))
    assert_close(lse, logs(2, 3, 0, 0, 0))


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_a_bad_value_stays_in_its_column_and_with_the_queries_that_see_it(value: float) -> None:
    q, k, v = uniform(4, 4)
    v = torch.cat((v, v), dim=-1)
    v[2, 0, 1] = value
    out, lse = one(q, k, v, causal=True)
    assert out.isfinite().tolist() == [[[True, True]]] * 2 + [[[True, False]]] * 2
    assert_close(out[2:, 0, 1], torch.full((2,), value), equal_nan=True)
    assert_close(lse, logs(1, 2, 3, 4))


def test_nan_in_a_key_stays_with_the_queries_that_see_it() -> None:
    q, k, v = uniform(4, 4, heads=2)
    k[2, 1] = math.nan
    out, lse = one(q, k, v, causal=True)
    expected = torch.tensor([[False, False]] * 2 + [[False, True]] * 2)
    assert torch.equal(lse.isnan(), expected)
    assert torch.equal(out[..., 0].isnan(), expected)


def test_nan_in_a_query_stays_in_its_head() -> None:
    q, k, v = uniform(3, 4, heads=2)
    q[1, 0] = math.nan
    out, lse = one(q, k, v)
    expected = torch.tensor([[False, False], [True, False], [False, False]])
    assert torch.equal(lse.isnan(), expected)
    assert torch.equal(out[..., 0].isnan(), expected)


def test_values_at_the_end_of_the_range_do_not_overflow() -> None:
    q, k, v = uniform(1, 300)
    out, _ = one(q, k, torch.full_like(v, 3e38))
    assert_close(out, torch.full((1, 1, 1), 3e38), rtol=1e-5, atol=0)


@pytest.mark.parametrize("junk", [math.nan, INF, 1e30])
def test_rows_and_blocks_beyond_the_keys_are_not_used(junk: float) -> None:
    k_cache, v_cache = torch.full((4, 4, 1, 2), junk), torch.full((4, 4, 1, 2), junk)
    k_cache[1], v_cache[1] = 0, 1
    k_cache[3, :1], v_cache[3, :1] = 0, 6
    table = torch.tensor([[1, 3, -1], [2**31 - 1, -7, 99]], dtype=torch.int32)
    q, lens = torch.zeros(2, 1, 2), torch.tensor([5, 0], dtype=torch.int32)
    out, lse = paged_attention(q, k_cache, v_cache, table, lens, starts(1, 1), 1, 100)
    assert_close(out[:, 0], torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    assert_close(lse, logs(5, 0))


def test_scales_of_an_8_bit_cache_multiply_each_head() -> None:
    k_cache, v_cache = (torch.full((1, 2, 2, 1), x).to(torch.float8_e4m3fn) for x in (2.0, 3.0))
    q, table, lens = torch.ones(1, 2, 1), torch.tensor([[0]]), torch.tensor([1])
    args = (q, k_cache, v_cache, table, lens, starts(1), 1, 1)
    out, lse = paged_attention(*args, k_scale=torch.tensor([0.5, 4.0]), v_scale=10.0)
    assert lse.tolist() == [[1.0, 8.0]]
    assert out.flatten().tolist() == [30.0, 30.0]
    out, lse = paged_attention(*args)
    assert (out.flatten().tolist(), lse.tolist()) == ([3.0, 3.0], [[2.0, 2.0]])


@pytest.mark.parametrize("empty", [-INF, INF])
def test_merging_with_a_side_without_keys_gives_the_other(empty: float) -> None:
    out, lse = torch.tensor([[[2.5]]]), torch.tensor([[3.5]])
    none = torch.full((1, 1, 1), math.nan), torch.full((1, 1), empty)
    for merged in (
        merge_attention_states(out, lse, *none),
        merge_attention_states(*none, out, lse),
    ):
        assert_close(merged, (out, lse))
    merged = merge_attention_states(*none, *none)
    assert_close(merged, (torch.zeros(1, 1, 1), torch.full((1, 1), -INF)))


def test_merging_depends_on_the_difference_of_large_lse_only() -> None:
    a, b = torch.tensor([[[1.0]]]), torch.tensor([[[5.0]]])
    for shift in (0.0, 4096.0, -4096.0, 1e30):
        lse = torch.full((1, 1), shift)
        out, merged = merge_attention_states(a, lse, b, lse)
        assert_close(out, torch.tensor([[[3.0]]]))
        assert_close(merged, lse + math.log(2))


LENS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=4)
OPTIONS = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.tuples(st.integers(-1, 6), st.integers(-1, 6)),
        "softcap": st.sampled_from([0.0, 1.5]),
        "scale": st.sampled_from([None, 0.3]),
    }
)
SEEDS = st.integers(0, 2**31)


def ragged(seed: int, lens: list[tuple[int, int]], heads: int = 4, kv_heads: int = 2) -> list[Any]:
    """Arguments of ``varlen_attention`` in float64, where a law holds to the last few digits."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = zip(*lens, strict=True)
    q, k, v = (
        torch.randn(tokens, count, 3, generator=generator, dtype=torch.float64)
        for tokens, count in [(sum(queries), heads), (sum(keys), kv_heads), (sum(keys), kv_heads)]
    )
    return [q, k, v, starts(*queries), starts(*keys), max(queries), max(keys)]


def into_pages(x: Tensor, lens: list[int], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Put the rows of each sequence into shuffled blocks; returns the cache and the block table."""
    counts = [-(-length // size) for length in lens]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(counts) + 1, generator=generator).tolist()
    cache = x.new_full((len(order), size, *x.shape[1:]), math.nan)
    table = torch.full((len(lens), max(counts) + 1), -1)
    for row, part in enumerate(x.split(lens)):
        for column, rows in enumerate(part.split(size)[: counts[row]]):
            table[row, column] = order.pop()
            cache[table[row, column], : len(rows)] = rows
    return cache, table


@LAW
@given(SEEDS, LENS, OPTIONS, st.integers(1, 5))
def test_paged_is_varlen_for_any_blocks_in_any_order(
    seed: int, lens: list[tuple[int, int]], options: dict[str, Any], size: int
) -> None:
    q, k, v, cu_q, cu_k, *bounds = ragged(seed, lens)
    keys = [length for _, length in lens]
    (k_cache, table), (v_cache, _) = (into_pages(x, keys, size, seed) for x in (k, v))
    args = (q, k_cache, v_cache, table, torch.tensor(keys), cu_q, *bounds)
    expected = varlen_attention(q, k, v, cu_q, cu_k, *bounds, **options)
    assert_close(paged_attention(*args, **options), expected)


@LAW
@given(SEEDS, LENS, OPTIONS, st.integers(0, 9))
def test_merging_two_sets_of_keys_is_attention_over_both(
    seed: int, lens: list[tuple[int, int]], options: dict[str, Any], cut: int
) -> None:
    q, k, v, *rest = ragged(seed, [(queries, keys) for queries, keys in lens[:1]])
    options = {**options, "causal": False, "window": (-1, -1)}
    parts = [one(q, k[part], v[part], **options) for part in (slice(cut), slice(cut, None))]
    merged = merge_attention_states(*parts[0], *parts[1])
    assert_close(merged, varlen_attention(q, k, v, *rest, **options))


@LAW
@given(SEEDS, LENS, OPTIONS)
def test_shared_heads_are_repeated_heads(
    seed: int, lens: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    q, k, v, *rest = ragged(seed, lens)
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    expected = varlen_attention(q, *repeated, *rest, **options)
    assert_close(varlen_attention(q, k, v, *rest, **options), expected)


@LAW
@given(SEEDS, LENS, OPTIONS)
def test_a_batch_is_its_sequences_one_by_one(
    seed: int, lens: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    q, k, v, *rest = ragged(seed, lens)
    options = {**options, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)}
    queries, keys = ([part[i] for part in lens] for i in (0, 1))
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    outs, lses = zip(*(one(*part, **options) for part in parts), strict=True)
    batch = varlen_attention(q, k, v, *rest, **options)
    assert_close(batch, (torch.cat(outs), torch.cat(lses)))


@LAW
@given(SEEDS, st.integers(1, 7), st.integers(0, 6), st.integers(-1, 4))
def test_decoding_step_by_step_is_prefill(seed: int, queries: int, before: int, left: int) -> None:
    keys = before + queries
    q, k, v, cu_q, cu_k, *bounds = ragged(seed, [(queries, keys)])
    options = {"causal": True, "window": (left, -1)}
    (k_cache, table), (v_cache, _) = (into_pages(x, [keys], 2, seed) for x in (k, v))
    # One sequence for each step, all in the same blocks: each sees what was stored until then.
    lens = torch.arange(before + 1, keys + 1)
    args = (table.expand(queries, -1), lens, starts(*[1] * queries), 1, keys)
    steps = paged_attention(q, k_cache, v_cache, *args, window=(left, -1))
    assert_close(steps, varlen_attention(q, k, v, cu_q, cu_k, *bounds, **options))


@LAW
@given(SEEDS, LENS, OPTIONS, st.integers(0, 50), st.integers(0, 50))
def test_bounds_above_the_lengths_change_nothing(
    seed: int, lens: list[tuple[int, int]], options: dict[str, Any], more_q: int, more_k: int
) -> None:
    *args, max_q, max_k = ragged(seed, lens)
    loose = varlen_attention(*args, max_q + more_q, max_k + more_k, **options)
    assert_close(loose, varlen_attention(*args, max_q, max_k, **options))


@LAW
@given(SEEDS, st.integers(1, 5), st.integers(1, 9))
def test_the_order_of_the_keys_does_not_matter_without_a_mask(
    seed: int, queries: int, keys: int
) -> None:
    q, k, v, *_ = ragged(seed, [(queries, keys)])
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    assert_close(one(q, k[order], v[order]), one(q, k, v))


@LAW
@given(SEEDS, st.integers(1, 5), st.integers(1, 9), st.floats(-50, 50))
def test_adding_one_vector_to_all_keys_shifts_lse_alone(
    seed: int, queries: int, keys: int, size: float
) -> None:
    q, k, v, *_ = ragged(seed, [(queries, keys)])
    shift = torch.full((1, 1, 3), size, dtype=torch.float64)
    out, lse = one(q, k, v, scale=1.0, causal=True)
    moved, moved_lse = one(q, k + shift, v, scale=1.0, causal=True)
    assert_close(moved, out)
    assert_close(moved_lse, lse + (q * shift).sum(-1))


@LAW
@given(SEEDS, st.integers(1, 5))
def test_merging_is_associative_and_commutative(seed: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(3, tokens, 2, 5, generator=generator, dtype=torch.float64)
    lse = 30 * torch.randn(3, tokens, 2, generator=generator, dtype=torch.float64)
    lse = lse.masked_fill(lse < -30, -INF)
    a, b, c = zip(draw, lse, strict=True)
    left = merge_attention_states(*merge_attention_states(*a, *b), *c)
    assert_close(merge_attention_states(*a, *merge_attention_states(*b, *c)), left)
    assert_close(merge_attention_states(*b, *a), merge_attention_states(*a, *b))


def test_results_are_contiguous_with_one_key() -> None:
    q = torch.ones(3, 2, 9)
    v = torch.ones(1, 9, 2).transpose(1, 2)
    cuts = torch.tensor([0, 3]), torch.tensor([0, 1])
    out, lse = hal.ops.varlen_attention(q, torch.ones(1, 2, 9), v, *cuts, 3, 1)
    assert out.is_contiguous()
    assert lse.is_contiguous()
