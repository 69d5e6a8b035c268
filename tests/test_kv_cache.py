"""What storing into a paged cache decides where kernels disagree, and the laws it obeys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native.kv_cache import store_kv_cache_

LAW = settings(max_examples=100, deadline=None, derandomize=True)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def numbered(tokens: int) -> Tensor:
    """Rows [tokens, 1, 2] that tell which token they are of: 1, 2, 3 ..."""
    return torch.arange(1.0, tokens + 1).view(-1, 1, 1).expand(tokens, 1, 2)


def stored(slots: Tensor, blocks: int = 3, size: int = 4) -> list[float]:
    """Slot by slot, the number of the token that a cache holds which held -7 everywhere."""
    k_cache, v_cache = torch.full((2, blocks, size, 1, 2), -7.0)
    rows = numbered(len(slots))
    result = store_kv_cache_(rows, -rows, k_cache, v_cache, slots)
    assert result[0] is k_cache
    assert result[1] is v_cache
    changed = k_cache != -7
    assert torch.equal(v_cache[changed], -k_cache[changed])
    return k_cache[..., 0].flatten().tolist()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "slots",
    [
        [-1, 0],
        [0, -1],
        [-1, 0, -1],
        [-1, -1, 5],
        [3, -1, 0, -1, 11, -1],
        [-1, 1],
        [-5, 0, -(2**31)],
    ],
)
def test_skipped_tokens_leave_every_slot_alone(slots: list[int], index: torch.dtype) -> None:
    expected = [-7.0] * 12
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected[slot] = token + 1
    assert stored(torch.tensor(slots, dtype=index)) == expected


@pytest.mark.parametrize("tokens", [0, 1, 2, 17])
def test_a_batch_of_skipped_tokens_changes_nothing(tokens: int) -> None:
    assert stored(torch.full((tokens,), -1)) == [-7.0] * 12


def test_skipped_tokens_keep_the_bits_of_slot_0_even_if_it_is_nan() -> None:
    for dtype in (torch.float32, E4M3):
        cache = torch.full((1, 2, 1, 4), math.nan).to(dtype)
        rows = torch.ones(3, 1, 4)
        store_kv_cache_(rows, rows, cache, cache.clone(), torch.full((3,), -1))
        assert cache.float().isnan().all()


def test_nan_of_a_skipped_token_goes_nowhere() -> None:
    rows = torch.full((3, 1, 2), math.nan)
    rows[1] = 4
    caches = torch.zeros(2, 2, 2, 1, 2)
    store_kv_cache_(rows, rows, *caches, torch.tensor([-1, 3, -1]))
    assert caches[0].sum(dim=(2, 3)).tolist() == [[0, 0], [0, 8]]


def test_other_slots_survive_two_tokens_of_one_slot() -> None:
    slots = stored(torch.tensor([4, 9, 4, -1]))
    assert slots[9] == 2
    assert slots[4] in (1, 3)
    assert [slot for i, slot in enumerate(slots) if i not in (4, 9)] == [-7.0] * 10


@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4])
def test_halves_of_one_tensor_are_written_in_place(axis: int) -> None:
    whole = torch.full((4, 4, 4, 4, 4), -7.0)
    whole = whole.narrow(axis, 0, 4)
    k_cache, v_cache = (whole.narrow(axis, start, 2) for start in (0, 2))
    blocks, size, heads, dim = k_cache[0].shape
    k_cache, v_cache = k_cache[1], v_cache[1]
    rows = torch.arange(heads * dim).float().view(1, heads, dim)
    before = whole.clone()
    store_kv_cache_(rows, rows + 100, k_cache, v_cache, torch.tensor([blocks * size - 1]))
    assert torch.equal(k_cache[-1, -1], rows[0])
    assert torch.equal(v_cache[-1, -1], rows[0] + 100)
    assert int((whole != before).sum()) == 2 * heads * dim


@pytest.mark.parametrize(
    ("dtype", "limit", "least"), [(E4M3, 448.0, 2.0**-9), (E5M2, 57344.0, 2.0**-16)]
)
def test_8_bit_rows_saturate_and_round_half_to_even(
    dtype: torch.dtype, limit: float, least: float
) -> None:
    given = [math.inf, -math.inf, 1e30, -limit * 1.07, math.nan, least / 2, least * 1.5, 0.0]
    expected = [limit, -limit, limit, -limit, math.nan, 0.0, least * 2, 0.0]
    cache = torch.zeros(1, 1, 1, 8).to(dtype)
    rows = torch.tensor(given).view(1, 1, 8)
    store_kv_cache_(rows, rows, cache, cache.clone(), torch.tensor([0]))
    torch.testing.assert_close(cache.float().flatten(), torch.tensor(expected), equal_nan=True)


def test_8_bit_rows_are_divided_by_the_scale_of_their_head() -> None:
    k_cache, v_cache = torch.zeros(2, 1, 1, 2, 1).to(E4M3)
    rows, scale = torch.full((1, 2, 1), 6.0), torch.tensor([2.0, 0.5])
    store_kv_cache_(rows, rows, k_cache, v_cache, torch.tensor([0]), k_scale=scale, v_scale=3.0)
    assert k_cache.float().flatten().tolist() == [3.0, 12.0]
    assert v_cache.float().flatten().tolist() == [2.0, 2.0]


def test_half_rows_are_scaled_in_float32() -> None:
    cache = torch.zeros(1, 1, 1, 1).to(E5M2)
    rows = torch.full((1, 1, 1), 6e4, dtype=torch.float16)
    # 6e4 / 1e-3 overflows float16 and 6e4 / 1e9 underflows it; neither is what is stored.
    store_kv_cache_(rows, rows, cache, cache.clone(), torch.tensor([0]), k_scale=1e9)
    assert cache.float().item() == pytest.approx(6e-5, rel=0.13)


@st.composite
def mappings(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Distinct slots amid any number of skipped tokens, with the blocks and the block size."""
    blocks, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    slots = draw(st.lists(st.integers(0, blocks * size - 1), unique=True, max_size=8))
    skipped = draw(st.lists(st.just(-1), max_size=8))
    return draw(st.permutations(slots + skipped)), blocks, size


@LAW
@given(mappings())
def test_each_slot_holds_its_token_or_what_it_held(mapping: tuple[list[int], int, int]) -> None:
    slots, blocks, size = mapping
    tokens = {slot: token + 1.0 for token, slot in enumerate(slots)}
    expected = [tokens.get(slot, -7.0) for slot in range(blocks * size)]
    assert stored(torch.tensor(slots, dtype=torch.int64), blocks, size) == expected


@LAW
@given(mappings(), st.integers(0, 2**31), st.sampled_from([E4M3, E5M2]))
def test_storing_twice_or_token_by_token_changes_nothing(
    mapping: tuple[list[int], int, int], seed: int, dtype: torch.dtype
) -> None:
    slots, blocks, size = mapping
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(slots), 2, 3, generator=generator)
    index = torch.tensor(slots, dtype=torch.int32)
    at_once, singly = torch.ones(2, 2, blocks, size, 2, 3).to(dtype)
    for _ in range(2):
        store_kv_cache_(rows, rows * 9, at_once[0], at_once[1], index)
    for row, slot in zip(rows.split(1), index.split(1), strict=True):
        store_kv_cache_(row, row * 9, singly[0], singly[1], slot)
    assert torch.equal(at_once.view(torch.uint8), singly.view(torch.uint8))


@LAW
@given(st.integers(0, 2**31), st.integers(-8, 8))
def test_a_power_of_two_as_scale_is_taken_back_exactly(seed: int, power: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(4, 2, 8, generator=generator).to(E4M3).float()
    cache = torch.zeros(1, 4, 2, 8).to(E4M3)
    scale = 2.0**power
    store_kv_cache_(exact * scale, exact, cache, cache.clone(), torch.arange(4), k_scale=scale)
    assert torch.equal(cache[0].float() * scale, exact * scale)


def test_a_scale_beyond_float32_leaves_zeros() -> None:
    k, cache = torch.tensor([[[3.0, -3.0]]]), torch.ones(1, 1, 1, 2).to(E4M3)
    store_kv_cache_(k, k, cache, cache.clone(), torch.tensor([0]), k_scale=1e300)
    assert not cache.float().any()
