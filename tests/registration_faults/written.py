"""Faults of what is written: into arguments, in place, and into ``out``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import dispatch
from registration_faults.plant import Fault, Patch

COPIES = "result {} is not what the functional form returns"


def _spoiling(spoil: Callable[..., None]) -> Any:
    """A kernel that is right and does something to its arguments."""

    def kernel(genuine: Any, *args: Any, **kwargs: Any) -> Any:
        result = genuine(*args, **kwargs)
        spoil(*args)
        return result

    return kernel


def _half(x: Tensor) -> None:
    if x.dtype == torch.bfloat16:
        x.mul_(2)


def _between(x: Tensor) -> None:
    """Write what lies between the rows of a part of a wider tensor."""
    if x.dim() == 2 and x.numel() and x.stride(0) > x.shape[1] and x.stride(1) == 1:
        gap = x.as_strided((x.shape[0] - 1,), (x.stride(0),), x.storage_offset() + x.shape[1])
        gap.fill_(7)


def _norm_first(genuine: Any, x: Tensor, residual: Tensor, *rest: Any) -> None:
    x.copy_(genuine(x, residual, *rest)[0])


def _swapped(genuine: Any, x: Tensor, residual: Tensor, *rest: Any) -> None:
    normed, total = genuine(x, residual, *rest)
    x.copy_(total)
    residual.copy_(normed)


def _in_turn(genuine: Any, x: Tensor, residual: Tensor, *rest: Any) -> None:
    """The second result is made from what the first has overwritten."""
    x.copy_(genuine(x, residual, *rest)[0])
    residual.copy_(genuine(x, residual, *rest)[1])


def _fused(name: str, complaint: str, inplace: Any) -> Fault:
    return Fault(name, "fused_add_rms_norm", "in-place", complaint, inplace=inplace)


ARGUMENTS = [
    Fault(
        "an argument is written into",
        "silu_and_mul",
        "purity",
        "wrote into x",
        kernel=_spoiling(lambda x: x.add_(1) if x.stride()[:1] != (0,) else None),
    ),
    Fault(
        "an argument is written into if it is bfloat16",
        "silu_and_mul",
        "purity",
        "wrote into x",
        kernel=_spoiling(_half),
    ),
    Fault(
        "the bytes between the rows of an argument are written into",
        "silu_and_mul",
        "purity",
        "rows of a wider tensor: .*wrote into x",
        kernel=_spoiling(_between),
    ),
    Fault(
        "the second argument is written into",
        "fused_add_rms_norm",
        "purity",
        "wrote into residual",
        kernel=_spoiling(lambda x, residual, *_: residual.copy_(residual + x)),
    ),
]

IN_PLACE = [
    _fused("in place: results in swapped order", COPIES.format(0), _swapped),
    _fused("in place: the first result alone", COPIES.format(1), _norm_first),
    _fused(
        "in place: new tensors, and nothing written",
        COPIES.format(0),
        lambda genuine, *args: genuine(*args),
    ),
    _fused("in place: the second from what the first overwrote", COPIES.format(1), _in_turn),
    Fault(
        "in place: a mark on a parameter of another shape",
        "fused_add_rms_norm",
        "in-place",
        "size of tensor|must match|broadcast shape",
        traits={"inplace": ("x", "weight")},
    ),
    Fault(
        "in place: a mark on a parameter that stays as it is",
        "mul_add",
        "in-place",
        COPIES.format(0),
        inplace=lambda genuine, x, y, scale: x.copy_(genuine(x, y, scale)),
        traits={"inplace": ("y",)},
    ),
]


def _rows_but_one(results: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
    for result, target in zip(results, targets, strict=True):
        target[:-1].copy_(result[:-1])


def _first_alone(results: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
    targets[0].copy_(results[0])


def _ignored(form: Any, flat: Sequence[Any], targets: Any, out: Any) -> Any:
    return dispatch.call(form, flat)


def _another(genuine: Any) -> Any:
    return lambda *args: genuine(*args).clone()


def _out(name: str, op: str, complaint: str, attribute: str, make: Any) -> Fault:
    return Fault(name, op, "out", complaint, patches=(Patch(dispatch, attribute, make),))


HOLDS = "out= of result {} holds something else"
RETURNED = "out= is not what is returned"

OUT = [
    _out("out: ignored", "silu_and_mul", RETURNED, "_call_into", lambda _: _ignored),
    _out("out: another tensor returned", "silu_and_mul", RETURNED, "_call_into", _another),
    _out(
        "out: filled but for the last row",
        "silu_and_mul",
        HOLDS.format(0),
        "copy_results",
        lambda _: _rows_but_one,
    ),
    _out(
        "out: the first of two filled",
        "fused_add_rms_norm",
        HOLDS.format(1),
        "copy_results",
        lambda _: _first_alone,
    ),
]

FAULTS = [*ARGUMENTS, *IN_PLACE, *OUT]
