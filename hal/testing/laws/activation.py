"""Laws of the activations, and of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import COLUMNS, ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

SHAPE: dict[str, Any] = {"rows": ROWS, "columns": COLUMNS, "seed": SEEDS}
POWERS = st.integers(-8, 8)
GATED = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")
# The largest difference of the two forms of GELU is 4.74e-4, near 2.3 and -2.3.
FORMS_APART = 4.8e-4
# The least value of silu, at -1.2785.
LEAST_SILU = -0.27846455


def _gate(op: str, gate: Tensor) -> Tensor:
    """The activation of the gate alone."""
    return getattr(hal.ops, op)(torch.cat((gate, torch.ones_like(gate)), dim=-1))


def _linear(op: str) -> Law:
    def holds(rows: int, columns: int, power: int, seed: int) -> None:
        values, function = Values(seed), getattr(hal.ops, op)
        gate, up = values(rows, columns) * 4, values(rows, columns)
        got = function(torch.cat((gate, up * 2.0**power), dim=-1))
        # A power of two changes no rounding.
        equal(got, function(torch.cat((gate, up), dim=-1)) * 2.0**power)

    return Law(f"{op}: linear in what is gated", (op,), SHAPE | {"power": POWERS}, holds)


def _odd(op: str) -> Law:
    def holds(rows: int, columns: int, seed: int) -> None:
        gate = Values(seed)(rows, columns) * 3
        # Either side is rounded, and so is what it is computed from.
        near(_gate(op, gate) - _gate(op, -gate), gate, 8)

    return Law(f"{op}: act(g) - act(-g) = g", (op,), SHAPE, holds)


def quick_gelu_is_odd_but_for_a_line(rows: int, columns: int, seed: int) -> None:
    x = Values(seed)(rows, columns) * 3
    near(hal.ops.quick_gelu(x) - hal.ops.quick_gelu(-x), x, 8)


def silu_has_a_least_value(rows: int, columns: int, seed: int) -> None:
    gate = Values(seed)(rows, columns) * 8
    result = _gate("silu_and_mul", gate)
    assert result.min() >= LEAST_SILU - 1e-6
    assert bool((result <= gate.clamp(min=0)).all())


def forms_of_gelu(rows: int, columns: int, seed: int) -> None:
    gate = Values(seed)(rows, columns) * 4
    apart = _gate("gelu_and_mul", gate) - _gate("gelu_tanh_and_mul", gate)
    assert apart.abs().max() <= FORMS_APART


def relu_squared_scales(rows: int, columns: int, power: int, seed: int) -> None:
    x = Values(seed)(rows, columns)
    result = hal.ops.relu_squared(x)
    assert bool(((result > 0) == (x > 0)).all())
    equal(hal.ops.relu_squared(x * 2.0**power), result * 4.0**power)


def swigluoai_clamps(rows: int, columns: int, limit: float, seed: int) -> None:
    gate, up = (Values(seed + i)(rows, columns) * 8 for i in range(2))
    within = gate.clamp(max=limit), up.clamp(-limit, limit)
    got, want = (
        hal.ops.swigluoai_and_mul(torch.stack(pair, dim=-1).flatten(-2), limit=limit)
        for pair in ((gate, up), within)
    )
    equal(got, want)


def swigluoai_is_affine(rows: int, columns: int, seed: int) -> None:
    gate, up = (Values(seed + i)(rows, columns) for i in range(2))

    def of(factor: Tensor) -> Tensor:
        return hal.ops.swigluoai_and_mul(torch.stack((gate, factor), dim=-1).flatten(-2))

    zero = torch.zeros_like(up)
    near(of(up) - of(zero), of(zero) - of(-up), 16, like=of(up.abs()))


def mul_add_is_linear(rows: int, columns: int, seed: int, power: int) -> None:
    values = Values(seed)
    x, y = values(rows, columns), values(rows, columns)
    zero, scale = torch.zeros_like(x), 2.0**power
    equal(hal.ops.mul_add(x, zero, scale), x * scale)
    equal(hal.ops.mul_add(x, y, 0.0), y)
    equal(hal.ops.mul_add(x, y, scale), hal.ops.mul_add(x, zero, scale) + y)


def _norm(x: Tensor) -> Tensor:
    return hal.ops.rms_norm(x, None)


def _layer(x: Tensor) -> Tensor:
    return hal.ops.layer_norm(x, None, None)


DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    **{op: lambda x, op=op: getattr(hal.ops, op)(x) for op in (*GATED, "relu_squared")},
    "quick_gelu": lambda x: hal.ops.quick_gelu(x),
    "rms_norm": _norm,
    "layer_norm": _layer,
}


def _gradient(op: str) -> Law:
    def holds(rows: int, columns: int, seed: int) -> None:
        values = Values(seed)
        x = values(rows, 2 * columns).requires_grad_()
        result = DIFFERENTIABLE[op](x)
        first, second = values(*result.shape), values(*result.shape)

        def back(incoming: Tensor) -> Tensor:
            return torch.autograd.grad(result, x, incoming, retain_graph=True)[0]

        apart = back(first), back(second)
        # The terms of a gradient may cancel, and its sums are over a row.
        most = torch.cat(apart).abs().max() + torch.cat((first, second)).abs().max()
        near(back(first + second), apart[0] + apart[1], 64, like=most)

    return Law(f"{op}: its gradient is linear in the incoming one", (op,), SHAPE, holds)


LAWS = [
    *(make(op) for op in GATED for make in (_linear, _odd)),
    Law(
        "quick_gelu(x) - quick_gelu(-x) = x",
        ("quick_gelu",),
        SHAPE,
        quick_gelu_is_odd_but_for_a_line,
    ),
    Law(
        "silu is at most relu, and above its least value", GATED[:1], SHAPE, silu_has_a_least_value
    ),
    Law("the forms of GELU are 4.8e-4 apart", GATED[1:], SHAPE, forms_of_gelu),
    Law(
        "relu_squared is positive where x is, and quadratic",
        ("relu_squared",),
        SHAPE | {"power": POWERS},
        relu_squared_scales,
    ),
    Law(
        "swigluoai_and_mul sees nothing beyond its limit",
        ("swigluoai_and_mul",),
        SHAPE | {"limit": st.sampled_from([0.5, 1.0, 3.0, 7.0])},
        swigluoai_clamps,
    ),
    Law(
        "swigluoai_and_mul is affine in what is gated",
        ("swigluoai_and_mul",),
        SHAPE,
        swigluoai_is_affine,
    ),
    Law("mul_add is x * scale + y", ("mul_add",), SHAPE | {"power": POWERS}, mul_add_is_linear),
    *map(_gradient, DIFFERENTIABLE),
]
