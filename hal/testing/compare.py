"""How a result is held against the oracle's."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.testing.record import Codes

__all__ = ["all_codes", "assert_close", "assert_codes"]

# How far from the middle between two codes a float32 result may round to the other one. Of 309,826
# codes in the records five do, all within 5e-7. A float32 activation that is off by 1e-6 of itself
# moves an int8 value by up to 1.3e-4; the rest is room for kernels that multiply with an inverse.
NEAR_MIDDLE = 1e-3


def all_codes(dtype: torch.dtype) -> Tensor:
    """Every finite value of an 8-bit dtype but -128, in ascending order, as float64."""
    if dtype == torch.int8:
        return torch.arange(-127, 128).double()
    values = torch.arange(256).to(torch.uint8).view(dtype).double()
    return values[values.isfinite()].unique()


def assert_codes(actual: Tensor, expected: Codes) -> None:
    """Require each code to be the nearest to its value, or the other one beside the middle."""
    got, values = actual.double(), expected.values
    assert got.shape == values.shape, f"{list(got.shape)} != {list(values.shape)}"
    assert torch.equal(got.isnan(), values.isnan()), "NaN in other places"
    codes = all_codes(actual.dtype)
    got, values = got[~got.isnan()], values[~values.isnan()]
    zero = len(codes) // 2
    above = torch.searchsorted(codes, values).clamp(1, len(codes) - 1)
    low, high = codes[above - 1], codes[above]
    place = (values - low) / (high - low)
    right = ((got == low) & (place <= 0.5 + NEAR_MIDDLE)) | (
        (got == high) & (place >= 0.5 - NEAR_MIDDLE)
    )
    even = torch.where((above - zero) % 2 == 0, high, low)
    right &= (place != 0.5) | (got == even)
    assert bool(right.all()), f"{got[~right][:5]} for {values[~right][:5]}"


def _finite(got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """What is finite in both, where all else has to be the same."""
    assert torch.equal(got.isnan(), expected.isnan()), "NaN in other places"
    assert torch.equal(got.isinf(), expected.isinf()), "infinities in other places"
    finite = expected.isfinite()
    assert torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()), (
        "another infinity"
    )
    return got[finite], expected[finite]


def _most(error: Tensor, bound: Tensor) -> str:
    worst = (error - bound).argmax()
    return f"off by up to {error[worst]:.2e}, where {bound[worst]:.2e} is allowed"


def assert_close(actual: Tensor, expected: Tensor | Codes, gate: float) -> None:
    """Compare with a float64 oracle: NaN and infinities in place, the rest within ``gate``.

    The gate is a relative norm; below 64 elements, where one element can carry the norm, it is
    instead four roundings of each element or of the largest one times the gate. Codes have a gate
    of their own.
    """
    if isinstance(expected, Codes):
        assert_codes(actual, expected)
        return
    assert actual.shape == expected.shape, f"{list(actual.shape)} != {list(expected.shape)}"
    if not actual.dtype.is_floating_point:
        wrong = actual.to(expected.dtype) != expected
        assert not wrong.any(), (
            f"{int(wrong.sum())} of {wrong.numel()} integers differ: "
            f"{actual[wrong][:5].tolist()} for {expected[wrong][:5].tolist()}"
        )
        return
    limit = torch.finfo(actual.dtype).max
    # What the oracle holds beyond the dtype's range rounds to an infinity.
    expected = torch.where(expected.abs() > limit, expected.to(actual.dtype).double(), expected)
    got, expected = actual.double().reshape(-1), expected.reshape(-1)
    if not (got.isfinite().all() and expected.isfinite().all()):
        got, expected = _finite(got, expected)
    error, size = got - expected, expected
    if size.numel() >= 64:
        assert error.norm() <= gate * size.norm() + torch.finfo(actual.dtype).tiny, (
            f"relative norm {error.norm() / size.norm():.2e} > {gate:.2e}"
        )
    elif size.numel():
        eps = torch.finfo(actual.dtype).eps
        bound = 4 * eps * size.abs() + gate * size.abs().max() + torch.finfo(actual.dtype).tiny
        assert bool((error.abs() <= bound).all()), _most(error.abs(), bound)
