"""The arguments of an op as they are typed: shapes, dtypes, values; tensors without data."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
from torch._subclasses import FakeTensorMode

from hal.errors import InvalidInput
from hal.hardware import Device
from hal.op import Op

__all__ = ["Shape", "dtype_named", "fitting", "given", "parsed_shape", "parsed_value", "words"]

_SHAPE = re.compile(r"(?:(\w+)=)?((?:\d+(?:,\d+)*)?)(?::([\w.]+))?")
_WORDS = {"true": True, "false": False, "none": None}


@attrs.frozen
class Shape:
    """What was typed of a tensor; what was left out is None."""

    sizes: tuple[int, ...]
    name: str | None = None
    dtype: torch.dtype | None = None


def words(text: str | None) -> list[str] | None:
    """What is typed separated by commas; None if nothing is."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _near(name: str, known: Iterable[str]) -> str:
    """The known names nearest to ``name``, all of them if none is near."""
    names = list(known)
    return ", ".join(difflib.get_close_matches(name, names, n=3) or names)


def dtype_named(name: str) -> torch.dtype:
    """The dtype that torch has under ``name``.

    Raises:
        InvalidInput: There is none; the message has the nearest.
    """
    found = getattr(torch, name.removeprefix("torch."), None)
    if isinstance(found, torch.dtype):
        return found
    known = [each for each in vars(torch) if isinstance(getattr(torch, each), torch.dtype)]
    near = difflib.get_close_matches(name, known, n=3) or ["float32", "bfloat16", "int32"]
    raise InvalidInput(f"there is no dtype {name!r}; did you mean {' or '.join(near)}?")


def parsed_shape(text: str) -> Shape:
    """Read ``4,8192``, ``weight=8192`` or ``positions=4:int64``; no sizes at all are a scalar."""
    match = _SHAPE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InvalidInput(f"{text!r} is not a shape; write 4,8192 or weight=8192:float32")
    name, sizes, dtype = match.groups()
    return Shape(
        tuple(int(size) for size in sizes.split(",") if size),
        name,
        dtype_named(dtype) if dtype else None,
    )


def parsed_value(text: str) -> tuple[str, Any]:
    """Read ``eps=1e-5``; what is not a Python literal is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidInput(f"{text!r} sets nothing; write name=value")
    if value.lower() in _WORDS:
        return name, _WORDS[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _known(op: Op, name: str, names: list[str], kind: str) -> str:
    if name not in names:
        raise InvalidInput(f"{op.name} has no {kind} {name!r}; it has {_near(name, names)}")
    return name


def _by_name(op: Op, shapes: Sequence[Shape], values: dict[str, Any]) -> dict[str, Shape]:
    """Give shapes without a name to the tensors in the order of the signature."""
    tensors = [parameter.name for parameter in op.parameters if parameter.tensor]
    named = {_known(op, shape.name, tensors, "tensor"): shape for shape in shapes if shape.name}
    rest = [shape for shape in shapes if not shape.name]
    free = [name for name in tensors if name not in named and name not in values]
    if len(rest) > len(free):
        took = ", ".join(tensors)
        raise InvalidInput(
            f"{op.name} has {len(tensors)} tensors ({took}); there are {len(shapes)} shapes"
        )
    return named | dict(zip(free, rest, strict=False))


def _missing(op: Op, found: dict[str, Any]) -> list[str]:
    needed = [
        p for p in op.parameters if p.default is inspect.Parameter.empty and p.name not in found
    ]
    return [f"--shape {p.name}=SIZES" if p.tensor else f"--set {p.name}=VALUE" for p in needed]


def given(op: Op, shapes: Sequence[Shape], values: dict[str, Any]) -> dict[str, Any]:
    """What was typed, by parameter: a ``Shape`` for a tensor, None for an optional one left out.

    Raises:
        InvalidInput: An unknown name, too many shapes, or one that the op needs and nobody gave.
    """
    plain = {
        _known(op, name, [p.name for p in op.parameters], "parameter"): value
        for name, value in values.items()
    }
    optional = {p.name: None for p in op.parameters if p.tensor and type(None) in p.types}
    found = plain | _by_name(op, shapes, values)
    missing = _missing(op, optional | found)
    if missing:
        raise InvalidInput(f"{op.name} also needs {' '.join(missing)}")
    for parameter in op.parameters:
        value = found.get(parameter.name)
        if torch.dtype in parameter.types and isinstance(value, str):
            found[parameter.name] = dtype_named(value)
    order = [parameter.name for parameter in op.parameters]
    needless = {
        p.name for p in op.parameters if p.default is not inspect.Parameter.empty
    } - found.keys()
    return {name: (optional | found)[name] for name in order if name not in needless}


def _tensors(
    found: dict[str, Any], dtypes: dict[str, torch.dtype], device: Device | None
) -> dict[str, Any]:
    """Make tensors: on meta, which stands for the current device, or fake ones on ``device``."""

    def made(name: str, shape: Shape) -> torch.Tensor:
        dtype = shape.dtype or dtypes[name]
        if device is None:
            return torch.empty(shape.sizes, dtype=dtype, device="meta")
        with FakeTensorMode():
            return torch.empty(shape.sizes, dtype=dtype, device=str(device))

    return {name: made(name, v) if isinstance(v, Shape) else v for name, v in found.items()}


def _blamed(error: InvalidInput, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{name} (is|must)\b", str(error))]


def fitting(
    function: Callable[..., Any], found: dict[str, Any], dtype: torch.dtype, device: Device | None
) -> tuple[Any, dict[str, Any]]:
    """Call ``function`` with tensors of ``dtype``, or of int32 where that is what the op wants.

    Args:
        function: Called with the arguments by name.
        found: What ``given`` returned.
        dtype: For the tensors whose dtype was not typed.
        device: Where the tensors are; None for meta tensors.

    Returns:
        What ``function`` returned, and the arguments that it accepted.

    Raises:
        InvalidInput: Refused, whatever the dtypes that were not typed.
    """
    dtypes = {n: dtype for n, v in found.items() if isinstance(v, Shape) and v.dtype is None}

    def tried(changed: str | None = None) -> Any:
        chosen = dtypes | ({changed: torch.int32} if changed else {})
        arguments = _tensors(found, chosen, device)
        try:
            return function(**arguments), arguments
        except InvalidInput as error:
            return error

    outcome = tried()
    while isinstance(outcome, InvalidInput):
        for name in _blamed(outcome, (n for n in dtypes if dtypes[n] is dtype)):
            other = tried(name)
            # A flaw in the shape stays, whatever the dtype; then show the first complaint.
            if not isinstance(other, InvalidInput) or name not in _blamed(other, dtypes):
                dtypes[name], outcome = torch.int32, other
                break
        else:
            raise outcome
    return outcome
