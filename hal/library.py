"""The torch.library view of every op: schema, implementation, fake kernel, and what Dynamo traces.

Each form is one operator in the namespace ``hal`` with one implementation for every device, which
chooses as the eager path does. FakeTensor, subclasses, ``make_fx``, export, functorch and compiled
code see only this.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.library import Library, infer_schema

from hal import tracing
from hal.dispatch import copy_results
from hal.form import Form
from hal.op import Op
from hal.schema import Flat, implementation, join, packed, prototype, split, unpacked
from hal.tracing import exporting, mended
from hal.transforms import autograd_function, backward, batched, remember
from hal.validate import (
    as_tuple,
    check_devices,
    check_out,
    check_targets,
    check_unrecorded,
    first_tensor,
    tensors,
)

__all__ = ["register"]

# The library must live as long as its operators.
_LIBRARY = Library("hal", "DEF")


def _define(name: str, signature: inspect.Signature, mutated: Sequence[str]) -> Any:
    def stated() -> None: ...

    stated.__signature__ = signature  # type: ignore[attr-defined]
    schema = infer_schema(stated, mutates_args=tuple(mutated))
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.hal, name).default


def _shapes(op: Op, signature: inspect.Signature, inplace: bool) -> Callable[..., Any]:
    """The fake kernel: the declaration itself, with the arguments and results of the schema."""
    defaults = [p.default for p in signature.parameters.values()]

    def shapes(*arguments: Any) -> Any:
        # The dispatcher leaves out trailing arguments that equal their defaults.
        flat = join(op, [*arguments, *defaults[len(arguments) :]])
        # A meta tensor among others would pass their results off as computed.
        check_devices(op, tensors(op, flat))
        results = op.call(op.contract, flat)
        return None if inplace else packed(op, results, first_tensor(flat))

    return shapes


def _register(form: Form, result: Any, mutated: Sequence[str] = ()) -> Any:
    """Define the torch operator of ``form``, with what computes and what gives the shapes."""
    signature = prototype(form.op, result)
    overload = _define(form.name, signature, mutated)
    form.computes = implementation(form.op, signature, form.below, form.inplace)
    _LIBRARY.impl(form.name, form.computes, "CompositeExplicitAutograd")
    shapes = _shapes(form.op, signature, form.inplace)
    torch.library.register_fake(f"hal::{form.name}", shapes, lib=_LIBRARY)
    return overload


def _functional(form: Form) -> Any:
    op = form.op
    result = Tensor if op.results is None else tuple[(Tensor,) * len(op.results)]  # type: ignore[misc]
    overload = _register(form, result)
    torch.library.register_vmap(f"hal::{op.name}", batched(op, overload), lib=_LIBRARY)
    if op.grad:
        torch.library.register_autograd(
            f"hal::{op.name}", backward(op), setup_context=remember, lib=_LIBRARY
        )
    return overload


def _traced(form: Form) -> Callable[[Flat, Any], Any]:
    """What Dynamo traces for a call: the reference inline where it serves, else the operator."""
    op, overload, contract = form.op, form.overload, form.op.contract
    count, keywords = op.positional, op.keywords
    positions, single = op.overwritten, op.results is None
    copies, prefix = bool(op.inplace), f"{op.name}@"

    def opaque(flat: Flat) -> Any:
        results = overload(*split(op, flat))
        return None if form.inplace else unpacked(op, flat, results)

    def inline(function: Any, flat: Flat) -> Any:
        plain, named = flat[:count], dict(zip(keywords, flat[count:], strict=True))
        contract(*plain, **named)
        return function(*plain, **named)

    def traced(flat: Flat, out: Any) -> Any:
        where = first_tensor(flat).device
        if form.inplace:
            check_targets(op, flat)
        if form.inplace or out is not None:
            check_unrecorded(form.name, (*flat, *as_tuple(out)))
        mended()
        function = getattr(tracing, f"{prefix}{where.type}@{where.index}")
        if exporting():  # An exported program keeps the operator.
            function = None
        results = opaque(flat) if function is None else inline(function, flat)
        if out is not None:
            check_out(form.name, as_tuple(out), as_tuple(results), where)
            copy_results(as_tuple(results), as_tuple(out))
            return out
        if not form.inplace:
            return results
        targets = tuple(flat[i] for i in positions)
        if copies and function is not None:
            copy_results(as_tuple(results), targets)
        return targets[0] if single else targets

    return traced


def _through(form: Form) -> Callable[[Flat], Any]:
    """A call through torch's dispatcher, with the results of the Python function."""
    op, overload, positions = form.op, form.overload, form.op.overwritten
    function = autograd_function(op, overload) if op.grad and not form.inplace else None

    def through(flat: Flat) -> Any:
        transformed = peek_interpreter_stack() is not None  # pyright: ignore[reportUnnecessaryComparison]
        target = function.apply if function and transformed else overload
        results = target(*split(op, flat))
        if not form.inplace:
            return unpacked(op, flat, results)
        targets = tuple(flat[i] for i in positions)
        return targets[0] if op.results is None else targets

    return through


def register(form: Form) -> None:
    """Give ``form`` its torch operator, and what tracers see."""
    mutated = form.op.inplace or form.op.mutates
    form.overload = _register(form, None, mutated) if form.inplace else _functional(form)
    form.traced, form.through = _traced(form), _through(form)
