"""A fault that is planted in a correct kernel, and how the kit is asked about it."""

from __future__ import annotations

import contextvars
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import Tensor

import hal
from hal.op import OPS
from hal.testing.checks import CHECKS, Effort
from hal.testing.checks.check import first_alone
from hal.testing.outcome import Cell
from hal.testing.questions import Question, questions
from hal.testing.record import Record, Sample
from hal.testing.run import answer
from hal.testing.subject import samples
from hal.validate import as_tuple
from offering import NATIVE, backend, installed

__all__ = [
    "CODES",
    "FAULTS",
    "INFS",
    "INTS",
    "NANS",
    "OFF",
    "Fault",
    "ask",
    "condition",
    "edit",
    "inplace",
    "kernel",
    "offered",
    "reference",
    "sound",
]

OFF = "relative norm|off by up to"
CODES = r"tensor\(.*\) for tensor\("
NANS = "NaN in other places"
INFS = "infinities in other places"
INTS = "integers differ"

CPU = hal.device("cpu")


@attrs.frozen(eq=False)
class Fault:
    """A kernel with one fault.

    Attributes:
        op: The op that it computes.
        name: What is wrong with it.
        check: The check that has to refute it.
        complaint: A pattern of what that check says, which no other fault of it would bring.
        kernel: Makes the kernel.
        only: A pattern of the names of the samples that are tried, where all take too long.
    """

    op: str
    name: str
    check: str
    complaint: str
    kernel: Callable[[], hal.Kernel]
    only: str = ""

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"


FAULTS: list[Fault] = []
"""Every fault, in the order of declaration."""


def reference(op: str) -> Callable[..., Any]:
    """The correct kernel."""
    return NATIVE.hooks[op](CPU).fn


def offered(fn: Callable[..., Any], **traits: Any) -> hal.Kernel:
    return hal.Kernel(fn=fn, name="k", **{"deterministic": True} | traits)


def kernel(
    op: str, check: str, complaint: str, *, only: str = "", **traits: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the decorated function, whose name says what is wrong with it."""

    def plant(fn: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.partial(offered, fn, **traits)
        FAULTS.append(Fault(op, fn.__name__.replace("_", " "), check, complaint, made, only))
        return fn

    return plant


def condition(
    op: str, check: str, complaint: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the decorated condition beside a correct kernel."""

    def plant(supports: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.partial(offered, reference(op), supports=supports)
        name = supports.__name__.replace("_", " ")
        FAULTS.append(Fault(op, name, check, complaint, made))
        return supports

    return plant


def inplace(op: str, complaint: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the decorated in-place form beside a correct kernel."""

    def plant(fn: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.partial(offered, reference(op), inplace=fn)
        name = fn.__name__.replace("_", " ")
        FAULTS.append(Fault(op, name, "in-place", complaint, made))
        return fn

    return plant


def edit(
    op: str,
    name: str,
    complaint: str,
    old: str,
    new: str,
    *,
    check: str = "numerics",
    only: str = "",
    **traits: Any,
) -> None:
    """Plant the reference with ``old``, which is once in the source of its family, as ``new``."""
    made = functools.partial(_edited, op, old, new, **traits)
    FAULTS.append(Fault(op, name, check, complaint, made, only))


def _edited(op: str, old: str, new: str, **traits: Any) -> hal.Kernel:
    family = OPS[op].contract.__module__.rpartition(".")[2]
    module = ModuleType(f"hal_native.{family}")
    source = inspect.getsource(importlib.import_module(module.__name__))
    count = source.count(old)
    assert count == 1, f"{module.__name__} has {old!r} {count} times, not once"
    exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
    return offered(getattr(module, op), **traits)


def _narrow(*args: Any, **kwargs: Any) -> str | None:
    """An honest condition, by dtype alone."""
    given = (*args, *kwargs.values())
    double = any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in given)
    return "float64 is not served" if double else None


def _copying(op: str) -> Callable[..., Any]:
    """The in-place form as it follows from the functional one."""

    def fn(*args: Any, **kwargs: Any) -> Any:
        flat = OPS[op].flatten(args, kwargs)
        results = as_tuple(reference(op)(*args, **kwargs))
        targets = tuple(flat[i] for i in OPS[op].overwritten)
        for target, result in zip(targets, results, strict=True):
            if target is not None:
                target.copy_(result)
        return targets if OPS[op].results else targets[0]

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return fn


def sound(op: str, check: str) -> hal.Kernel:
    """The correct kernel, with what ``check`` looks at."""
    traits: dict[str, Any] = {"batch_invariant": check == "invariance"}
    if check == "condition":
        traits["supports"] = _narrow
    if check == "in-place":
        traits["inplace"] = _copying(op)
    return offered(reference(op), **traits)


def _some(record: Record, only: str) -> Iterator[Sample]:
    # Large samples take long; a fault that they alone show names them.
    every = (s for s in samples(record) if only or not s.name.startswith("large: "))
    return (sample for sample in every if re.search(only, sample.name))


@functools.cache
def _narrowed(record: Record, only: str) -> Record:
    return attrs.evolve(record, samples=functools.partial(_some, record, only))


def _question(op: str, check: str, only: str, name: str) -> Question:
    (question,) = questions(name, CPU, [op], [check])
    (subject,) = question.run.args  # type: ignore[attr-defined]
    subject = attrs.evolve(subject, record=_narrowed(subject.record, only))
    return attrs.evolve(question, run=functools.partial(CHECKS[check].run, subject))


def ask(op: str, check: str, kernel: hal.Kernel, only: str = "") -> Cell:
    """What the check says of a kernel."""
    if check == "gradients":  # These are the reference's, whatever kernel serves the call.
        hooks = NATIVE.hooks | {op: lambda _: kernel}
        plugins, name = [attrs.evolve(NATIVE, hooks=hooks)], NATIVE.name
    else:
        planted = backend("planted", devices=("cpu",), **{op: kernel})
        plugins, name = [planted, NATIVE], planted.name
    with installed(*plugins):
        return contextvars.copy_context().run(_first_found, _question(op, check, only, name))


def _first_found(question: Question) -> Cell:
    first_alone.set(True)
    return answer(question, Effort())
