"""The ways to call an op: ``out=``, in place, with what it refuses."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from hal import ops
from hal.errors import InvalidInput, NoKernel
from hal.query import trace
from hal.testing.checks.check import Effort, check, each, sampled, some
from hal.testing.checks.results import compare, same_bits
from hal.testing.outcome import NotApplicable
from hal.testing.parts import many, parts
from hal.testing.record import Part, Refusal, Sample
from hal.testing.subject import Subject, memory, placed, samples
from hal.validate import as_tuple, overlaps, without_data

__all__ = ["faked"]


def _like(result: Tensor | None) -> Tensor | None:
    if result is None:
        return None
    target = torch.empty_strided(
        result.shape, result.stride(), dtype=result.dtype, device=result.device
    )
    memory(target).fill_(0x35)
    return target


def _into_out(subject: Subject, sample: Sample) -> None:
    want = subject.run(subject.flat(sample))
    targets = tuple(map(_like, as_tuple(want)))
    out = targets[0] if isinstance(want, Tensor) else targets
    assert subject.run(subject.flat(sample), out=out) is out, "out= is not what is returned"
    if not subject.kernel.deterministic:  # The bits of another call may be others.
        compare(subject, sample, out)
        return
    for i, (got, expected) in enumerate(zip(targets, as_tuple(want), strict=True)):
        assert same_bits(got, expected), f"out= of result {i} holds something else"


@check("out")
def out(subject: Subject, effort: Effort) -> int:
    """``out=`` is filled with what the op returns without it."""
    if subject.op.mutates:
        raise NotApplicable("the op has an in-place form only")
    return sampled(subject, lambda sample: _into_out(subject, sample), effort.every)


def faked(mode: FakeTensorMode, values: Iterable[Any]) -> list[Any]:
    """The values with their tensors without data; what shares memory, or is one twice, stays so."""
    return [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in values]


def _in_place(subject: Subject, sample: Sample) -> None:
    flat = subject.flat(sample)
    targets = [flat[i] for i in subject.op.overwritten]
    if any(map(overlaps, targets)):
        _refused(subject, flat)
        return
    want = as_tuple(subject.run(subject.flat(sample)))
    kept = subject.flat(sample)
    returned = as_tuple(subject.run(flat, f"{subject.op.name}_"))
    for i, (got, target, expected) in enumerate(zip(returned, targets, want, strict=True)):
        assert got is target, f"result {i} is not the argument"
        if not subject.kernel.deterministic:
            continue
        rounded = None if expected is None else expected.to(got.dtype)
        assert same_bits(got, rounded), f"result {i} is not what the functional form returns"
    if not subject.kernel.deterministic:
        compare(subject, sample, returned)
    _nothing_else(subject, flat, kept)


def _nothing_else(subject: Subject, flat: list[Any], kept: list[Any]) -> None:
    """Require memory to be as in ``kept``, but for the elements of the arguments overwritten."""
    for i in subject.op.overwritten:
        if kept[i] is not None:
            kept[i].copy_(flat[i])
    for parameter, got, want in zip(subject.op.parameters, flat, kept, strict=True):
        if isinstance(got, Tensor):
            same = torch.equal(memory(got), memory(want))
            assert same, f"wrote into {parameter.name}, or between the elements of it"


def _refused(subject: Subject, flat: list[Any]) -> None:
    said = _message(lambda: subject.run(flat, f"{subject.op.name}_"), InvalidInput)
    assert said is not None, "an expanded argument was written into"


@check("in-place")
def in_place(subject: Subject, effort: Effort) -> int:
    """The form with an underscore leaves in its arguments what the other returns."""
    if not subject.op.inplace:
        raise NotApplicable("the op has one form only")
    return sampled(subject, lambda sample: _in_place(subject, sample), effort.every)


def _raises(subject: Subject, refusal: Refusal) -> None:
    name = subject.op.name
    args, kwargs = _moved(subject, refusal)
    with subject.forced(), trace() as records:
        said = _message(lambda: getattr(ops, name)(*args, **kwargs), InvalidInput)
    assert said is not None, "it was not refused"
    assert said.startswith(name), f"the error does not name the op: {said}"
    assert re.search(refusal.message, said), f"{said} does not match {refusal.message!r}"
    assert not records, "something ran before it was refused"
    _raises_unseen(subject, args, kwargs)


def _raises_unseen(subject: Subject, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Require a refusal without data too."""
    with subject.forced(), FakeTensorMode() as mode:
        fakes, named = faked(mode, args), faked(mode, kwargs.values())
        function = functools.partial(getattr(ops, subject.op.name), *fakes)
        call = functools.partial(function, **dict(zip(kwargs, named, strict=True)))
        said = _message(call, InvalidInput)
    assert said is not None, "it was not refused without data"


def _message(call: Callable[[], object], kind: type[Exception]) -> str | None:
    """What the error of a call says; None if there is none."""
    try:
        call()
    except kind as error:
        return str(error)
    return None


def _moved(subject: Subject, refusal: Refusal) -> tuple[list[Any], dict[str, Any]]:
    values = placed([*refusal.args, *refusal.kwargs.values()], str(subject.device))
    count = len(refusal.args)
    return values[:count], dict(zip(refusal.kwargs, values[count:], strict=True))


@check("refusals")
def refusals(subject: Subject, effort: Effort) -> int:
    """Bad arguments raise ``InvalidInput``, which says what was found, before anything runs."""
    del effort
    return each(
        subject.record.refusals(), lambda r: _raises(subject, r), lambda r: f"{r.message!r}"
    )


def _honest(subject: Subject, sample: Sample) -> None:
    answer = subject.refusal(sample)
    assert answer is None or (isinstance(answer, str) and answer), f"answered with {answer!r}"
    supports = subject.kernel.supports
    assert supports is not None
    unseen = subject.op.call(supports, list(map(without_data, subject.flat(sample))))
    assert unseen == answer, f"answers {answer!r}, but {unseen!r} without data"
    if _contiguous(subject.flat(sample)):  # One row is contiguous where several are not.
        for part in parts(subject.op, subject.record, sample):
            arguments = placed(list(part.arguments.values()), str(subject.device))
            named = dict(zip(part.arguments, arguments, strict=True))
            _same_answer(subject, Part(named, part.where), answer, "fewer")
        batch = _large(subject, sample)
        if batch is not None:
            _same_answer(subject, batch, answer, "more")
    if answer is not None:
        _passed_over(subject, sample, answer)


def _same_answer(subject: Subject, part: Part, answer: str | None, where: str) -> None:
    supports, given = subject.kernel.supports, list(part.arguments.values())
    assert supports is not None
    other = subject.op.call(supports, given)
    assert (other is None) == (answer is None), f"answers {answer!r}, {other!r} for {where} rows"


def _contiguous(values: Iterable[Any]) -> bool:
    return all(value.is_contiguous() for value in values if isinstance(value, Tensor))


def _large(subject: Subject, sample: Sample) -> Part | None:
    """The sample's call for a large batch, of which nothing but the shape exists."""
    args = tuple(map(without_data, sample.args))
    kwargs = {name: without_data(value) for name, value in sample.kwargs.items()}
    return many(subject.op, subject.record, Sample(sample.name, args, kwargs), 4097)


def _passed_over(subject: Subject, sample: Sample, answer: str) -> None:
    said = _message(lambda: subject.run(subject.flat(sample)), NoKernel)
    assert said is not None, f"it refuses ({answer}) and yet it ran"
    assert answer in said, "its reason is not in the error"


@check("condition")
def condition(subject: Subject, effort: Effort) -> int:
    """The kernel's condition gives a reason, looks at no data, and not at the number of rows."""
    if subject.kernel.supports is None:
        raise NotApplicable("the kernel serves every call")
    given = some(samples(subject.record), effort.samples)
    return each(given, lambda sample: _honest(subject, sample), lambda sample: sample.name)
