"""The record of an op that drives every check: samples, error inputs, oracle, tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

__all__ = ["GATES", "Codes", "Part", "Record", "Refusal", "Sample"]

# Relative norms against float64, measured on 512 x 4096 samples: one ideal rounding gives 2.5e-8,
# 2.1e-4, 1.65e-3; the gates leave room for float32 sums and a second rounding, and reject
# accumulation in float16.
GATES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 5e-7,
    torch.float16: 3.2e-4,
    torch.bfloat16: 2.5e-3,
}


@attrs.frozen(eq=False)
class Sample:
    """One call of an op; ``name`` says what is special about it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Refusal:
    """A call that must raise ``InvalidInput`` with ``message`` (a regular expression)."""

    message: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Part:
    """A call for some rows of a sample alone, and where its results lie in the whole's."""

    arguments: dict[str, Any]
    where: tuple[slice, ...]
    """For each result, the part of its leading dimension."""


@attrs.frozen(eq=False)
class Record:
    """All that the kit knows of an op.

    Attributes:
        op: The name of the op.
        samples: Makes the samples, the same ones at each call.
        refusals: Makes the calls that must be refused.
        oracle: The op in float64, sharing no code with any implementation; takes a sample's
            arguments and returns float64 (or integer) results.
        gates: Relative norm allowed by the dtype of the result.
        rows: The tensors that every result follows row by row, along their leading dimension. The
            first has one only with two dimensions or more; another that has not as many rows in a
            call, such as one scale for all, is left whole.
        parts: Splits a call, given by the names of its arguments, into calls for some of its rows;
            without it ``rows`` are cut. With neither the results of a row need all rows.
        far: The tensors whose leading dimension may have any stride; without it ``rows``.
        free: The integer tensors that may hold any numbers.
    """

    op: str
    samples: Callable[[], Iterable[Sample]]
    refusals: Callable[[], Iterable[Refusal]]
    oracle: Callable[..., Any]
    gates: Mapping[torch.dtype, float] = GATES
    rows: tuple[str, ...] = ()
    parts: Callable[[dict[str, Any]], Iterable[Part]] | None = None
    far: tuple[str, ...] | None = None
    free: tuple[str, ...] = ()


@attrs.frozen
class Codes:
    """What an oracle expects of a result in 8 bits: the float64 values before their rounding."""

    values: Tensor
