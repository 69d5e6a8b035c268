"""Shapes without data: what tracers and compilers are told is what a kernel does."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import sympy  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.library import opcheck

from hal.form import Form
from hal.schema import split
from hal.testing.checks.check import Effort, accepted, check, each, sampled
from hal.testing.checks.forms import expanded
from hal.testing.outcome import NotTried
from hal.testing.record import Sample
from hal.testing.subject import Subject, results

__all__: list[str] = []


def _faked(mode: FakeTensorMode, flat: Sequence[Any]) -> list[Any]:
    # What shares memory, or is one tensor twice, stays so: the mode remembers what it has seen.
    return [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in flat]


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.numel() else None  # Those of an empty one say nothing.
    return tuple(tensor.shape), tensor.dtype, tensor.device, strides


def _usable(subject: Subject, form: Form, flat: Sequence[Any]) -> bool:
    """Whether a form takes the arguments: nothing may be written into what is expanded."""
    return not form.inplace or not any(expanded(flat[i]) for i in subject.op.overwritten)


def _as_declared(subject: Subject, sample: Sample) -> None:
    for form in subject.forms:
        flat = subject.flat(sample)
        if not _usable(subject, form, flat):
            continue
        with FakeTensorMode() as mode:
            fakes = results(subject.run(_faked(mode, flat), form.name))
        real = results(subject.run(flat, form.name))
        got, want = list(map(_facts, real)), list(map(_facts, fakes))
        assert got == want, f"{form.name} gives {got}; without data it says {want}"


@check("fake")
def fake(subject: Subject, effort: Effort) -> int:
    """Shape, dtype, stride and device are the same without data."""
    del effort
    return sampled(subject, lambda sample: _as_declared(subject, sample))


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


class _Traced:
    """A call on symbolic sizes, and what it says of calls with other sizes."""

    def __init__(self, subject: Subject, flat: Sequence[Any]) -> None:
        self.env = ShapeEnv(duck_shape=False)
        with FakeTensorMode(shape_env=self.env) as mode:
            self.flat = _faked(mode, flat)
            self.results = results(subject.run(self.flat))

    def sizes(self, flat: Sequence[Any]) -> dict[sympy.Symbol, int]:
        """The symbols with their values in another call."""
        pairs = [
            (size.node.expr, real)
            for value, other in zip(self.flat, flat, strict=True)
            if isinstance(value, Tensor)
            for size, real in zip(value.shape, other.shape, strict=True)
            if isinstance(size, torch.SymInt)
        ]
        return {expr: real for expr, real in pairs if isinstance(expr, sympy.Symbol)}

    def fixed(self, value: Tensor) -> bool:
        """Whether the leading size of an argument has become a number."""
        size = value.shape[0]
        return isinstance(size, torch.SymInt) and not self.env.simplify(size.node.expr).free_symbols

    def serves(self, sizes: dict[sympy.Symbol, int]) -> bool:
        """Whether what was assumed while tracing holds for other sizes."""
        return all(guard.expr.xreplace(sizes) == sympy.true for guard in self.env.guards)

    def shapes(self, sizes: dict[sympy.Symbol, int]) -> list[tuple[int, ...]]:
        """The shapes of the results for other sizes."""
        return [
            tuple(
                int(s.node.expr.xreplace(sizes)) if isinstance(s, torch.SymInt) else s
                for s in result.shape
            )
            for result in self.results
        ]


def _general(subject: Subject, group: list[Sample]) -> None:
    first = subject.flat(group[0])
    traced = _Traced(subject, first)
    names = {*subject.record.rows, *(subject.record.far or ())}
    for parameter, value in zip(subject.op.parameters, traced.flat, strict=True):
        if parameter.name in names and isinstance(value, Tensor) and value.ndim > 1:
            assert not traced.fixed(value), f"the number of rows of {parameter.name} is baked in"
    for sample in group:
        flat = subject.flat(sample)
        sizes = traced.sizes(flat)
        if traced.serves(sizes):
            shapes = [tuple(result.shape) for result in results(subject.run(flat))]
            said = traced.shapes(sizes)
            assert shapes == said, f"{sample.name}: {shapes}; symbolic sizes say {said}"


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
    alike.sort(key=len, reverse=True)
    chosen = alike[: max(4, len(alike) // effort.every)]
    each(chosen, lambda group: _general(subject, group), lambda group: group[0].name)
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


def _finite(value: Any) -> Any:
    """Opcheck compares without regard for NaN; what it looks at does not depend on values."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return value
    if _eight_bits(value):  # They have no arithmetic of their own.
        return value if expanded(value) else value.copy_(value.float().nan_to_num(1, 1, 1))
    broken = ~value.isfinite()
    return value.nan_to_num(1, 1, 1) if expanded(value) else value.masked_fill_(broken, 1)


def _registered(subject: Subject, sample: Sample) -> None:
    for form in subject.forms:
        flat = subject.flat(sample)
        if _usable(subject, form, flat):
            arguments = split(subject.op, flat)
            with warnings.catch_warnings(), subject.forced():
                # Tracing warns of much that is not this operator's doing.
                warnings.simplefilter("ignore")
                utilities = _utilities(arguments)
                opcheck(form.overload, tuple(map(_finite, arguments)), test_utils=utilities)


@check("opcheck")
def registration(subject: Subject, effort: Effort) -> int:
    """Torch's own checks of a registered operator, in each form."""
    return sampled(subject, lambda sample: _registered(subject, sample), effort.every)
