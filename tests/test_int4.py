"""The decided semantics and the laws of packing 4-bit codes, on the references."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal_native.int4 import pack_int4, unpack_int4
from hal_native.quant import dequantize

LAWS = settings(max_examples=100, deadline=None, derandomize=True)
pairs = st.lists(st.integers(-8, 7), max_size=40).map(lambda codes: codes + codes[::-1])


def int8(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int8)


def test_the_first_code_is_in_the_low_half() -> None:
    assert pack_int4(int8([-7, -5])).tolist() == [0x31]
    assert unpack_int4(torch.tensor([0x31], dtype=torch.uint8)).tolist() == [-7, -5]


def test_codes_are_symmetric_about_eight() -> None:
    assert pack_int4(int8([0, 0])).tolist() == [0x88]
    assert unpack_int4(torch.tensor([0x08, 0x80], dtype=torch.uint8)).tolist() == [0, -8, -8, 0]


def test_codes_are_signed_after_the_offset_and_not_in_twos_complement() -> None:
    assert unpack_int4(torch.tensor([0xF7], dtype=torch.uint8)).tolist() == [-1, 7]


def test_what_does_not_fit_is_clamped_and_spills_nowhere() -> None:
    assert pack_int4(int8([8, -9, 127, -128])).tolist() == [0x0F, 0x0F]
    assert pack_int4(torch.tensor([2**63 - 1, -(2**63)])).tolist() == [0x0F]


def test_without_offset_codes_are_unsigned() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    packed = pack_int4(codes, offset=0)
    assert packed.tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert unpack_int4(packed, offset=0).tolist() == codes.tolist()


def test_weights_are_packed_codes_times_the_scale_of_their_group() -> None:
    packed = torch.tensor([[0xF0, 0x88, 0x97, 0x79]], dtype=torch.uint8)
    weights = dequantize(unpack_int4(packed), torch.tensor([[0.5, 2.0]]), 4)
    assert weights.tolist() == [[-4.0, 3.5, 0.0, 0.0, -2.0, 2.0, 2.0, -2.0]]


@LAWS
@given(pairs)
def test_unpacking_undoes_packing(codes: list[int]) -> None:
    assert unpack_int4(pack_int4(int8(codes))).tolist() == codes


@LAWS
@given(st.lists(st.integers(0, 255), max_size=40), st.integers(0, 15))
def test_packing_undoes_unpacking(values: list[int], offset: int) -> None:
    packed = torch.tensor(values, dtype=torch.uint8)
    assert torch.equal(pack_int4(unpack_int4(packed, offset=offset), offset=offset), packed)
