"""Laws of all ops that work row by row, and of all that take ``out``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hal
from hal.testing.laws.law import COLUMNS, ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS", "results"]

# A kernel may sum in another order for another number of rows: some roundings of the largest.
ROUNDINGS = 16


def results(given: Any) -> list[Tensor]:
    """The tensors that an op has returned, however many."""
    many = given if isinstance(given, tuple) else (given,)
    return [one for one in many if one is not None]


def _norms(values: Values, x: Tensor) -> dict[str, Any]:
    return {"weight": values(x.shape[-1], positive=True)}


def _nothing(values: Values, x: Tensor) -> dict[str, Any]:
    del values, x
    return {}


# By the name of an op, the arguments that it has beside ``x`` and its like.
BESIDE: dict[str, Callable[[Values, Tensor], dict[str, Any]]] = {
    "silu_and_mul": _nothing,
    "gelu_and_mul": _nothing,
    "gelu_tanh_and_mul": _nothing,
    "swigluoai_and_mul": _nothing,
    "relu_squared": _nothing,
    "quick_gelu": _nothing,
    "rms_norm": _norms,
    "gemma_rms_norm": _norms,
    "layer_norm": lambda values, x: _norms(values, x) | {"bias": values(x.shape[-1])},
    "per_token_group_quant": lambda values, x: {"group_size": 16},
    "per_token_quant": _nothing,
    "silu_and_mul_quant": _nothing,
    "rms_norm_quant": _norms,
    "softmax": _nothing,
    "top_k_renorm": lambda values, x: {"top_k": 3},
    "top_p_renorm": lambda values, x: {"top_p": 0.75},
    "min_p_renorm": lambda values, x: {"min_p": 0.25},
    "topk_softmax": lambda values, x: {"k": 2},
    "topk_sigmoid": lambda values, x: {"k": 2},
}


def _rows(op: str, values: Values, rows: int, columns: int) -> Tensor:
    """Rows that the op takes, no two values of which are told apart by a rounding."""
    if op.endswith("_renorm"):
        return values.integers(rows, 2 * columns, low=0, high=64).float() / 64
    return values.coarse(rows, 2 * columns, most=20) / 8


def _compare(got: Tensor, want: Tensor) -> None:
    if got.dtype.is_floating_point and got.dtype.itemsize > 1:
        near(got, want, ROUNDINGS)
    else:
        equal(got.double(), want.double())


def _order(op: str) -> Law:
    def holds(rows: int, columns: int, seed: int) -> None:
        values = Values(seed)
        x = _rows(op, values, rows, columns)
        beside, order = BESIDE[op](values, x), values.order(rows)
        function = getattr(hal.ops, op)
        moved = results(function(x[order], **beside))
        for got, want in zip(moved, results(function(x, **beside)), strict=True):
            # Not every torch has an index on a CPU for 8-bit floats.
            _compare(got, want.double()[order].to(want.dtype))

    given = {"rows": ROWS, "columns": COLUMNS, "seed": SEEDS}
    return Law(f"{op}: rows in another order give their results in that order", (op,), given, holds)


def _parts(op: str) -> Law:
    def holds(rows: int, columns: int, seed: int) -> None:
        values = Values(seed)
        x = _rows(op, values, rows + 1, columns)
        beside, cut = BESIDE[op](values, x), 1 + seed % rows
        function = getattr(hal.ops, op)
        parts = [results(function(part, **beside)) for part in (x[:cut], x[cut:])]
        for whole, first, second in zip(results(function(x, **beside)), *parts, strict=True):
            joined = torch.cat([part.double() for part in (first, second)])
            _compare(joined.to(whole.dtype), whole)

    given = {"rows": ROWS, "columns": COLUMNS, "seed": SEEDS}
    return Law(f"{op}: a batch gives what its parts give", (op,), given, holds)


def _out(op: str) -> Law:
    def holds(rows: int, columns: int, seed: int) -> None:
        values = Values(seed)
        x = _rows(op, values, rows, columns)
        beside, function = BESIDE[op](values, x), getattr(hal.ops, op)
        want = function(x, **beside)
        poison = [torch.full_like(one, 77) for one in results(want)]
        out = tuple(poison) if isinstance(want, tuple) else poison[0]
        assert function(x, **beside, out=out) is out
        for got, expected in zip(poison, results(want), strict=True):
            _compare(got, expected)

    given = {"rows": ROWS, "columns": COLUMNS, "seed": SEEDS}
    return Law(f"{op}: out= gets what is returned otherwise", (op,), given, holds)


LAWS = [make(op) for op in BESIDE for make in (_order, _parts, _out)]
