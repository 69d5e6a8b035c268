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


def assert_close(actual: Tensor, expected: Tensor, gate: float) -> None:
    """Compare with a float64 oracle: NaN and infinities in place, the rest within ``gate``.

    The gate is a relative norm; below 64 elements, where one element can carry the norm, it is
    instead four roundings of each element or of the largest one times the gate.
    """
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
