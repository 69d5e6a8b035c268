"""The checks a declaration is written with; each raises ``InvalidInput`` naming what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

__all__ = ["check", "check_dtype", "check_floating", "check_shape", "describe", "joined"]


def joined(texts: Sequence[str]) -> str:
    """The texts with commas between; Dynamo (torch 2.7 to 2.13) joins none with a symbolic size."""
    said, mark = "", ""
    for text in texts:
        said, mark = f"{said}{mark}{text}", ", "
    return said


def describe(value: object) -> str:
    """Say in a few characters what an argument is: ``[4, 7] float32 on cpu`` for a tensor."""
    if isinstance(value, (tuple, list)) and any(hasattr(each, "dtype") for each in value):
        return f"a {type(value).__name__} of {joined([describe(each) for each in value])}"
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return repr(value)
    shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
    return f"{shape} {dtype}"


def check(condition: bool, requirement: str | Callable[[], str], **found: object) -> None:
    """Raise ``InvalidInput`` with the requirement and what was found instead, unless it holds.

    A requirement that names a size is a function: to write a symbolic size down would fix it, and
    compiled code would serve no other.
    """
    if not condition:
        required = requirement if isinstance(requirement, str) else requirement()
        given = joined([f"{name} is {describe(value)}" for name, value in found.items()])
        raise InvalidInput(f"{required}; {given}" if found else required)


def check_dtype(dtypes: Sequence[torch.dtype], **tensors: Tensor | None) -> None:
    """Require each tensor that is given to have one of ``dtypes``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InvalidInput(f"{name} must be {names}; {name} is {describe(tensor)}")


def check_floating(**tensors: Tensor | None) -> None:
    """Require each tensor that is given to be float16, bfloat16, float32 or float64."""
    for name, tensor in tensors.items():
        # Eight-bit floats have no arithmetic of their own; ops that take them say so.
        if tensor is not None and not (
            tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
        ):
            wide = " of 16 bits or more" if tensor.dtype.is_floating_point else ""
            raise InvalidInput(f"{name} must be floating point{wide}; {name} is {describe(tensor)}")


def check_shape(shape: Sequence[int], **tensors: Tensor | None) -> None:
    """Require each tensor that is given to have exactly ``shape``."""
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise InvalidInput(
                f"{name} must have shape {list(shape)}; {name} is {describe(tensor)}"
            )
