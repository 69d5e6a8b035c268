"""The decided semantics and the laws of rotary position embeddings, on their reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal.testing.records.rotary import cache
from hal_native.rotary import multimodal_rotary_embedding, rotary_embedding

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
both_layouts = pytest.mark.parametrize("is_neox", [True, False])


def rotate(x: Tensor, angles: Tensor, is_neox: bool = True) -> Tensor:
    """Token t of x turned by row t of ``angles`` [tokens, rotary_dim / 2]."""
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return rotary_embedding(torch.arange(len(x)), x, None, table, is_neox=is_neox)[0]


@st.composite
def heads(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Float64 heads [tokens, heads, head_dim] and angles [tokens, rotary_dim / 2]."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tokens, count, half = (draw(st.integers(1, limit)) for limit in (5, 4, 9))
    head_dim = 2 * half + draw(st.integers(0, 5))
    x = torch.randn(tokens, count, head_dim, generator=generator, dtype=torch.float64)
    return x, torch.randn(tokens, half, generator=generator, dtype=torch.float64) * 4


def as_complex(x: Tensor, is_neox: bool) -> Tensor:
    half = x.shape[-1] // 2
    pairs = (
        torch.stack((x[..., :half], x[..., half:]), -1) if is_neox else x.unflatten(-1, (half, 2))
    )
    return torch.view_as_complex(pairs.contiguous())


def test_pairs_of_neox_are_half_a_width_apart() -> None:
    # The width of the cache: half the head of 8 would pair 1 with 5.
    quarter = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    x = torch.arange(1.0, 9.0).view(1, 1, 8)
    out, _ = rotary_embedding(torch.tensor([0]), x, None, quarter)
    assert out.flatten().tolist() == [-3, 2, 1, 4, 5, 6, 7, 8]


def test_pairs_of_the_other_layout_are_neighbours() -> None:
    quarter = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    out, _ = rotary_embedding(torch.tensor([0]), x, None, quarter, is_neox=False)
    assert torch.equal(out, torch.tensor([[[-2.0, 1.0, 3.0, 4.0, 5.0]]]))


@both_layouts
def test_products_are_not_rounded(is_neox: bool) -> None:
    # a * cos and b * sin nearly cancel: rounded to bfloat16 each, they would cancel altogether.
    x = torch.tensor([[[1 + 2.0**-7, 1.0]]]).bfloat16()
    table = torch.tensor([[1.0, 1 + 2.0**-7 + 2.0**-12]])
    out, _ = rotary_embedding(torch.tensor([0]), x, None, table, is_neox=is_neox)
    assert out[0, 0, 0] == -(2.0**-12)


def test_cache_is_not_rounded_to_the_dtype_of_the_heads() -> None:
    x = torch.tensor([[[1.0, 1.0]]]).bfloat16()
    out, _ = rotary_embedding(torch.tensor([0]), x, None, torch.tensor([[1.0, 1 + 2.0**-10]]))
    assert out[0, 0, 0] == -(2.0**-10)


def test_cache_in_float64_leaves_the_arithmetic_in_float32() -> None:
    x, table = (
        torch.tensor([[[1.0, 1.0]]]),
        torch.tensor([[1.0, 1 + 2.0**-40]], dtype=torch.float64),
    )
    assert rotary_embedding(torch.tensor([0]), x, None, table)[0][0, 0, 0] == 0
    assert rotary_embedding(torch.tensor([0]), x.double(), None, table)[0][0, 0, 0] == -(2.0**-40)


def test_offsets_are_added_without_a_32_bit_overflow() -> None:
    # The expanded cache has the rows without the memory.
    far = torch.full((1,), 2**31 - 1, dtype=torch.int32)
    table = cache(8)[9:10].expand(2**32, 8)
    x = torch.ones(1, 2, 8)
    out, _ = rotary_embedding(far, x, None, table, offsets=far)
    assert torch.equal(out, rotary_embedding(torch.tensor([9]), x, None, cache(8))[0])


@pytest.mark.parametrize("outside", [-1, 64, 2**40])
def test_positions_outside_the_cache_raise_on_a_cpu(outside: int) -> None:
    with pytest.raises(IndexError):
        rotary_embedding(torch.tensor([outside]), torch.ones(1, 1, 8), None, cache(8))


@both_layouts
def test_key_has_heads_strides_and_dtype_of_its_own(is_neox: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(7, 24, generator=generator).view(7, 3, 8).bfloat16()
    key = torch.randn(8, 5, 7, generator=generator).permute(2, 1, 0)
    positions = torch.arange(7)
    rotated = rotary_embedding(positions, query, key, cache(8), is_neox=is_neox)
    for x, out in zip((query, key), rotated, strict=True):
        alone, none = rotary_embedding(positions, x.contiguous(), None, cache(8), is_neox=is_neox)
        assert none is None
        assert torch.equal(out, alone)
        assert out.dtype == x.dtype
        assert out.is_contiguous()


@both_layouts
def test_tail_passes_through_bit_by_bit(is_neox: bool) -> None:
    tail = torch.tensor([math.nan, math.inf, -0.0, 1e-40, 65504.0])
    x = torch.cat((torch.ones(4), tail)).expand(3, 2, 9)
    out, _ = rotary_embedding(torch.tensor([5, 6, 7]), x, None, cache(4), is_neox=is_neox)
    bits = out[..., 4:].contiguous().view(torch.int32)
    assert torch.equal(bits, tail.view(torch.int32).expand(3, 2, 5))


def test_a_cache_of_no_width_turns_nothing() -> None:
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    out, _ = rotary_embedding(torch.arange(3), x, None, torch.zeros(4, 0))
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


@both_layouts
def test_nan_stays_in_its_pair(is_neox: bool) -> None:
    x = torch.ones(2, 2, 10)
    x[1, 0, 4] = math.nan
    out, _ = rotary_embedding(torch.tensor([3, 4]), x, None, cache(8), is_neox=is_neox)
    expected = torch.zeros(2, 2, 10, dtype=torch.bool)
    expected[1, 0, [0, 4] if is_neox else [4, 5]] = True
    assert torch.equal(out.isnan(), expected)


@both_layouts
@LAWS
@given(case=heads())
def test_it_is_a_product_of_complex_numbers(is_neox: bool, case: tuple[Tensor, Tensor]) -> None:
    x, angles = case
    width = 2 * angles.shape[-1]
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    out = rotate(x, angles, is_neox)
    product = as_complex(x[..., :width], is_neox) * turn
    assert torch.allclose(as_complex(out[..., :width], is_neox), product, rtol=0, atol=1e-12)
    assert torch.equal(out[..., width:], x[..., width:])


@both_layouts
@LAWS
@given(case=heads())
def test_the_opposite_angle_turns_back(is_neox: bool, case: tuple[Tensor, Tensor]) -> None:
    x, angles = case
    back = rotate(rotate(x, angles, is_neox), -angles, is_neox)
    assert torch.allclose(back, x, rtol=0, atol=1e-12)


@both_layouts
@LAWS
@given(case=heads())
def test_lengths_stay(is_neox: bool, case: tuple[Tensor, Tensor]) -> None:
    x, angles = case
    assert torch.allclose(rotate(x, angles, is_neox).norm(dim=-1), x.norm(dim=-1), rtol=1e-12)


@both_layouts
@LAWS
@given(case=heads(), first=st.integers(0, 30), second=st.integers(0, 30), shift=st.integers(0, 30))
def test_scores_depend_on_the_distance(
    is_neox: bool, case: tuple[Tensor, Tensor], first: int, second: int, shift: int
) -> None:
    x, rates = case[0][:1], case[1][:1]

    def score(here: int, there: int) -> Tensor:
        return (rotate(x, rates * here, is_neox) * rotate(x.flip(-1), rates * there, is_neox)).sum()

    there = score(first + shift, second + shift)
    assert torch.allclose(score(first, second), there, rtol=0, atol=1e-10)


@both_layouts
@LAWS
@given(case=heads())
def test_no_angle_changes_nothing(is_neox: bool, case: tuple[Tensor, Tensor]) -> None:
    x, angles = case
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert torch.equal(rotate(x.to(dtype), angles * 0, is_neox), x.to(dtype))


@LAWS
@given(case=heads())
def test_layouts_differ_by_a_permutation(case: tuple[Tensor, Tensor]) -> None:
    x, angles = case
    width = 2 * angles.shape[-1]
    order = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
    order = torch.cat((order, torch.arange(width, x.shape[-1])))
    assert torch.equal(rotate(x, angles, False)[..., order], rotate(x[..., order], angles))


@both_layouts
@LAWS
@given(case=heads(), data=st.data())
def test_tokens_and_heads_are_independent(
    is_neox: bool, case: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    x, angles = case[0].bfloat16(), case[1].float()
    tokens = data.draw(st.permutations(range(x.shape[0])))
    order = data.draw(st.permutations(range(x.shape[1])))
    whole = rotate(x, angles, is_neox)
    assert torch.equal(rotate(x[tokens], angles[tokens], is_neox), whole[tokens])
    assert torch.equal(rotate(x[:, order], angles, is_neox), whole[:, order])
    assert torch.equal(rotate(x[:1, :1], angles[:1], is_neox), whole[:1, :1])


@both_layouts
@LAWS
@given(case=heads(), seed=st.integers(0, 2**32))
def test_offsets_and_positions_add(is_neox: bool, case: tuple[Tensor, Tensor], seed: int) -> None:
    x = case[0]
    generator = torch.Generator().manual_seed(seed)
    positions, offsets = torch.randint(32, (2, len(x)), generator=generator)
    table = cache(2 * case[1].shape[-1])
    expected = rotary_embedding(positions + offsets, x, None, table, is_neox=is_neox)[0]
    for ints in (torch.int32, torch.int64):
        args = positions.to(ints), x, None, table
        out, _ = rotary_embedding(*args, is_neox=is_neox, offsets=offsets.int())
        assert torch.equal(out, expected)


def quarter_turns(*axes: int) -> Tensor:
    """Positions [3, 1] that turn the pairs of these axes by a quarter, from ``TURNS``."""
    return torch.tensor([[int(axis in axes)] for axis in range(3)])


# Row 0 turns nothing, row 1 every one of four pairs by a quarter.
TURNS = torch.tensor([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4])


def turned(out: Tensor) -> list[bool]:
    """Which of four pairs (1, 1), half a width apart, became (-1, 1)."""
    return (out[0, 0, :4] == -1).tolist()


@pytest.mark.parametrize(
    ("sections", "axes"),
    [
        ((1, 1, 2), [0, 1, 2, 2]),
        ((2, 2, 0), [0, 0, 1, 1]),
        ((1, 1, 1, 1), [0, 1, 2, 0]),
        ((0, 1, 2, 0, 1), [1, 2, 2, 1]),
        ((4,), [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_section_s_turns_by_position_s_modulo_3(
    sections: tuple[int, ...], axes: list[int], axis: int
) -> None:
    x = torch.ones(1, 1, 8)
    out, _ = multimodal_rotary_embedding(quarter_turns(axis), x, None, TURNS, sections)
    assert turned(out) == [each == axis for each in axes]


def test_sections_count_pairs_in_either_layout() -> None:
    x = torch.ones(1, 1, 8)
    args = quarter_turns(1), x, None, TURNS, (1, 2, 1)
    out, _ = multimodal_rotary_embedding(*args, is_neox=False)
    assert out.flatten().tolist() == [1, 1, -1, 1, -1, 1, 1, 1]
    assert turned(multimodal_rotary_embedding(*args)[0]) == [False, True, True, False]


def test_cosine_and_sine_of_a_pair_are_of_one_position() -> None:
    # Sections over the width of the cache, not of its half, would take the sines from other axes.
    table = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.6, 0.6, 0.8, 0.8]])
    positions = torch.tensor([[1], [0], [0]])
    out, _ = multimodal_rotary_embedding(positions, torch.ones(1, 1, 4), None, table, (1, 1, 0))
    expected = torch.tensor([0.6 - 0.8, 1.0, 0.6 + 0.8, 1.0])
    assert torch.allclose(out.flatten(), expected, rtol=1e-6)


@pytest.mark.parametrize("outside", [-1, 64])
def test_any_position_outside_the_cache_raises_on_a_cpu(outside: int) -> None:
    positions = torch.tensor([[0], [0], [outside]])
    with pytest.raises(IndexError):
        multimodal_rotary_embedding(positions, torch.ones(1, 1, 8), None, cache(8), (2, 2, 0))


@st.composite
def cut(draw: st.DrawFn, pairs: int) -> tuple[int, ...]:
    """Sections of so many pairs."""
    bounds = sorted(draw(st.lists(st.integers(0, pairs), max_size=5)))
    return tuple(b - a for a, b in zip([0, *bounds], [*bounds, pairs], strict=True))


@both_layouts
@LAWS
@given(case=heads(), data=st.data())
def test_for_text_it_is_the_embedding_of_one_position(
    is_neox: bool, case: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    x, pairs = case[0].float(), case[1].shape[-1]
    sections, table = data.draw(cut(pairs)), cache(2 * pairs)
    positions = torch.arange(len(x)) + 7
    args = x, x[:, :1].bfloat16(), table
    expected = rotary_embedding(positions, *args, is_neox=is_neox)
    three = positions.expand(3, len(x))
    out = multimodal_rotary_embedding(three, *args, sections, is_neox=is_neox)
    assert all(torch.equal(got, want) for got, want in zip(out, expected, strict=True))


@both_layouts
@LAWS
@given(case=heads(), data=st.data(), seed=st.integers(0, 2**32))
def test_it_is_one_embedding_for_each_section(
    is_neox: bool, case: tuple[Tensor, Tensor], data: st.DataObject, seed: int
) -> None:
    # Turning section after section, the others by an angle of 0, ends at the same heads.
    x, pairs = case[0], case[1].shape[-1]
    sections, table = data.draw(cut(pairs)), cache(2 * pairs, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(64, (3, len(x)), generator=generator)
    out, _ = multimodal_rotary_embedding(positions, x, None, table, sections, is_neox=is_neox)
    first = 0
    for s, size in enumerate(sections):
        angles = torch.atan2(table[:, pairs:], table[:, :pairs])[positions[s % 3]]
        here = (torch.arange(pairs) >= first) & (torch.arange(pairs) < first + size)
        x, first = rotate(x, angles * here, is_neox), first + size
    assert torch.allclose(out, x, rtol=0, atol=1e-12)
