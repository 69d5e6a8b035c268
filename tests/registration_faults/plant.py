"""Faults in what is declared, registered and returned, planted in scratch copies of an op."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import attrs

import hal
from hal import functions, ops
from hal.form import forms
from hal.functions import FORMS
from hal.library import register
from hal.op import OPS, Op, _named
from hal.testing.record import Record
from hal.testing.records import RECORDS
from hal.testing.subject import Subject
from offering import NATIVE, backend, installed

__all__ = ["Fault", "Patch", "planted"]

# The declared ops are made before any other.
hal.ops.silu_and_mul  # noqa: B018

Around = Callable[..., Any]
"""A function that is called with the genuine one in front of the arguments."""


@attrs.frozen(eq=False)
class Patch:
    """A part of hal or torch that ``make`` replaces, given the genuine one, while a fault is in."""

    owner: Any
    attribute: str
    make: Callable[[Any], Any]


@attrs.frozen(eq=False)
class Fault:
    """Something wrong with a copy of an op.

    Attributes:
        name: What is wrong.
        op: The op that is copied.
        check: The check of the kit that has to refute it.
        complaint: What it has to say, as a regular expression.
        contract: What the declaration does instead.
        kernel: What the kernel does instead.
        inplace: The in-place form of the kernel; there is none without it.
        traits: What else of the declaration is different, by the attributes of ``Op``.
        patches: What is different in the machinery that registers and calls.
        named: Whether errors of the declaration open with the name of the op.
        missed: Why no check sees it yet; empty for a fault that is seen.
    """

    name: str
    op: str
    check: str
    complaint: str
    contract: Around | None = None
    kernel: Around | None = None
    inplace: Around | None = None
    traits: dict[str, Any] = attrs.field(factory=dict)
    patches: tuple[Patch, ...] = ()
    named: bool = True
    missed: str = ""

    @property
    def control(self) -> Fault:
        """The same op without the fault, planted in the same way."""
        inplace = self.inplace and _copying
        return Fault("control", self.op, self.check, "", _plain, _plain, inplace)

    @property
    def record(self) -> Record:
        """What the kit knows of the op, with fewer samples where there are very many."""
        return _thinned(self.op, _EVERY.get((self.op, self.check), 1))


# A call without data takes ten milliseconds, and a quarter of the samples shows what all do.
_EVERY = {
    ("per_token_group_quant", "fake"): 4,
    ("topk_softmax", "fake"): 4,
}


@functools.cache
def _thinned(op: str, every: int) -> Record:
    record = RECORDS[op]
    return attrs.evolve(record, samples=lambda: list(record.samples())[::every])


def _plain(genuine: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return genuine(*args, **kwargs)


def _copying(genuine: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An in-place form that is right for ops which write into their first arguments."""
    found = genuine(*args, **kwargs)
    for target, result in zip(args, found if isinstance(found, tuple) else (found,), strict=False):
        target.copy_(result)


def _around(genuine: Callable[..., Any], body: Around, op: Op, name: str) -> Callable[..., Any]:
    @functools.wraps(genuine)
    def function(*args: Any, **kwargs: Any) -> Any:
        return body(genuine, *args, **kwargs)

    function.__name__ = name
    function.__signature__ = op.signature  # type: ignore[attr-defined]
    return function


# What torch has registered stays, so no name comes twice.
_numbers = itertools.count()


def _declared(fault: Fault) -> Op:
    op, name = OPS[fault.op], f"planted_{next(_numbers)}"
    contract = _around(inspect.unwrap(op.contract), fault.contract or _plain, op, name)
    contract = _named(contract) if fault.named else contract
    return attrs.evolve(op, name=name, contract=contract, **fault.traits)


@contextlib.contextmanager
def _registered(op: Op) -> Iterator[None]:
    """Put an op where the declared ones are, as ``hal.functions`` does with those."""
    OPS[op.name] = op
    made = forms(op)
    try:
        for form in made:
            FORMS[form.name] = form
            form.below = functions._function(form, "recent_below", functions._BELOW)
            register(form)
            setattr(ops, form.name, functions._function(form, "recent", {}))
        yield
    finally:
        del OPS[op.name]
        for form in made:
            FORMS.pop(form.name, None)
            vars(ops).pop(form.name, None)


def _kernel(fault: Fault, op: Op) -> hal.Kernel:
    genuine = _genuine(fault)
    fn = _around(genuine, fault.kernel or _plain, op, "fn")
    inplace = fault.inplace and _around(genuine, fault.inplace, op, "inplace")
    return hal.Kernel(fn=fn, name="fast", inplace=inplace, deterministic=True)


def _genuine(fault: Fault) -> Callable[..., Any]:
    return NATIVE.hooks[fault.op](hal.device("cpu")).fn


@contextlib.contextmanager
def planted(fault: Fault) -> Iterator[Subject]:
    """Have the faulty op in hal, with torch, and served by a backend; the question's subject."""
    with contextlib.ExitStack() as stack:
        for patch in fault.patches:
            made = patch.make(getattr(patch.owner, patch.attribute))
            stack.enter_context(mock.patch.object(patch.owner, patch.attribute, made))
        op = _declared(fault)
        kernel, reference = _kernel(fault, op), hal.Kernel(fn=_genuine(fault), name="torch")
        acme = backend("acme", devices=("cpu",), **{op.name: kernel})
        native = backend(NATIVE.name, devices=None, ours=True, **{op.name: reference})
        stack.enter_context(installed(acme, native))
        stack.enter_context(_registered(op))
        yield Subject("acme", op, kernel, hal.device("cpu"), fault.record)
