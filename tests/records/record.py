"""The record that drives every test of an op: samples, error inputs, oracle, tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

# Relative norms against float64, measured on 512 x 4096 samples: one ideal rounding gives 2.5e-8,
# 2.1e-4, 1.65e-3; the gates leave room for float32 sums and a second rounding, and reject
# accumulation in float16.
GATES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 5e-7,
    torch.float16: 3.2e-4,
    torch.bfloat16: 2.5e-3,
}


@attrs.frozen
class Sample:
    """One call of an op; ``name`` says what is special about it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Refusal:
    """A call that must raise ``InvalidInput`` with ``message`` (a regular expression)."""

    message: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Record:
    """All that the tests know of an op.

    Attributes:
        op: The name of the op.
        samples: Makes the samples, the same ones at each call.
        refusals: Makes the calls that must be refused.
        oracle: The op in float64, sharing no code with any implementation; takes a sample's
            arguments and returns float64 (or integer) results.
        gates: Relative norm allowed by the dtype of the result.
    """

    op: str
    samples: Callable[[], Iterable[Sample]]
    refusals: Callable[[], Iterable[Refusal]]
    oracle: Callable[..., Any]
    gates: Mapping[torch.dtype, float] = GATES


@attrs.frozen
class Codes:
    """What an oracle expects of a result in 8 bits: the float64 values before their rounding."""

    values: Tensor


# How far from the middle between two codes a float32 result may round to the other one. Of 309,826
# codes in the records five do, all within 5e-7. A float32 activation that is off by 1e-6 of itself
# moves an int8 value by up to 1.3e-4; the rest is room for kernels that multiply with an inverse.
NEAR_MIDDLE = 1e-3


def _all_codes(dtype: torch.dtype) -> Tensor:
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
    codes = _all_codes(actual.dtype)
    got, values = got[~got.isnan()], values[~values.isnan()]
    above = torch.searchsorted(codes, values).clamp(1, len(codes) - 1)
    low, high = codes[above - 1], codes[above]
    place = (values - low) / (high - low)
    right = ((got == low) & (place <= 0.5 + NEAR_MIDDLE)) | (
        (got == high) & (place >= 0.5 - NEAR_MIDDLE)
    )
    assert bool(right.all()), f"{got[~right][:5]} for {values[~right][:5]}"


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
        assert torch.equal(actual.to(expected.dtype), expected)
        return
    limit = torch.finfo(actual.dtype).max
    # What the oracle holds beyond the dtype's range rounds to an infinity.
    expected = torch.where(expected.abs() > limit, expected.to(actual.dtype).double(), expected)
    got = actual.double()
    assert torch.equal(got.isnan(), expected.isnan()), "NaN in other places"
    assert torch.equal(got.isinf(), expected.isinf()), "infinities in other places"
    finite = expected.isfinite()
    assert torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()), (
        "another infinity"
    )
    error, size = (got - expected)[finite], expected[finite]
    if size.numel() >= 64:
        assert error.norm() <= gate * size.norm() + torch.finfo(actual.dtype).tiny, (
            f"relative norm {error.norm() / size.norm():.2e} > {gate:.2e}"
        )
    elif size.numel():
        eps = torch.finfo(actual.dtype).eps
        bound = 4 * eps * size.abs() + gate * size.abs().max() + torch.finfo(actual.dtype).tiny
        assert bool((error.abs() <= bound).all()), f"off by up to {error.abs().max():.2e}"
