"""A statement that holds of operators whatever they are given, and how it is put to the test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from torch import Tensor

from hal.errors import NoKernel
from hal.testing.cases.draw import F32, Draw

__all__ = ["COLUMNS", "ROWS", "SEEDS", "Law", "Values", "check_law", "equal", "here", "near"]

ROWS, COLUMNS, SEEDS = st.integers(1, 9), st.integers(1, 130), st.integers(0, 2**32 - 1)

_where: ContextVar[torch.device | None] = ContextVar("_where", default=None)


@attrs.frozen
class Law:
    """A statement on functions of ``hal.ops``.

    Attributes:
        name: The statement, in words.
        ops: The ops it is about; to test a kernel of one of them, force it with ``hal.use``.
        given: What an example consists of, by the name of the argument of ``holds``.
        holds: Raises AssertionError where the statement does not hold.
    """

    name: str
    ops: tuple[str, ...]
    given: dict[str, st.SearchStrategy[Any]]
    holds: Callable[..., None]


class Values:
    """Tensors that belong to a seed, on the device that a law is tested on.

    All are multiples of small powers of two, so that many sums and products of them are exact.
    """

    def __init__(self, seed: int) -> None:
        self.draw = Draw("law", seed)

    def __call__(self, *shape: int, dtype: torch.dtype = F32, positive: bool = False) -> Tensor:
        """Numbers within -2 and 2, or within 1/8 and 2."""
        return here(self.draw.values(*shape, positive=positive).to(dtype))

    def coarse(self, *shape: int, most: int = 7, dtype: torch.dtype = F32) -> Tensor:
        """Integers within ``-most`` and ``most``."""
        return here(self.draw.coarse(*shape, most=most).to(dtype))

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """Int64 from ``low`` to ``high - 1``."""
        return here(self.draw.integers(*shape, low=low, high=high).long())

    def order(self, size: int) -> Tensor:
        """The numbers below ``size`` in some order."""
        order = list(range(size))
        self.draw.random.shuffle(order)
        return here(torch.tensor(order, dtype=torch.int64))


def here(x: Tensor) -> Tensor:
    """``x`` on the device that a law is tested on."""
    device = _where.get()
    return x if device is None else x.to(device)


def equal(got: Tensor, want: Tensor) -> None:
    """Require the same values, NaN included."""
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def near(got: Tensor, want: Tensor, roundings: float, like: Tensor | None = None) -> None:
    """Require a difference of few roundings of the largest value.

    Args:
        got: Compared with ``want``, in float64.
        want: Whose dtype says what a rounding is.
        roundings: How many, each half a unit in the last place of the largest value.
        like: Holds the largest value, such as the terms of a sum that cancels; else ``want`` does.
    """
    largest = (want if like is None else like).double().abs()
    most = largest.max().item() if largest.numel() else 0.0
    info = torch.finfo(want.dtype)
    atol = roundings * info.eps / 2 * most + info.tiny
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=atol, equal_nan=True)


@contextlib.contextmanager
def _on(device: torch.device | None) -> Generator[None, None, None]:
    token = _where.set(device)
    try:
        yield
    finally:
        _where.reset(token)


def check_law(
    law: Law,
    *,
    examples: int,
    derandomize: bool = True,
    shrink: bool = True,
    device: torch.device | None = None,
) -> int:
    """Try ``law`` on that many examples; return how many a kernel served.

    Args:
        law: What to try.
        examples: At most so many.
        derandomize: Whether they are the same ones each time.
        shrink: Whether to look for the smallest example that breaks it, which takes a while.
        device: Where the tensors are; None is the host.

    Raises:
        AssertionError: The law does not hold; the text has an example.
    """
    served, latest = 0, {}

    # What is drawn is cheap; a kernel that is compiled for each size is slow, and one that refuses
    # most examples is not at fault.
    @settings(
        max_examples=examples,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        derandomize=derandomize,
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(**law.given)
    def example(**drawn: Any) -> None:
        nonlocal served, latest
        latest = drawn
        try:
            law.holds(**drawn)
        except NoKernel:
            reject()
        served += 1

    with _on(device):
        try:
            example()
        except Unsatisfiable:
            return served
        except Exception as error:
            found = ", ".join(f"{name}={value!r}" for name, value in latest.items())
            raise AssertionError(f"{law.name}: not with {found}: {error}") from error
    return served
