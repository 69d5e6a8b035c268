"""Faults of refusals: what is refused, when, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor

import hal
from hal.checks import describe
from hal.op import OPS
from registration_faults.plant import Around, Fault


def _rewritten(change: Callable[[str], Exception]) -> Around:
    """A declaration that refuses with another exception."""

    def contract(genuine: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return genuine(*args, **kwargs)
        except hal.InvalidInput as error:
            raise change(str(error)) from None

    return contract


def _anything(genuine: Any, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _late(genuine: Any, x: Tensor) -> Tensor:
    if not x.is_floating_point() or x.itemsize == 1:
        name = list(OPS)[-1]
        raise hal.InvalidInput(f"{name}: x must be floating point; x is {describe(x)}")
    return genuine(x)


def _only_real(genuine: Any, x: Tensor) -> Tensor:
    return x.new_empty(x.shape) if isinstance(x, FakeTensor) else genuine(x)


def _fault(name: str, complaint: str, **changes: Any) -> Fault:
    return Fault(name, "relu_squared", "refusals", complaint, **changes)


FAULTS = [
    _fault("nothing is refused", "it was not refused", contract=_anything),
    _fault(
        "nothing is refused without data",
        "it was not refused without data",
        contract=_only_real,
    ),
    _fault(
        "refused without what was found",
        "must be floating point does not match",
        contract=_rewritten(lambda said: hal.InvalidInput(said.partition(";")[0])),
    ),
    _fault("refused by the kernel", "something ran before", contract=_anything, kernel=_late),
    _fault(
        "refused by another exception",
        "RuntimeError: x must be floating point",
        contract=_rewritten(RuntimeError),
    ),
    _fault("refused without the name of the op", "does not name the op: x must", named=False),
]
