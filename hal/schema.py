"""Between an op and torch's schema language: signatures, arguments and results either way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Optional

from torch import Tensor

from hal.op import Op, Parameter, members
from hal.validate import as_tuple

__all__ = ["Flat", "implementation", "join", "packed", "present", "prototype", "split", "unpacked"]

Flat = Sequence[Any]
"""A call's arguments in the order of the signature."""


def _annotation(types: Sequence[Any]) -> Any:
    """One type of torch's schema language from the members of a union."""
    plain = next(t for t in types if t is not type(None))
    plain = Sequence[int] if plain is Sequence else plain
    # infer_schema knows this form of a union only.
    return Optional[plain] if type(None) in types else plain  # noqa: UP045


def _schema_parameters(parameter: Parameter) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of each schema argument; tensor or value becomes two."""
    if not parameter.union:
        return [(parameter.name, _annotation(parameter.types), parameter.default)]
    scalars = [t for t in parameter.types if t not in (Tensor, type(None))]
    absent = parameter.default is inspect.Parameter.empty
    default = parameter.default if absent else None
    return [
        (parameter.name, Optional[Tensor], default),  # noqa: UP045
        (f"{parameter.name}_value", Optional[scalars[0]], parameter.default),  # noqa: UP045
    ]


def prototype(op: Op, result: Any) -> inspect.Signature:
    """The signature a schema is inferred from: all positional, defaults where they may stand."""
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


def split(op: Op, flat: Flat) -> list[Any]:
    """An op's arguments as its schema has them."""
    arguments: list[Any] = []
    for parameter, value in zip(op.parameters, flat, strict=True):
        if float in parameter.types and type(value) is int:
            value = float(value)  # Torch takes no integer beyond 2**53 for one.
        if not parameter.union:
            arguments.append(value)
        elif isinstance(value, Tensor):
            arguments += [value, None]
        else:
            arguments += [None, value]
    return arguments


def join(op: Op, arguments: Flat) -> list[Any]:
    """The inverse of ``split``."""
    rest = iter(arguments)
    flat: list[Any] = []
    for parameter in op.parameters:
        value = next(rest)
        if parameter.union:
            plain = next(rest)
            value = plain if value is None else value
        flat.append(tuple(value) if isinstance(value, list) else value)
    return flat


def present(op: Op, flat: Flat) -> list[bool]:
    """Which results are tensors: what would overwrite an argument that is None is None."""
    positions = op.overwritten
    return [flat[i] is not None for i in positions] or [True] * len(op.results or (Tensor,))


def packed(op: Op, results: Any, like: Tensor) -> Any:
    """Results as the schema has them: an empty tensor in place of None."""
    full = tuple(like.new_empty(0) if r is None else r for r in as_tuple(results))
    return full[0] if op.results is None else full


def unpacked(op: Op, flat: Flat, results: Any) -> Any:
    """The inverse of ``packed``."""
    if op.results is None:
        return results
    return tuple(r if there else None for r, there in zip(results, present(op, flat), strict=True))


_IMPLEMENTATION = """
def make({names}):
    def implementation({signature}):
        {prepare}
        return {results}
    return implementation
"""


def _prepared(parameter: Parameter) -> str:
    """The assignment that makes an argument of a schema one of the op."""
    name = parameter.name
    if parameter.union:
        return f"{name} = {name}_value if {name} is None else {name}; "
    return f"{name} = tuple({name}); " if Sequence in parameter.types else ""


def implementation(
    op: Op, signature: inspect.Signature, below: Callable[..., Any], inplace: bool
) -> Callable[..., Any]:
    """A torch operator's implementation: ``below`` with the arguments and results of the schema.

    Generated, since unpacking and packing in general costs more than the rest of a call.
    """
    parameters = signature.parameters.values()
    defaults = {f"_{p.name}": p.default for p in parameters if p.default is not p.empty}
    named = {p.name for p in op.parameters if p.keyword_only}
    flat = ", ".join(f"{p.name}={p.name}" if p.name in named else p.name for p in op.parameters)
    results, optional = f"below({flat})", any(type(None) in members(r) for r in op.results or ())
    if inplace:
        results = f"({results}, None)[1]"
    elif optional:
        results = f"packed(op, {results}, {op.parameters[0].name})"
    closed = defaults | {"below": below, "packed": packed, "op": op}
    source = _IMPLEMENTATION.format(
        names=", ".join(closed),
        signature=", ".join(
            p.name if p.default is p.empty else f"{p.name}=_{p.name}" for p in parameters
        ),
        prepare="".join(map(_prepared, op.parameters)) or "pass",
        results=results,
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<torch.ops.hal.{op.name}>", "exec"), namespace)
    return namespace["make"](**closed)
