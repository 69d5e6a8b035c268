"""Laws of the attention ops and of the paged cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import SEEDS, Law, Values, equal, here, near

__all__ = ["LAWS"]

CALL: dict[str, Any] = {
    "queries": st.integers(1, 5),
    "keys": st.integers(1, 33),
    "heads": st.integers(1, 4),
    "head_dim": st.integers(1, 33),
    "seed": SEEDS,
}
# Scores are up to 8 and rounded to some units of that, and so weights and sums to as much of 1.
ROUNDINGS = 64
OPS = ("varlen_attention",)


def _cuts(*ends: int) -> Tensor:
    """Where sequences with these ends start."""
    return here(torch.tensor([0, *ends]))


class Call:
    """One sequence: queries of one head for each of ``heads``, keys and values of as many."""

    def __init__(self, queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
        self.values = Values(seed)
        self.q, self.k, self.v = (
            self.values(tokens, heads, head_dim) for tokens in (queries, keys, keys)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The whole of ``k`` for each of ``q``."""
        cuts = _cuts(len(q)), _cuts(len(k))
        return hal.ops.varlen_attention(q, k, v, *cuts, len(q), len(k), **options)

    def close(self, got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
        """Require results that agree up to the rounding of scores."""
        near(got[0], want[0], ROUNDINGS, like=self.v)
        near(got[1], want[1], ROUNDINGS, like=self.v.new_full((), 8.0))


def keys_in_another_order(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    order = call.values.order(keys)
    want = call.attend(call.q, call.k, call.v)
    call.close(call.attend(call.q, call.k[order], call.v[order]), want)


def a_split_of_the_keys(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call, cut = Call(queries, keys, heads, head_dim, seed), seed % (keys + 1)
    whole = call.attend(call.q, call.k, call.v)
    left = call.attend(call.q, call.k[:cut], call.v[:cut])
    right = call.attend(call.q, call.k[cut:], call.v[cut:])
    call.close(hal.ops.merge_attention_states(*left, *right), whole)


def the_last_query_sees_all(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    out, lse = call.attend(call.q, call.k, call.v, causal=True)
    want = call.attend(call.q[-1:], call.k, call.v)
    call.close((out[-1:], lse[-1:]), want)


def later_keys_are_not_seen(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    whole = call.attend(call.q, call.k, call.v, causal=True)
    for i in range(queries):
        seen = max(keys - queries + i + 1, 0)
        want = call.attend(call.q[i : i + 1], call.k[:seen], call.v[:seen])
        call.close((whole[0][i : i + 1], whole[1][i : i + 1]), want)


def a_wide_window(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    wide = call.attend(call.q, call.k, call.v, window=(queries + keys, queries + keys))
    call.close(wide, call.attend(call.q, call.k, call.v))
    right = call.attend(call.q, call.k, call.v, window=(-1, 0))
    call.close(right, call.attend(call.q, call.k, call.v, causal=True))


def weights_sum_to_1(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    same = call.v[:1].expand(keys, heads, head_dim)
    out, _ = call.attend(call.q, call.k, same)
    near(out, same[:1].expand(out.shape), ROUNDINGS)


def attention_is_linear_in_values(
    queries: int, keys: int, heads: int, head_dim: int, seed: int
) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    out, lse = call.attend(call.q, call.k, call.v)
    more, also = call.attend(call.q, call.k, call.v * 4)
    equal(more, out * 4)
    equal(also, lse)


def the_scale_multiplies_scores(
    queries: int, keys: int, heads: int, head_dim: int, seed: int
) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    want = call.attend(call.q, call.k, call.v, scale=0.25)
    call.close(call.attend(call.q / 2, call.k, call.v, scale=0.5), want)


def a_sink_takes_its_share(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    out, lse = call.attend(call.q, call.k, call.v)
    sinks = call.values(heads)
    total = torch.logaddexp(lse, sinks.expand_as(lse))
    want = (out * torch.exp(lse - total).unsqueeze(-1), total)
    call.close(call.attend(call.q, call.k, call.v, sinks=sinks), want)
    none = torch.full_like(sinks, -math.inf)
    call.close(call.attend(call.q, call.k, call.v, sinks=none), (out, lse))


def heads_share_keys(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    q = call.values(queries, 2 * heads, head_dim)
    repeated = [x.repeat_interleave(2, dim=1) for x in (call.k, call.v)]
    call.close(call.attend(q, call.k, call.v), call.attend(q, *repeated))


def sequences_are_apart(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call, cut = Call(queries, keys, heads, head_dim, seed), seed % (keys + 1)
    middle = seed % (queries + 1)
    cuts = _cuts(middle, queries), _cuts(cut, keys)
    out, lse = hal.ops.varlen_attention(call.q, call.k, call.v, *cuts, queries, keys, causal=True)
    for tokens, seen in ((slice(middle), slice(cut)), (slice(middle, None), slice(cut, None))):
        want = call.attend(call.q[tokens], call.k[seen], call.v[seen], causal=True)
        call.close((out[tokens], lse[tokens]), want)


def _table(values: Values, length: int, size: int) -> Tensor:
    """Blocks of ``size`` for so many keys, [1, blocks], in some order; there are two more."""
    blocks = -(-length // size)
    return values.order(blocks + 2)[:blocks].int().unsqueeze(0)


def _pages(x: Tensor, table: Tensor, size: int) -> Tensor:
    """A cache of the rows ``x`` in the blocks of ``table``, and NaN in all others."""
    cache = x.new_full((table.shape[1] + 2, size, *x.shape[1:]), math.nan)
    place = torch.arange(len(x), device=x.device)
    cache[table[0].long()[place // size], place % size] = x
    return cache


def pages_in_any_order(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    call = Call(queries, keys, heads, head_dim, seed)
    size = 1 + seed % 9
    table, lens = _table(call.values, keys, size), here(torch.tensor([keys]))
    caches = _pages(call.k, table, size), _pages(call.v, table, size)
    for causal in (False, True):
        got = hal.ops.paged_attention(
            call.q, *caches, table, lens, _cuts(queries), queries, keys, causal=causal
        )
        call.close(got, call.attend(call.q, call.k, call.v, causal=causal))


def latents_are_keys_and_values(
    queries: int, keys: int, heads: int, head_dim: int, seed: int
) -> None:
    values, rope = Values(seed), 1 + seed % 9
    q, rows = values(1, heads, head_dim + rope), values(keys, head_dim + rope)
    size = 1 + seed % 7
    table = _table(values, keys, size)
    cache = _pages(rows, table, size)
    lens, scale = here(torch.tensor([keys])), (head_dim + rope) ** -0.5
    parts = q[..., :head_dim].contiguous(), q[..., head_dim:].contiguous()
    got = hal.ops.mla_decode(*parts, cache, table, lens, scale=scale)
    pages = cache.unsqueeze(2), cache[..., :head_dim].unsqueeze(2)
    want = hal.ops.paged_attention(q, *pages, table, lens, _cuts(1), 1, keys, scale=scale)
    near(got[0], want[0], ROUNDINGS, like=rows)
    near(got[1], want[1], ROUNDINGS, like=rows.new_full((), 8.0))
    del queries


def _state(values: Values, tokens: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    return values(tokens, heads, head_dim), values(tokens, heads) * 4


def merging(queries: int, keys: int, heads: int, head_dim: int, seed: int) -> None:
    values = Values(seed)
    a, b = (_state(values, queries, heads, head_dim) for _ in range(2))
    out, lse = hal.ops.merge_attention_states(*a, *b)
    also, same = hal.ops.merge_attention_states(*b, *a)
    near(also, out, 16, like=torch.stack((a[0], b[0])))
    near(same, lse, 16, like=torch.stack((a[1], b[1])))
    nothing = torch.full_like(a[0], math.nan), torch.full_like(a[1], -math.inf)
    for empty, kept in zip(hal.ops.merge_attention_states(*a, *nothing), a, strict=True):
        equal(empty, kept)
    assert bool((lse >= torch.maximum(a[1], b[1])).all())
    del keys


def _store(values: Values, tokens: int, heads: int, head_dim: int, size: int) -> list[Tensor]:
    rows = [values(tokens, heads, head_dim) for _ in range(2)]
    blocks = -(-tokens // size) + 1
    caches = [values(blocks, size, heads, head_dim) for _ in range(2)]
    return [*rows, *caches, values.order(blocks * size)[:tokens]]


def what_is_stored_is_read(tokens: int, heads: int, head_dim: int, size: int, seed: int) -> None:
    values = Values(seed)
    k, v, k_cache, v_cache, slots = _store(values, tokens, heads, head_dim, size)
    before = [cache.clone() for cache in (k_cache, v_cache)]
    hal.ops.store_kv_cache_(k, v, k_cache, v_cache, slots)
    for cache, rows, old in zip((k_cache, v_cache), (k, v), before, strict=True):
        equal(cache.flatten(0, 1)[slots], rows)
        others = torch.ones(len(cache) * size, dtype=torch.bool, device=rows.device)
        others[slots] = False
        equal(cache.flatten(0, 1)[others], old.flatten(0, 1)[others])


def tokens_in_another_order(tokens: int, heads: int, head_dim: int, size: int, seed: int) -> None:
    values = Values(seed)
    k, v, k_cache, v_cache, slots = _store(values, tokens, heads, head_dim, size)
    also, order = (k_cache.clone(), v_cache.clone()), values.order(tokens)
    hal.ops.store_kv_cache_(k, v, k_cache, v_cache, slots)
    hal.ops.store_kv_cache_(k[order], v[order], *also, slots[order])
    equal(also[0], k_cache)
    equal(also[1], v_cache)


def skipped_tokens(tokens: int, heads: int, head_dim: int, size: int, seed: int) -> None:
    k, v, k_cache, v_cache, slots = _store(Values(seed), tokens, heads, head_dim, size)
    before = k_cache.clone(), v_cache.clone()
    hal.ops.store_kv_cache_(k, v, k_cache, v_cache, torch.full_like(slots, -1))
    equal(k_cache, before[0])
    equal(v_cache, before[1])


STORE: dict[str, Any] = {
    "tokens": st.integers(1, 20),
    "heads": st.integers(1, 3),
    "head_dim": st.integers(1, 33),
    "size": st.integers(1, 9),
    "seed": SEEDS,
}
MERGE, STORED = "merge_attention_states", ("store_kv_cache_",)

LAWS = [
    Law("keys in another order give the same", OPS, CALL, keys_in_another_order),
    Law("parts of the keys, merged, are the whole", (*OPS, MERGE), CALL, a_split_of_the_keys),
    Law("the last causal query sees all keys", OPS, CALL, the_last_query_sees_all),
    Law("causal is attention to the keys so far", OPS, CALL, later_keys_are_not_seen),
    Law("a window wider than all is none", OPS, CALL, a_wide_window),
    Law("the weights of a query sum to 1", OPS, CALL, weights_sum_to_1),
    Law("attention is linear in the values", OPS, CALL, attention_is_linear_in_values),
    Law("the scale multiplies scores", OPS, CALL, the_scale_multiplies_scores),
    Law("a sink takes its share of the weights", OPS, CALL, a_sink_takes_its_share),
    Law("heads share keys as if these were repeated", OPS, CALL, heads_share_keys),
    Law("sequences do not see one another", OPS, CALL, sequences_are_apart),
    Law("pages may lie in any order", ("paged_attention", *OPS), CALL, pages_in_any_order),
    Law(
        "mla_decode is paged_attention of latents",
        ("mla_decode", "paged_attention"),
        CALL,
        latents_are_keys_and_values,
    ),
    Law("merging is commutative, and nothing adds nothing", (MERGE,), CALL, merging),
    Law("what is stored is read, and nothing else changes", STORED, STORE, what_is_stored_is_read),
    Law("tokens are stored in any order", STORED, STORE, tokens_in_another_order),
    Law("a token of slot -1 is not stored", STORED, STORE, skipped_tokens),
]
