"""What the attention over latents decides, and the laws it obeys, on its reference."""

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
from hal_native.attention import merge_attention_states, varlen_attention
from hal_native.mla import mla_decode

INF = math.inf
LAWS = settings(max_examples=60, deadline=None, derandomize=True)


def one(
    q_nope: list[float], q_rope: list[float], rows: list[list[float]], scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One head of one sequence, whose rows are one block."""
    queries = torch.tensor(q_nope).view(1, 1, -1), torch.tensor(q_rope).view(1, 1, -1)
    kv_cache = torch.tensor(rows).view(1, len(rows), -1)
    lens = torch.tensor([len(rows)])
    out, lse = mla_decode(*queries, kv_cache, torch.tensor([[0]]), lens, scale=scale)
    return out[0, 0], lse[0, 0]


def test_the_key_is_the_whole_row_and_the_value_its_latent() -> None:
    out, lse = one([1.0, 0.0], [2.0], [[1.0, 5.0, 0.5], [2.0, 7.0, 0.0]])
    assert_close(out, torch.tensor([1.5, 6.0]))
    assert_close(lse, torch.tensor(2 + math.log(2)))


def test_the_rotated_part_comes_last() -> None:
    # With it first, the value would be 4 and the score 3.
    out, lse = one([1.0], [0.0], [[3.0, 4.0]])
    assert (out.tolist(), lse.item()) == ([3.0], 3.0)


def test_scale_is_as_given_whatever_the_widths() -> None:
    assert one([1.0] * 4, [1.0] * 5, [[1.0] * 9], scale=1.0)[1] == 9
    assert one([1.0] * 4, [1.0] * 5, [[1.0] * 9], scale=-0.5)[1] == -4.5


@pytest.mark.parametrize("scale", [INF, math.nan])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    args = torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 3, 3)
    table, lens = torch.tensor([[0]]), torch.tensor([3])
    with pytest.raises(hal.InvalidInput, match="scale must be finite"):
        hal.ops.mla_decode(*args, table, lens, scale=scale)


def test_lse_is_a_natural_log_in_float32() -> None:
    args = torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 3, 3)
    table, lens = torch.tensor([[0]]), torch.tensor([3])
    for dtype, wide in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        _, lse = mla_decode(*(x.to(dtype) for x in args), table, lens, scale=1.0)
        assert_close(lse, torch.tensor([[3.0]], dtype=wide).log())


def test_weights_are_not_rounded_to_the_dtype_of_the_rows() -> None:
    # Two weights of nearly a half, which in bfloat16 are equal: the values would cancel.
    rows = torch.tensor([[[1.0, 2.0**-8], [-1.0, 0.0]]]).bfloat16()
    queries = torch.zeros(1, 1, 1).bfloat16(), torch.ones(1, 1, 1).bfloat16()
    out, _ = mla_decode(*queries, rows, torch.tensor([[0]]), torch.tensor([2]), scale=1.0)
    assert out.item() == pytest.approx(math.tanh(2.0**-9), rel=2.0**-8)


def test_a_sequence_without_rows_gives_zero_and_minus_infinity() -> None:
    queries = torch.full((2, 1, 2), math.nan), torch.ones(2, 1, 1)
    kv_cache, table = torch.full((1, 4, 3), math.nan), torch.tensor([[-7], [99]])
    out, lse = mla_decode(*queries, kv_cache, table, torch.tensor([0, 0]), scale=1.0)
    assert torch.equal(out, torch.zeros(2, 1, 2))
    assert torch.equal(lse, torch.full((2, 1), -INF))


@pytest.mark.parametrize("junk", [math.nan, INF, 1e30])
def test_rows_and_blocks_beyond_the_sequence_are_not_used(junk: float) -> None:
    kv_cache = torch.full((4, 4, 2), junk)
    kv_cache[1] = torch.tensor([1.0, 0.0])
    kv_cache[3, :1] = torch.tensor([6.0, 0.0])
    table = torch.tensor([[1, 3, -1], [2**31 - 1, -7, 99]], dtype=torch.int32)
    queries, lens = torch.zeros(2, 2, 1, 1), torch.tensor([5, 0], dtype=torch.int32)
    out, lse = mla_decode(*queries, kv_cache, table, lens, scale=1.0)
    assert_close(out.flatten(), torch.tensor([2.0, 0.0]))
    assert_close(lse.flatten(), torch.tensor([5.0, 0.0]).log())


def test_nan_in_a_query_stays_in_its_head_and_in_a_row_with_its_sequence() -> None:
    q_nope, q_rope = torch.ones(3, 2, 2), torch.ones(3, 2, 1)
    kv_cache, table = torch.ones(3, 2, 3), torch.arange(3).view(3, 1)
    q_rope[0, 1, 0] = math.nan
    kv_cache[2, 1, 0] = math.nan
    args = q_nope, q_rope, kv_cache, table, torch.tensor([2, 2, 2])
    out, lse = mla_decode(*args, scale=1.0)
    assert lse.isnan().tolist() == [[False, True], [False, False], [True, True]]
    assert torch.equal(out.isnan(), lse.isnan()[..., None].expand(3, 2, 2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[Tensor], float]:
    """Float64 queries, the rows of each sequence, a scale."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    lens = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    heads, latent, rope = (draw(st.integers(1, limit)) for limit in (4, 6, 4))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = [randn(length, latent + rope) for length in lens]
    queries = randn(len(lens), heads, latent), randn(len(lens), heads, rope)
    return *queries, rows, draw(st.sampled_from([0.3, 1.0, -0.7]))


def paged(rows: list[Tensor], size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of each sequence in shuffled blocks: cache, block table and lengths."""
    counts = [-(-len(part) // size) for part in rows]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(counts) + 1, generator=generator).tolist()
    kv_cache = rows[0].new_full((len(order), size, rows[0].shape[1]), math.nan)
    table = torch.full((len(rows), max(counts) + 1), -1)
    for row, part in enumerate(rows):
        for column in range(counts[row]):
            block = part[column * size : (column + 1) * size]
            table[row, column] = order.pop()
            kv_cache[table[row, column], : len(block)] = block
    return kv_cache, table, torch.tensor([len(part) for part in rows])


Case = tuple[Tensor, Tensor, list[Tensor], float]


@LAWS
@given(case=cases(), size=st.integers(1, 5), seed=st.integers(0, 100))
def test_blocks_of_any_size_in_any_order_are_the_same(case: Case, size: int, seed: int) -> None:
    q_nope, q_rope, rows, scale = case
    expected = mla_decode(q_nope, q_rope, *paged(rows), scale=scale)
    assert_close(mla_decode(q_nope, q_rope, *paged(rows, size, seed), scale=scale), expected)


@LAWS
@given(case=cases())
def test_it_is_attention_with_one_kv_head(case: Case) -> None:
    q_nope, q_rope, rows, scale = case
    keys = torch.cat(rows)[:, None]
    lens = torch.tensor([0, *(len(part) for part in rows)]).cumsum(0)
    bounds = torch.arange(len(rows) + 1), lens, 1, 9
    q, values = torch.cat((q_nope, q_rope), dim=-1), keys[..., : q_nope.shape[2]]
    expected = varlen_attention(q, keys, values, *bounds, scale=scale)
    assert_close(mla_decode(q_nope, q_rope, *paged(rows), scale=scale), expected)


@LAWS
@given(case=cases(), seed=st.integers(0, 2**32))
def test_folding_the_projections_is_attention_over_unfolded_heads(case: Case, seed: int) -> None:
    # Keys up @ latent and the rotated part, values down @ latent, as the model is trained.
    q_nope, q_rope, rows, scale = case
    heads, latent = q_nope.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    up, down = (
        torch.randn(heads, size, latent, generator=generator, dtype=torch.float64)
        for size in (5, 3)
    )
    queries = torch.randn(len(rows), heads, 5, generator=generator, dtype=torch.float64)
    folded = torch.einsum("bhd,hdl->bhl", queries, up)
    out, lse = mla_decode(folded, q_rope, *paged(rows), scale=scale)
    out = torch.einsum("bhl,hdl->bhd", out, down)
    for b, part in enumerate(rows):
        keys = torch.einsum("hdl,jl->jhd", up, part[:, :latent])
        rope = part[:, None, latent:].expand(-1, heads, -1)
        values = torch.einsum("hdl,jl->jhd", down, part[:, :latent])
        q = torch.cat((queries[b], q_rope[b]), dim=-1)[None]
        bounds = torch.tensor([0, 1]), torch.tensor([0, len(part)]), 1, len(part)
        args: list[Any] = [q, torch.cat((keys, rope), dim=-1), values]
        want, want_lse = varlen_attention(*args, *bounds, scale=scale)
        assert_close((out[b], lse[b]), (want[0], want_lse[0]))


@LAWS
@given(case=cases(), cut=st.integers(0, 9))
def test_merging_two_sets_of_rows_is_attention_over_both(case: Case, cut: int) -> None:
    q_nope, q_rope, rows, scale = case
    parts = [[part[:cut] for part in rows], [part[cut:] for part in rows]]
    sides = [mla_decode(q_nope, q_rope, *paged(part), scale=scale) for part in parts]
    expected = mla_decode(q_nope, q_rope, *paged(rows), scale=scale)
    assert_close(merge_attention_states(*sides[0], *sides[1]), expected)


@LAWS
@given(case=cases(), data=st.data())
def test_sequences_and_heads_do_not_depend_on_each_other(case: Case, data: st.DataObject) -> None:
    q_nope, q_rope, rows, scale = case
    out, lse = mla_decode(q_nope, q_rope, *paged(rows), scale=scale)
    b = data.draw(st.integers(0, len(rows) - 1))
    h = data.draw(st.integers(0, q_nope.shape[1] - 1))
    alone = q_nope[b : b + 1, h : h + 1], q_rope[b : b + 1, h : h + 1]
    expected = out[b : b + 1, h : h + 1], lse[b : b + 1, h : h + 1]
    assert_close(mla_decode(*alone, *paged(rows[b : b + 1]), scale=scale), expected)
