"""A call on symbolic sizes, held against calls on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from hal.testing.checks.forms import faked
from hal.testing.record import Sample
from hal.testing.subject import Subject, results

__all__ = ["general"]


def _shape(value: Any) -> Sequence[Any]:
    return value.shape if isinstance(value, Tensor) else ()


def _symbol(size: Any) -> sympy.Symbol | None:
    expr = size.node.expr if isinstance(size, torch.SymInt) else None
    return expr if isinstance(expr, sympy.Symbol) else None


class _Traced:
    """A call on symbolic sizes, and what it says of calls with other sizes."""

    def __init__(self, subject: Subject, flat: Sequence[Any]) -> None:
        self.env = ShapeEnv(duck_shape=False)
        with FakeTensorMode(shape_env=self.env) as mode:
            self.flat = faked(mode, flat)
            # Read before the call, which may let one symbol stand for another.
            self.symbols = [list(map(_symbol, _shape(value))) for value in self.flat]
            self.results = results(subject.run(self.flat))

    def sizes(self, flat: Sequence[Any]) -> dict[sympy.Symbol, int]:
        """The symbols with their values in another call."""
        return {
            symbol: size
            for symbols, value in zip(self.symbols, flat, strict=True)
            for symbol, size in zip(symbols, _shape(value), strict=True)
            if symbol is not None
        }

    def fixed(self, value: Tensor) -> bool:
        """Whether the leading size of an argument has become a number."""
        size = value.shape[0]
        return isinstance(size, torch.SymInt) and not self.env.simplify(size.node.expr).free_symbols

    def broken(self, sizes: dict[sympy.Symbol, int]) -> list[sympy.Basic]:
        """What was assumed while tracing and does not hold for other sizes."""
        guards = [guard.expr for guard in self.env.guards]
        return [each for each in guards if each.xreplace(sizes) != sympy.true]

    def facts(self, sizes: dict[sympy.Symbol, int]) -> list[tuple[Any, ...]]:
        """Shapes and strides of the results for other sizes."""

        def known(values: Sequence[Any]) -> tuple[int, ...]:
            symbolic = torch.SymInt
            return tuple(
                int(v.node.expr.xreplace(sizes)) if isinstance(v, symbolic) else v for v in values
            )

        return [(known(result.shape), known(result.stride())) for result in self.results]


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(tensor.shape), strides if tensor.numel() else None


def _holds(subject: Subject, traced: _Traced, name: str, flat: Sequence[Any]) -> None:
    """Require what symbolic sizes say of a call with other sizes to be what comes of it."""
    sizes = traced.sizes(flat)
    if traced.broken(sizes):
        return
    found = results(subject.run(flat))
    real = [_laid_out(result, result.stride()) for result in found]
    facts = zip(found, traced.facts(sizes), strict=True)
    said = [(shape, strides if result.numel() else None) for result, (shape, strides) in facts]
    assert real == said, f"{name}: {real}; symbolic sizes say {said}"


def _row_names(subject: Subject, flat: Sequence[Any]) -> dict[str, int]:
    """The positions of the arguments that have a leading dimension of rows, by name."""
    names = {*subject.record.rows, *(subject.record.far or ())}
    return {
        parameter.name: i
        for i, (parameter, value) in enumerate(zip(subject.op.parameters, flat, strict=True))
        if parameter.name in names and isinstance(value, Tensor) and value.ndim > 1
    }


def _together(subject: Subject, flat: Sequence[Any]) -> list[int]:
    """The positions of the arguments of which each result has a row for each of their rows."""
    places = [p.name for p in subject.op.parameters]
    given = [places.index(name) for name in subject.record.rows]
    if not given or not isinstance(flat[given[0]], Tensor) or flat[given[0]].ndim < 2:
        return []
    count = flat[given[0]].shape[0]
    return [i for i in given if isinstance(flat[i], Tensor) and flat[i].shape[:1] == (count,)]


def _fixes(guard: sympy.Basic) -> bool:
    """Whether an assumption is that a size, or what is made of it, is a certain number."""
    return isinstance(guard, sympy.Eq) and any(side.is_number for side in guard.args)


def _free(traced: _Traced, name: str, flat: Sequence[Any]) -> None:
    """Require a size in which samples differ not to have become a number."""
    baked = [guard for guard in traced.broken(traced.sizes(flat)) if _fixes(guard)]
    assert not baked, f"{name}: a size is baked in: {baked[0]}"


# Beside them lies what a kernel may treat apart: blocks of rows, and whole numbers of them.
_ROWS = sorted({n + d for n in (8, 16, 32, 64, 100, 128, 256, 1024, 4096) for d in (-1, 0, 1)})


def _any_rows(subject: Subject, traced: _Traced, flat: Sequence[Any]) -> None:
    """Require nothing to be assumed of the number of rows."""
    found = [traced.symbols[i][0] for i in _together(subject, flat)]
    symbols = [symbol for symbol in found if symbol is not None]
    for count in (*range(2, 7), *_ROWS) if symbols else ():
        broken = traced.broken({**traced.sizes(flat), **dict.fromkeys(symbols, count)})
        assert not broken, f"{broken[0]} is assumed, which {count} rows do not fulfil"


def _twice(flat: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [torch.cat([v, v]) if i in places else v for i, v in enumerate(flat)]


def general(subject: Subject, group: list[Sample]) -> None:
    """Require of samples which differ in sizes that one trace says what comes of each of them."""
    first = subject.flat(group[0])
    traced = _Traced(subject, first)
    for name, i in _row_names(subject, first).items():
        assert not traced.fixed(traced.flat[i]), f"the number of rows of {name} is baked in"
    _any_rows(subject, traced, first)
    for sample in group:
        flat = subject.flat(sample)
        _free(traced, sample.name, flat)
        _holds(subject, traced, sample.name, flat)
    places = _together(subject, first)
    if places and first[places[0]].shape[0] > 1:
        _holds(subject, traced, "twice its rows", _twice(first, places))
