"""Checks around a kernel: its arguments before anything runs, its results once for each plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hal.checks import describe, joined
from hal.errors import BackendError, InvalidInput, InvalidType
from hal.op import Op, Parameter

__all__ = [
    "as_tuple",
    "check_devices",
    "check_out",
    "check_results",
    "check_targets",
    "check_types",
    "check_unrecorded",
    "first_tensor",
    "overlaps",
    "tensors",
    "validate",
    "without_data",
]

_ACCEPTED: dict[Any, tuple[type, ...]] = {
    float: (float, int, torch.SymFloat, torch.SymInt),
    int: (int, torch.SymInt),
    bool: (bool, torch.SymBool),
    Sequence: (tuple, list),
}


def _accepts(parameter: Parameter, value: Any) -> bool:
    if isinstance(value, bool) and bool not in parameter.types:
        return False
    if isinstance(value, (tuple, list)) and not all(type(v) in (int, torch.SymInt) for v in value):
        return False
    return any(isinstance(value, _ACCEPTED.get(t, (t,))) for t in parameter.types)


def _type_name(kind: Any) -> str:
    return "Sequence of int" if kind is Sequence else getattr(kind, "__name__", str(kind))


def _check_size(op: Op, parameter: Parameter, value: Any) -> None:
    """Refuse integers beyond 64 bits, which fail in another way on each path through torch."""
    for each in value if isinstance(value, (tuple, list)) else (value,):
        if type(each) is int and not -(2**63) <= each < 2**63:
            bits = each.bit_length()
            must = "be a float or fit" if float in parameter.types else "fit"
            raise InvalidInput(
                f"{op.name}: {parameter.name} must {must} in a signed 64-bit integer; "
                # Python does not write down numbers of more than 4300 digits.
                f"found {each if bits < 256 else f'an integer of {bits} bits'}"
            )


def check_types(op: Op, flat: Sequence[Any]) -> None:
    """Refuse an argument whose type or size the signature has not, or a sparse or nested one."""
    for parameter, value in zip(op.parameters, flat, strict=True):
        if not _accepts(parameter, value):
            names = " or ".join(map(_type_name, parameter.types))
            # A tensor's elements are not written out: to read them would wait for the device.
            tensor = isinstance(value, (Tensor, tuple, list))
            found = f"{describe(value) if tensor else repr(value)} of type {type(value).__name__}"
            raise InvalidType(f"{op.name}: {parameter.name} must be {names}, not {found}")
        _check_size(op, parameter, value)
        if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_nested):
            layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise InvalidInput(f"{op.name}: {parameter.name} must be a dense tensor, not {layout}")


def tensors(op: Op, flat: Sequence[Any]) -> dict[str, Tensor]:
    """The arguments that are tensors, by name."""
    pairs = zip(op.parameters, flat, strict=True)
    return {p.name: value for p, value in pairs if isinstance(value, Tensor)}


def check_devices(op: Op, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors of several devices."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise InvalidInput(f"{op.name}: all tensors must be on one device; found {where}")


def without_data(value: Any) -> Any:
    """An argument as it is, but for the data of a tensor."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Results as a tuple, also when there is one."""
    return results if isinstance(results, tuple) else (results,)


def validate(op: Op, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Refuse bad arguments; return the results that the declaration promises, as meta tensors."""
    check_types(op, flat)
    check_devices(op, tensors(op, flat))
    return as_tuple(op.call(op.contract, list(map(without_data, flat))))


def check_targets(op: Op, flat: Sequence[Any]) -> None:
    """Refuse to write into a tensor of which several elements share one place in memory."""
    for i in op.overwritten:
        _check_apart(op.name, op.parameters[i].name, flat[i])


def overlaps(value: Any) -> bool:
    """Whether it is a tensor of which several elements share one place in memory."""
    if not isinstance(value, Tensor) or not value.numel():
        return False
    return any(s == 0 and n > 1 for n, s in zip(value.shape, value.stride(), strict=True))


def _check_apart(op: str, name: str, target: Any) -> None:
    if overlaps(target):
        raise InvalidInput(
            f"{op}: {name} is written to and must not be expanded; "
            f"its strides are {target.stride()} for {describe(target)}"
        )


def check_out(
    op: str, targets: tuple[Any, ...], promised: tuple[Any, ...], where: torch.device
) -> None:
    """Require ``out`` to have the shapes and dtypes of the results, on their device."""
    fits = len(targets) == len(promised) and all(
        (want is None and got is None)
        or (
            want is not None
            and isinstance(got, Tensor)
            and (got.shape, got.dtype, got.device) == (want.shape, want.dtype, where)
        )
        for got, want in zip(targets, promised, strict=True)
    )
    if not fits:
        want = joined([describe(each) for each in promised])
        got = joined([f"{describe(each)}{_elsewhere(each, where)}" for each in targets])
        raise InvalidInput(f"{op}: out must be {want} on {where}; out is {got}")
    for i, target in enumerate(targets):
        _check_apart(op, "out", target)
        if target is not None and any(target is other for other in targets[:i]):
            raise InvalidInput(f"{op}: out holds one tensor twice; each result needs its own")


def _elsewhere(value: Any, where: torch.device) -> str:
    return _place(value) if getattr(value, "device", where) != where else ""


def check_unrecorded(op: str, given: Sequence[Any]) -> None:
    """Refuse to write where a gradient would be recorded."""
    if torch.is_grad_enabled() and any(isinstance(g, Tensor) and g.requires_grad for g in given):
        raise InvalidInput(
            f"{op}: writing into given tensors has no gradient; "
            "call the op without out= and underscore, or under torch.no_grad()"
        )


def _facts(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None if value is None else type(value)
    # The strides of an empty tensor say nothing, nor does that of a dimension of one element.
    strides = [s for n, s in zip(value.shape, value.stride(), strict=True) if n > 1]
    return list(value.shape), value.dtype, strides if value.numel() else None


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{describe(value)} with strides {value.stride()}"


def _place(value: Any) -> str:
    return f" on {value.device}" if isinstance(value, Tensor) else ""


def _check_new(op: Op, kernel: object, found: tuple[Any, ...], flat: Sequence[Any]) -> None:
    """Refuse a result in the memory of an argument: whoever writes to one changes the other."""
    for name, given in tensors(op, flat).items():
        for got in found:
            if isinstance(got, Tensor) and torch._C._is_alias_of(got, given):  # pyright: ignore
                what = "its argument" if got is given else "a view of its argument"
                raise BackendError(f"{op.name}: {kernel} returned {what} {name}, not a new tensor")


def check_results(
    op: Op, kernel: object, results: Any, promised: tuple[Any, ...], flat: Sequence[Any]
) -> None:
    """Require what ``kernel`` returned for the arguments ``flat`` to be new, and as declared.

    Raises:
        BackendError: It is not.
    """
    found, where = as_tuple(results), first_tensor(flat).device
    _check_new(op, kernel, found, flat)
    wrapped = op.results is None and isinstance(results, tuple)
    same = not wrapped and [_facts(got) for got in found] == [_facts(want) for want in promised]
    if same and all(got is None or got.device == where for got in found):
        return
    got = ", ".join(_shown(each) + _place(each) for each in found)
    got = f"a tuple of one, {got}" if wrapped and len(found) == 1 else got
    want = ", ".join(map(_shown, promised))
    raise BackendError(f"{op.name}: {kernel} returned {got}; declared is {want}, on {where}")


def first_tensor(flat: Sequence[Any]) -> Tensor:
    """The first argument that is a tensor; it says which device serves."""
    return next(value for value in flat if isinstance(value, Tensor))
