"""Shapes without data: what tracers and compilers are told is what a kernel does."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from hal.form import Form
from hal.schema import split
from hal.testing.checks.check import Effort, accepted, check, each, sampled
from hal.testing.checks.forms import faked
from hal.testing.checks.results import same_bits
from hal.testing.checks.symbolic import general
from hal.testing.outcome import NotTried
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, results
from hal.validate import overlaps

__all__: list[str] = []


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    # Those of an empty tensor say nothing, nor does that of a dimension of one element.
    pairs = zip(tensor.shape, tensor.stride(), strict=True) if tensor.numel() else ()
    strides = [stride for size, stride in pairs if size > 1]
    return tuple(tensor.shape), tensor.dtype, tensor.device, strides, tensor.requires_grad


def _kind(returned: Any) -> str:
    return f"a tuple of {len(returned)}" if isinstance(returned, tuple) else "a tensor"


def _usable(subject: Subject, form: Form, flat: Sequence[Any]) -> bool:
    """Whether a form takes the arguments: nothing may be written into what is expanded."""
    return not form.inplace or not any(overlaps(flat[i]) for i in subject.op.overwritten)


def _as_declared(subject: Subject, sample: Sample) -> None:
    for form in subject.forms:
        flat = subject.flat(sample)
        if not _usable(subject, form, flat):
            continue
        with FakeTensorMode() as mode:
            fakes = subject.run(faked(mode, flat), form.name)
        real = subject.run(flat, form.name)
        for describe in (_kind, lambda returned: list(map(_facts, results(returned)))):
            got, want = describe(real), describe(fakes)
            assert got == want, f"{form.name} gives {got}; without data it says {want}"


@check("fake")
def fake(subject: Subject, effort: Effort) -> int:
    """Shape, dtype, stride, device and gradient are the same without data."""
    return sampled(subject, lambda sample: _as_declared(subject, sample), effort.samples)


def _structure(flat: Iterable[Any]) -> tuple[Any, ...]:
    """What two calls have in common that differ in sizes above 1 alone."""
    return tuple(
        (value.dtype, tuple(min(size, 2) for size in value.shape))
        if isinstance(value, Tensor)
        else (type(value), str(value))
        for value in flat
    )


def _plain(flat: Iterable[Any]) -> bool:
    return all(v.is_contiguous() for v in flat if isinstance(v, Tensor))


def _ranks(sample: Sample) -> tuple[int | None, ...]:
    return tuple(v.ndim if isinstance(v, Tensor) else None for v in sample.args)


def _chosen(groups: list[list[Sample]], most: int) -> list[list[Sample]]:
    """The largest groups, and one of each other combination of ranks."""
    groups = sorted(groups, key=len, reverse=True)
    seen = {_ranks(group[0]) for group in groups[:most]}
    rest = {_ranks(group[0]): group for group in reversed(groups[most:])}
    return groups[:most] + [group for ranks, group in rest.items() if ranks not in seen]


@check("symbolic")
def symbolic(subject: Subject, effort: Effort) -> int:
    """On symbolic sizes the number of rows stays free, and shapes hold at other sizes too."""
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in accepted(subject):
        flat = subject.op.flatten(sample.args, sample.kwargs)
        if _plain(flat):
            groups.setdefault(_structure(flat), []).append(sample)
    alike = [group for group in groups.values() if _varied(group[0])]
    if not alike:
        raise NotTried("no sample has a size above 1 in contiguous tensors")
    chosen = _chosen(alike, max(4, len(alike) // effort.every))
    each(chosen, lambda group: general(subject, group), lambda group: group[0].name)
    return sum(map(len, chosen))


def _varied(sample: Sample) -> bool:
    return any(isinstance(v, Tensor) and max((0, *v.shape)) > 1 for v in sample.args)


_UTILITIES = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def _utilities(arguments: Sequence[Any]) -> tuple[str, ...]:
    """The check of the schema compares clones of all arguments, which torch cannot for 8 bits.

    What it looks for, a mutation that is not declared, ``purity`` looks for too.
    """
    return _UTILITIES[1:] if any(map(_eight_bits, arguments)) else _UTILITIES


def _eight_bits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize == 1


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1


def _finite(value: Any) -> Any:
    """Opcheck compares without regard for NaN; what it looks at does not depend on values."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return value
    if _eight_bits(value):  # They have no arithmetic of their own.
        return value if overlaps(value) else value.copy_(value.float().nan_to_num(1, 1, 1))
    broken = ~value.isfinite()
    return value.nan_to_num(1, 1, 1) if overlaps(value) else value.masked_fill_(broken, 1)


def _default(stated: Any) -> Any:
    """A default as Python has it: schemas keep dtypes as numbers."""
    if str(stated.real_type) not in ("ScalarType", "Optional[ScalarType]"):
        return stated.default_value
    return torch.ops.aten.empty.memory_format([0], dtype=stated.default_value).dtype


def _states(form: Form) -> None:
    """Require the schema to say of arguments what the declaration says."""
    op, arguments = form.op, form.overload._schema.arguments
    written = sorted(a.name for a in arguments if a.alias_info and a.alias_info.is_write)
    declared = sorted(op.inplace or op.mutates) if form.inplace else []
    assert written == declared, f"the schema states that it writes {written}, not {declared}"
    stated = {argument.name: argument for argument in arguments}
    for parameter in op.parameters:
        found = stated[f"{parameter.name}_value" if parameter.union else parameter.name]
        absent = str(found.real_type).startswith("Optional")
        optional = parameter.union or type(None) in parameter.types
        said = f"in the schema {parameter.name} may be absent: {absent}, not {optional}"
        assert absent == optional, said
        if found.has_default_value():
            said = f"{parameter.name} is {_default(found)} by default, not {parameter.default}"
            assert _default(found) == parameter.default, f"in the schema {said}"


def _computes(subject: Subject, form: Form, sample: Sample) -> None:
    """Require the torch operator to compute what the function of ``hal.ops`` does."""
    want = results(subject.run(subject.flat(sample), form.name))
    with subject.forced():
        got = results(form.through(subject.flat(sample)))
    for i, (result, expected) in enumerate(zip(got, want, strict=True)):
        found = f"the operator computes another result {i} than hal.ops.{form.name}"
        assert _same(subject, result, expected), found


def _same(subject: Subject, got: Tensor, want: Tensor) -> bool:
    if subject.kernel.deterministic or got.shape != want.shape:
        return same_bits(got, want)
    # Twice the same kernel: sums in another order, or else other arguments.
    return torch.allclose(got.float(), want.float(), rtol=1e-2, atol=1e-2, equal_nan=True)


def _recorded(subject: Subject, form: Form, arguments: Sequence[Any]) -> None:
    """Have torch look at the gradients' registration, which it does if one is asked for.

    It is the same for all devices, of which torch knows but some here.
    """
    here = [v.detach().to(HOST) if isinstance(v, Tensor) else v for v in arguments]
    leaves = [v.requires_grad_() if _differentiable(v) else v for v in here]
    if subject.op.grad and not form.inplace and any(map(_differentiable, arguments)):
        opcheck(form.overload, tuple(leaves), test_utils="test_autograd_registration")


def _registered(subject: Subject, sample: Sample) -> None:
    for form in subject.forms:
        flat = subject.flat(sample)
        if not _usable(subject, form, flat):
            continue
        _states(form)
        _computes(subject, form, sample)
        arguments = split(subject.op, flat)
        with warnings.catch_warnings(), subject.forced():
            # Tracing warns of much that is not this operator's doing.
            warnings.simplefilter("ignore")
            utilities = _utilities(arguments)
            opcheck(form.overload, tuple(map(_finite, arguments)), test_utils=utilities)
            _recorded(subject, form, arguments)


@check("opcheck")
def registration(subject: Subject, effort: Effort) -> int:
    """The torch operator of each form says and does what the op does, and torch finds no fault."""
    return sampled(subject, lambda sample: _registered(subject, sample), effort.every)
