"""Products by Triton whose columns are divided among programs, as only large ones are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal_native.gemv
import hal_native.matmul
import hal_triton.gemv
import hal_triton.matmul
from hal_triton import tiles
from hal_triton.kernels import matmul

SIZES = [(1, 40, 520), (5, 70, 336), (17, 130, 512)]
"""Rows, rows of the weight, and columns."""


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many parts each product was made of, at least two."""
    counts: list[int] = []
    bind = matmul.add_parts.bind

    def counted(grid: Any, numbers: Any, *rest: Any) -> Any:
        counts.append(numbers[2])
        return bind(grid, numbers, *rest)

    monkeypatch.setattr(tiles, "_LEAST", dict.fromkeys((4, 8, 16, 32), 64))
    monkeypatch.setattr(matmul.add_parts, "bind", counted)
    yield counts
    assert counts
    assert min(counts) > 1


def close(got: Tensor, want: Tensor) -> None:
    """Within the rounding of a sum in float32, or of its result."""
    assert got.dtype == want.dtype
    off = (got.double() - want.double()).norm() / want.double().norm()
    assert off < (4e-4 if got.dtype == torch.float16 else 1e-6)


def codes(*size: int) -> Tensor:
    return torch.randint(-128, 128, size, dtype=torch.int8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_integers_are_summed_exactly(size: tuple[int, int, int], biased: bool) -> None:
    rows, n, k = size
    a, b = codes(rows, k), codes(n, k)
    options: dict[str, Any] = {"out_dtype": torch.float32}
    bias = torch.randn(n) if biased else None
    for scales in (
        (torch.rand(rows), torch.rand(n, 1)),
        (torch.rand(()), torch.rand(2, n).t()[:, 0]),
    ):
        got = hal_triton.matmul.scaled_mm(a, b, *scales, bias=bias, **options)
        want = hal_native.matmul.scaled_mm(a, b, *scales, bias=bias, **options)
        assert torch.equal(got, want)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_activation_follows_the_sum(
    size: tuple[int, int, int], activation: str | None, dtype: torch.dtype
) -> None:
    rows, n, k = size
    x, weight = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    got = hal_triton.gemv.fused_gemv(x, weight, activation=activation)
    close(got, hal_native.gemv.fused_gemv(x, weight, activation=activation))


@pytest.mark.parametrize("group", [7, 32, 128])
@pytest.mark.parametrize("zeros", [None, torch.uint8, torch.float32])
def test_parts_of_packed_weights_begin_with_a_group(group: int, zeros: torch.dtype | None) -> None:
    rows, n, k = SIZES[1]
    groups = -(-k // group)
    weight = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scales = torch.randn(n, groups)
    zero = None if zeros is None else torch.randint(0, 256, (n, groups)).to(zeros)
    # Neither the first number nor the rows begin where two of them can be read at once.
    x = torch.randn(rows, k + 1, dtype=torch.float16)[:, 1:]
    options: dict[str, Any] = {"group_size": group, "zeros": zero}
    got = hal_triton.matmul.w4a16_mm(x, weight, scales, **options)
    close(got, hal_native.matmul.w4a16_mm(x, weight, scales, **options))
