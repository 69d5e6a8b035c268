"""What torch's transforms need of every op: gradients, and a rule for vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.op import Op
from hal.probe import device
from hal.schema import Flat, join, present
from hal.select import reference
from hal.validate import as_tuple, first_tensor

__all__ = ["autograd_function", "backward", "batched", "remember"]


def batched(op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
    """Vmap runs the op on each slice: right for every kernel and every argument that is batched."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def slices(i: int) -> list[Any]:
            pairs = zip(arguments, in_dims, strict=True)
            return [a if dim is None else a.select(dim, i) for a, dim in pairs]

        results = [as_tuple(function(*slices(i))) for i in range(info.batch_size)]
        stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return (stacked[0], 0) if op.results is None else (stacked, (0,) * len(stacked))

    return rule


def remember(ctx: Any, inputs: Flat, output: Any) -> None:
    """Keep a call's arguments for its gradient."""
    del output
    ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
    ctx.plain = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def backward(op: Op) -> Callable[..., Any]:
    """The gradient is the vector-Jacobian product of the reference, whichever kernel ran."""

    def pulled(ctx: Any, *grads: Any) -> Any:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if plain is None else plain[0] for plain in ctx.plain]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        there = present(op, join(op, inputs))
        given = [grad for grad, exists in zip(grads, there, strict=True) if exists]
        found = dict(zip(wanted, _vjp(op, inputs, wanted, given), strict=True))
        return tuple(found.get(i) for i in range(len(inputs)))

    return pulled


def autograd_function(op: Op, overload: Any) -> type[torch.autograd.Function]:
    """The op for functorch, whose transforms cannot see through ``register_autograd``."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return overload(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            remember(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(op)(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return batched(op, Function.apply)(info, in_dims, *arguments)

    return Function


def _vjp(op: Op, inputs: list[Any], wanted: list[int], grads: list[Tensor]) -> tuple[Tensor, ...]:
    kernel = reference(op, device(first_tensor(inputs)))

    def function(*varied: Tensor) -> tuple[Tensor, ...]:
        arguments = list(inputs)
        for i, value in zip(wanted, varied, strict=True):
            arguments[i] = value
        results = as_tuple(op.call(kernel.fn, join(op, arguments)))
        return tuple(result for result in results if result is not None)

    _, pull = torch.func.vjp(  # pyright: ignore[reportAssignmentType]
        function, *[inputs[i] for i in wanted]
    )
    return pull(tuple(grads))
