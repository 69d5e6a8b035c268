"""What the norm of packed queries and keys decides, and the laws it obeys, on its reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal.testing.records.rotary import cache
from hal_native.norm import qk_norm_rope, rms_norm
from hal_native.rotary import rotary_embedding

LAWS = settings(max_examples=60, deadline=None, derandomize=True)
both_layouts = pytest.mark.parametrize("is_neox", [True, False])


def one_head(
    head: Tensor, weight: Tensor, row: list[float], eps: float = 0.0, is_neox: bool = True
) -> Tensor:
    """A query of one head at the only row of a cache."""
    table, nothing = torch.tensor([row]), torch.zeros(1, dtype=torch.int32)
    out = qk_norm_rope(head[None], weight, weight, table, nothing, 1, 0, eps=eps, is_neox=is_neox)
    return out[0]


def apart(qkv: Tensor, size: int, heads: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The packed heads as [tokens, heads, head_dim] of queries, keys and values."""
    q, k, v = qkv.unflatten(-1, (-1, size)).split((heads[0], heads[1], heads[1]), dim=1)
    return q, k, v


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of calls with any number of heads, whole or partial rotations."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tokens, q_heads, kv_heads, size = (draw(st.integers(1, limit)) for limit in (4, 4, 3, 11))
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * size, generator=generator)
    weights = torch.randn(2, size, generator=generator).unbind()
    table = cache(2 * draw(st.integers(0, size // 2)))
    positions = torch.randint(64, (tokens,), generator=generator)
    kwargs = {"eps": draw(st.sampled_from([1e-6, 1e-2])), "is_neox": draw(st.booleans())}
    return [qkv.to(dtype), *weights, table, positions, q_heads, kv_heads], kwargs


def test_norm_comes_before_the_rotation() -> None:
    # The weight differs in the pair, which a rotation first would have swapped.
    out = one_head(torch.tensor([1.0, 7.0]), torch.tensor([5.0, 10.0]), [0.0, 1.0])
    assert torch.equal(out, torch.tensor([-14.0, 1.0]))


def test_nothing_is_rounded_between_norm_and_rotation() -> None:
    # The norms are equal in bfloat16, where one less the other would be 0.
    head, weight = torch.tensor([7.0, 1.0]).bfloat16(), torch.tensor([1.0, 7 * (1 + 2.0**-10)])
    assert rms_norm(head, weight, 0.0).unique().numel() == 1
    out = one_head(head, weight, [1.0, 1.0])
    assert out[0].item() == pytest.approx(-1.4 * 2.0**-10, rel=2.0**-8)


def test_weight_is_not_rounded_to_the_dtype_of_the_heads() -> None:
    head, weight = torch.tensor([7.0, 1.0]).bfloat16(), torch.tensor([1 + 2.0**-9, 1.0])
    out = one_head(head, weight, [1.0, 0.0])[0]
    assert out == (1.4 * weight).bfloat16()[0]
    assert out != (1.4 * weight.bfloat16().float()).bfloat16()[0]


def test_cache_is_not_rounded_to_the_dtype_of_the_heads() -> None:
    out = one_head(torch.ones(2).bfloat16(), torch.ones(2), [1.0, 1 + 2.0**-10])
    assert out[0] == -(2.0**-10)


def test_norm_is_of_each_head_not_of_all_queries() -> None:
    qkv, ones, table = torch.tensor([[3.0, 3.0, 0.5, 0.5]]), torch.ones(2), torch.zeros(1, 0)
    args = qkv, ones, ones, table, torch.tensor([0])
    assert torch.equal(qk_norm_rope(*args, 2, 0, eps=0.0, is_neox=True), torch.ones(1, 4))


def test_norm_is_over_the_whole_head_though_a_part_of_it_turns() -> None:
    out = one_head(torch.tensor([1.0, 1.0, 7.0, 7.0]), torch.ones(4), [0.0, 1.0])
    assert torch.allclose(out, torch.tensor([-0.2, 0.2, 1.4, 1.4]))


def test_eps_is_inside_the_root() -> None:
    out = one_head(torch.ones(2), torch.ones(2), [1.0, 0.0], eps=3.0)
    assert torch.equal(out, torch.tensor([0.5, 0.5]))


def test_keys_have_a_weight_of_their_own_and_values_none() -> None:
    qkv, weight, table = torch.ones(1, 12), torch.ones(2), torch.zeros(1, 0)
    args = 2 * qkv, 3 * weight, 5 * weight, table, torch.tensor([0])
    out = qk_norm_rope(*args, 2, 2, eps=0.0, is_neox=True)
    assert out.flatten().tolist() == [3.0] * 4 + [5.0] * 4 + [2.0] * 4


@both_layouts
def test_values_pass_through_bit_by_bit(is_neox: bool) -> None:
    values = torch.tensor([math.nan, math.inf, -0.0, 1e-40, 65504.0, 1.0])
    qkv = torch.cat((torch.ones(12), values)).expand(3, 18)
    args = qkv, torch.ones(6), torch.ones(6), cache(4), torch.tensor([5, 6, 7])
    out = qk_norm_rope(*args, 1, 1, eps=1e-6, is_neox=is_neox)
    bits = out[:, 12:].contiguous().view(torch.int32)
    assert torch.equal(bits, values.view(torch.int32).expand(3, 6))


@both_layouts
def test_nan_stays_in_its_head(is_neox: bool) -> None:
    qkv = torch.ones(2, 5 * 6)
    qkv[1, 7] = math.nan
    args = qkv, torch.ones(6), torch.ones(6), cache(4), torch.tensor([3, 4])
    out = qk_norm_rope(*args, 3, 1, eps=1e-6, is_neox=is_neox)
    expected = torch.zeros(2, 30, dtype=torch.bool)
    expected[1, 6:12] = True
    assert torch.equal(out.isnan(), expected)


def test_an_infinity_leaves_nan_in_its_pair_and_zeros_in_its_head() -> None:
    head = torch.tensor([1.0, math.inf, 2.0, 3.0, 4.0])
    out = one_head(head, torch.ones(5), [0.6, 0.6, 0.8, 0.8])
    assert out.isnan().tolist() == [False, True, False, True, False]
    assert out.nan_to_num().abs().sum() == 0


def test_zeros_without_eps_give_nan_in_their_head_alone() -> None:
    qkv = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    args = qkv, torch.ones(2), torch.ones(2), torch.zeros(1, 0), torch.tensor([0])
    out = qk_norm_rope(*args, 2, 0, eps=0.0, is_neox=True)
    assert out.isnan().tolist() == [[True, True, False, False]]


def test_squares_do_not_overflow_float16() -> None:
    out = one_head(torch.full((64,), 6e4, dtype=torch.float16), torch.ones(64), [1.0, 0.0])
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("outside", [-1, 64])
def test_positions_outside_the_cache_raise_on_a_cpu(outside: int) -> None:
    args = torch.ones(1, 8), torch.ones(8), torch.ones(8), cache(8), torch.tensor([outside])
    with pytest.raises(IndexError):
        qk_norm_rope(*args, 1, 0, eps=1e-6, is_neox=True)


@LAWS
@given(case=calls())
def test_in_float32_it_is_the_two_ops(case: tuple[list[Any], dict[str, Any]]) -> None:
    (qkv, q_weight, k_weight, table, positions, *heads), kwargs = case
    q, k, v = apart(qkv, len(q_weight), (heads[0], heads[1]))
    q, k = rms_norm(q, q_weight, kwargs["eps"]), rms_norm(k, k_weight, kwargs["eps"])
    q, k = rotary_embedding(positions, q, k, table, is_neox=kwargs["is_neox"])
    out = qk_norm_rope(*case[0], **kwargs)
    assert torch.equal(out, torch.cat((q, k, v), dim=1).flatten(1))


@LAWS
@given(case=calls(torch.bfloat16))
def test_in_bfloat16_it_is_the_float32_result_rounded(
    case: tuple[list[Any], dict[str, Any]],
) -> None:
    (qkv, *rest), kwargs = case
    exact = qk_norm_rope(qkv.float(), *rest, **kwargs)
    assert torch.equal(qk_norm_rope(qkv, *rest, **kwargs), exact.bfloat16())


@LAWS
@given(case=calls(torch.bfloat16), data=st.data())
def test_tokens_do_not_depend_on_each_other(
    case: tuple[list[Any], dict[str, Any]], data: st.DataObject
) -> None:
    (qkv, q_weight, k_weight, table, positions, *heads), kwargs = case
    order = data.draw(st.permutations(range(len(qkv))))
    whole = qk_norm_rope(*case[0], **kwargs)
    weights = q_weight, k_weight, table
    shuffled = qk_norm_rope(qkv[order], *weights, positions[order], *heads, **kwargs)
    assert torch.equal(shuffled, whole[order])
    first = qk_norm_rope(qkv[:1], *weights, positions[:1], *heads, **kwargs)
    assert torch.equal(first, whole[:1])


@LAWS
@given(case=calls(), exponent=st.integers(-8, 8))
def test_without_eps_powers_of_two_cancel(
    case: tuple[list[Any], dict[str, Any]], exponent: int
) -> None:
    (qkv, *rest), kwargs = case
    kwargs = {**kwargs, "eps": 0.0}
    size, heads = len(rest[0]), (rest[-2], rest[-1])
    plain = apart(qk_norm_rope(qkv, *rest, **kwargs), size, heads)
    scaled = apart(qk_norm_rope(qkv * 2.0**exponent, *rest, **kwargs), size, heads)
    for got, want in zip(scaled[:2], plain[:2], strict=True):
        assert torch.equal(got, want)


@LAWS
@given(case=calls())
def test_with_weights_of_1_every_head_has_a_mean_square_of_1(
    case: tuple[list[Any], dict[str, Any]],
) -> None:
    (qkv, q_weight, k_weight, *rest), kwargs = case
    ones = torch.ones_like(q_weight), torch.ones_like(k_weight)
    out = qk_norm_rope(qkv, *ones, *rest, **{**kwargs, "eps": 0.0})
    for x in apart(out, len(q_weight), (rest[-2], rest[-1]))[:2]:
        assert torch.allclose(x.square().mean(-1), torch.ones(x.shape[:2]), rtol=1e-5)
