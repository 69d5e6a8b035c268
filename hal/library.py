"""The torch.library view of every op: schema, implementation, fake kernel, gradient, batching rule.

Each form is one operator in the namespace ``hal`` with one implementation for every device, which chooses as the
eager path does. FakeTensor, subclasses, ``make_fx``, export, functorch and compiled code see only this.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.library import Library, infer_schema

from hal import tracing
from hal.dispatch import Form, copy_results
from hal.op import Op, Parameter
from hal.probe import device
from hal.select import reference
from hal.validate import as_tuple, first_tensor

__all__ = ["register"]

# The library must live as long as its operators.
_LIBRARY = Library("hal", "DEF")

Flat = Sequence[Any]


# ---- schemas ----------------------------------------------------------------------------------------


def _annotation(types: Sequence[Any]) -> Any:
    """One type of torch's schema language from the members of a union."""
    plain = next(t for t in types if t is not type(None))
    plain = Sequence[int] if plain is Sequence else plain
    return Optional[plain] if type(None) in types else plain  # noqa: UP045  # infer_schema knows this form.


def _schema_parameters(parameter: Parameter) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of each schema argument; a union of tensor and value becomes two."""
    if not parameter.union:
        return [(parameter.name, _annotation(parameter.types), parameter.default)]
    scalars = [t for t in parameter.types if t not in (Tensor, type(None))]
    absent = parameter.default is inspect.Parameter.empty
    default = parameter.default if absent else None
    return [
        (parameter.name, Optional[Tensor], default),  # noqa: UP045
        (f"{parameter.name}_value", Optional[scalars[0]], parameter.default),  # noqa: UP045
    ]


def _prototype(op: Op, result: Any) -> inspect.Signature:
    """The signature torch's schema is inferred from: everything positional, defaults where they may stand."""
    wanted = [entry for parameter in op.parameters for entry in _schema_parameters(parameter)]
    made: list[inspect.Parameter] = []
    required = False
    for name, annotation, default in reversed(wanted):
        # A parameter before a required one, and a list, cannot have a default in a schema.
        required = required or default is inspect.Parameter.empty
        kept = inspect.Parameter.empty if required or isinstance(default, tuple) else default
        required = required or isinstance(default, tuple)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        made.append(inspect.Parameter(name, kind, default=kept, annotation=annotation))
    return inspect.Signature(made[::-1], return_annotation=result)


def _define(name: str, signature: inspect.Signature, mutated: Sequence[str]) -> Any:
    def prototype() -> None: ...

    prototype.__signature__ = signature  # type: ignore[attr-defined]
    schema = infer_schema(prototype, mutates_args=tuple(mutated))
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.hal, name).default


def _split(op: Op, flat: Flat) -> list[Any]:
    """An op's arguments as its schema has them."""
    arguments: list[Any] = []
    for parameter, value in zip(op.parameters, flat, strict=True):
        if not parameter.union:
            arguments.append(value)
        elif isinstance(value, Tensor):
            arguments += [value, None]
        else:
            arguments += [None, value]
    return arguments


def _join(op: Op, arguments: Flat) -> list[Any]:
    """The inverse of ``_split``."""
    rest = iter(arguments)
    flat: list[Any] = []
    for parameter in op.parameters:
        value = next(rest)
        if parameter.union:
            plain = next(rest)
            value = plain if value is None else value
        flat.append(tuple(value) if isinstance(value, list) else value)
    return flat


# ---- results ----------------------------------------------------------------------------------------


def _present(op: Op, flat: Flat) -> list[bool]:
    """Which results are tensors: one that would overwrite an argument that is None is None itself."""
    positions = op.overwritten
    return [flat[i] is not None for i in positions] or [True] * len(op.results or (Tensor,))


def _packed(op: Op, results: Any, like: Tensor) -> Any:
    """Results as the schema has them: an empty tensor in place of None."""
    full = tuple(like.new_empty(0) if r is None else r for r in as_tuple(results))
    return full[0] if op.results is None else full


def _unpacked(op: Op, flat: Flat, results: Any) -> Any:
    """The inverse of ``_packed``."""
    if op.results is None:
        return results
    return tuple(r if there else None for r, there in zip(results, _present(op, flat), strict=True))


# ---- operators --------------------------------------------------------------------------------------


def _defaults(signature: inspect.Signature) -> list[Any]:
    return [p.default for p in signature.parameters.values()]


def _register(
    name: str, signature: inspect.Signature, body: Any, fake: Any, mutated: Any = ()
) -> Any:
    """Define ``hal::name`` with ``body`` for every device and ``fake`` for shapes; both take all arguments."""
    overload = _define(name, signature, mutated)
    defaults = _defaults(signature)

    # The dispatcher leaves out trailing arguments that equal their defaults.
    def implementation(*arguments: Any) -> Any:
        return body([*arguments, *defaults[len(arguments) :]])

    def shapes(*arguments: Any) -> Any:
        return fake([*arguments, *defaults[len(arguments) :]])

    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hal::{name}", shapes, lib=_LIBRARY)
    return overload


def _functional(form: Form) -> Any:
    op = form.op
    result = Tensor if op.results is None else tuple[(Tensor,) * len(op.results)]  # type: ignore[misc]

    def body(arguments: Flat) -> Any:
        flat = _join(op, arguments)
        return _packed(op, op.call(form.below, flat), first_tensor(flat))

    def fake(arguments: Flat) -> Any:
        flat = _join(op, arguments)
        return _packed(op, op.call(op.contract, flat), first_tensor(flat))

    overload = _register(form.name, _prototype(op, result), body, fake)
    torch.library.register_vmap(f"hal::{op.name}", _batched(op, overload), lib=_LIBRARY)
    if op.grad:
        torch.library.register_autograd(
            f"hal::{op.name}", _backward(op), setup_context=_remember, lib=_LIBRARY
        )
    return overload


def _inplace(form: Form) -> Any:
    op = form.op

    def body(arguments: Flat) -> None:
        op.call(form.below, _join(op, arguments))

    def fake(arguments: Flat) -> None:
        op.call(op.contract, _join(op, arguments))

    return _register(form.name, _prototype(op, None), body, fake, op.inplace or op.mutates)


# ---- transforms -------------------------------------------------------------------------------------


def _batched(op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
    """Vmap runs the op on each slice: right for every kernel and every argument that is batched."""

    def batched(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def slices(i: int) -> list[Any]:
            pairs = zip(arguments, in_dims, strict=True)
            return [a if dim is None else a.select(dim, i) for a, dim in pairs]

        results = [as_tuple(function(*slices(i))) for i in range(info.batch_size)]
        stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return (stacked[0], 0) if op.results is None else (stacked, (0,) * len(stacked))

    return batched


def _remember(ctx: Any, inputs: Flat, output: Any) -> None:
    del output
    ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
    ctx.plain = [None if isinstance(value, Tensor) else (value,) for value in inputs]


def _backward(op: Op) -> Callable[..., Any]:
    """The gradient is the vector-Jacobian product of the reference, whichever kernel ran."""

    def backward(ctx: Any, *grads: Any) -> Any:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if plain is None else plain[0] for plain in ctx.plain]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        present = _present(op, _join(op, inputs))
        given = [grad for grad, there in zip(grads, present, strict=True) if there]
        found = dict(zip(wanted, _vjp(op, inputs, wanted, given), strict=True))
        return tuple(found.get(i) for i in range(len(inputs)))

    return backward


def _autograd_function(op: Op, overload: Any) -> type[torch.autograd.Function]:
    """The op for functorch, whose transforms cannot see through ``register_autograd``."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return overload(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _remember(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return _backward(op)(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return _batched(op, Function.apply)(info, in_dims, *arguments)

    return Function


def _vjp(op: Op, inputs: list[Any], wanted: list[int], grads: list[Tensor]) -> tuple[Tensor, ...]:
    kernel = reference(op, device(first_tensor(inputs)))

    def function(*varied: Tensor) -> tuple[Tensor, ...]:
        arguments = list(inputs)
        for i, value in zip(wanted, varied, strict=True):
            arguments[i] = value
        results = as_tuple(op.call(kernel.fn, _join(op, arguments)))
        return tuple(result for result in results if result is not None)

    _, pull = torch.func.vjp(function, *[inputs[i] for i in wanted])
    return pull(tuple(grads))


# ---- torch.compile ----------------------------------------------------------------------------------


def _traced(form: Form) -> Callable[[Flat, Any], Any]:
    """What Dynamo traces for a call: the reference inline where it serves, else the operator."""
    op, overload, contract = form.op, form.overload, form.op.contract
    count, keywords = op.positional, op.keywords
    positions, single = op.overwritten, op.results is None
    copies, prefix = bool(op.inplace), f"{op.name}@"

    def opaque(flat: Flat) -> Any:
        results = overload(*_split(op, flat))
        return None if form.inplace else _unpacked(op, flat, results)

    def inline(function: Any, flat: Flat) -> Any:
        plain, named = flat[:count], dict(zip(keywords, flat[count:]))
        contract(*plain, **named)
        return function(*plain, **named)

    def traced(flat: Flat, out: Any) -> Any:
        where = first_tensor(flat).device
        function = getattr(tracing, f"{prefix}{where.type}@{where.index}")
        if torch.compiler.is_exporting():
            function = None
        results = opaque(flat) if function is None else inline(function, flat)
        if out is not None:
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
    function = _autograd_function(op, overload) if op.grad and not form.inplace else None

    def through(flat: Flat) -> Any:
        transformed = function is not None and peek_interpreter_stack() is not None
        results = (function.apply if transformed else overload)(*_split(op, flat))
        if not form.inplace:
            return _unpacked(op, flat, results)
        targets = tuple(flat[i] for i in positions)
        return targets[0] if op.results is None else targets

    return through


def register(form: Form) -> None:
    """Give ``form`` its torch operator, and what tracers see."""
    form.overload = _inplace(form) if form.inplace else _functional(form)
    form.traced, form.through = _traced(form), _through(form)
