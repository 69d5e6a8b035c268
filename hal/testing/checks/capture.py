"""Capture into a device graph: replayed with other data, it does what the op does."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.form import Form
from hal.testing.captures import Captured, Data, assert_results, capture, graph_class
from hal.testing.checks.check import Effort, accepted, check, claimed, each
from hal.testing.checks.results import same_bits
from hal.testing.outcome import NotTried
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, expected, results

__all__ = ["graph_safe"]

# A graph that is captured from each op in so many calls shows what a few can.
_SAMPLES = 4

# Elements of the tensors of such a call; with more the oracle takes seconds.
_MOST = 2**16


def _renewed(subject: Subject, flat: Sequence[Any]) -> list[Any]:
    """Other data of the same kind, which the op takes as well.

    What is halved stays in every range, also of probabilities; rows may come in reverse; and any
    number will do where the record says so.
    """
    names = list(subject.op.signature.parameters)
    turned, free = _turned(subject, flat), {names.index(name) for name in subject.record.free}

    def other(i: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = _in_reverse(value) if i in turned else value
        value = value + 1 if i in free else value
        return value / 2 if _halves(value) else value

    return [other(i, value) for i, value in enumerate(flat)]


def _in_reverse(value: Tensor) -> Tensor:
    """The rows from the last to the first; torch turns no floats of 8 bits, but bytes."""
    plain = value.view(torch.uint8) if value.itemsize == 1 else value
    return plain.flip(0).view(value.dtype)


def _halves(value: Tensor) -> bool:
    return value.is_floating_point() and value.itemsize > 1


def _turned(subject: Subject, flat: Sequence[Any]) -> set[int]:
    """The positions of the tensors that may come in reverse together."""
    record, names = subject.record, list(subject.op.signature.parameters)
    tensors = [i for i, value in enumerate(flat) if isinstance(value, Tensor) and value.ndim]
    if not any(_halves(flat[i]) for i in tensors):
        return set(tensors)
    if not record.rows or record.parts is not None:
        return set()
    first = flat[names.index(record.rows[0])]
    rows = {names.index(name) for name in record.rows}
    if first.ndim < 2:
        return set()
    return {i for i in tensors if i in rows and flat[i].shape[:1] == first.shape[:1]}


@contextlib.contextmanager
def _then(what: str) -> Generator[None, None, None]:
    """Let what does not hold, or is not permitted, say when."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        kind = AssertionError if isinstance(error, AssertionError) else RuntimeError
        raise kind(f"{what}: {error}") from error


def _first(subject: Subject, sample: Sample) -> Data:
    flat = subject.op.flatten(sample.args, sample.kwargs)
    return Data(flat, expected(subject.record, sample))


def _next(subject: Subject, data: Data) -> Data:
    flat = _renewed(subject, data.values)
    return Data(flat, results(subject.op.call(subject.record.oracle, flat)))


def _called(subject: Subject, form: Form, sample: Sample) -> None:
    returned = subject.run(subject.flat(sample), form.name)
    assert_results(subject, _first(subject, sample), returned)


def _replayed(captured: Captured, form: Form, data: Data, times: int = 1) -> None:
    captured.replay(data, times)
    written = form.op.overwritten if form.inplace else ()
    for i, name in enumerate(form.op.signature.parameters):
        given = data.values[i]
        if isinstance(given, Tensor) and i not in written:
            assert same_bits(captured.static[i].to(HOST), given), f"it wrote into {name}"


def _growth(subject: Subject, form: Form, static: list[Any], collected: bool = False) -> int:
    """Bytes that a capture and a call leave in use; what garbage holds counts if not collected."""
    module, _ = graph_class(subject.device.type)
    collect = gc.collect if collected else int
    collect()
    before = module.memory_allocated()
    capture(subject, static, form.name)
    subject.run(static, form.name)
    collect()
    return module.memory_allocated() - before


def _replays(subject: Subject, form: Form, sample: Sample, other: Sample) -> None:
    seen, unseen = subject.flat(sample), subject.flat(sample)
    first = _first(subject, sample)
    second = _next(subject, first)
    for _ in range(3):  # What is compiled or allocated once is afterwards.
        subject.run(seen, form.name)
    with _then("captured with tensors that no call had seen"):
        cold = capture(subject, unseen, form.name)
    with _then("called when a capture had not been replayed"):
        _called(subject, form, sample)
    with _then("captured with the tensors of calls before"):
        warm = capture(subject, seen, form.name)
    with _then("replayed with other data"):
        _replayed(warm, form, second)
    with _then("called with other arguments"):
        _called(subject, form, sample)
        _called(subject, form, other)
    with _then("replayed twice after calls with other arguments"):
        # In place the second would be given what the first returned.
        _replayed(cold, form, _next(subject, second), times=1 if form.inplace else 2)
    with _then("left alone when other calls were made"):
        assert_results(subject, second, warm.returned)
    with _then("replayed with the first data"):
        _replayed(warm, form, first)
    with _then("captured and called once more"):
        grown = _growth(subject, form, seen) and _growth(subject, form, seen, collected=True)
        assert grown <= 0, f"{grown} bytes more are in use"


def _tensors(sample: Sample) -> list[Tensor]:
    return [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, Tensor)]


def _capturable(sample: Sample) -> bool:
    """An expanded tensor cannot be written into, nor is there anything to see in an empty one."""
    return all(v.numel() > 1 and all(v.stride()) for v in _tensors(sample) if v.ndim)


def _apart(sample: Sample) -> bool:
    """Whether what is written in place changes no other argument."""
    storages = {v.untyped_storage().data_ptr() for v in _tensors(sample)}
    return len(storages) == len(_tensors(sample))


def _elements(sample: Sample) -> int:
    return sum(value.numel() for value in _tensors(sample))


def _bytes(sample: Sample) -> int:
    return sum(value.nbytes for value in _tensors(sample))


def _few(fit: Sequence[Sample]) -> list[Sample]:
    """Some samples, with each argument as a tensor if there is one where it is."""
    chosen, seen = list[Sample](), set[int | str]()
    for i, sample in enumerate(fit):
        given = [*enumerate(sample.args), *sample.kwargs.items()]
        tensors = {name for name, value in given if isinstance(value, Tensor)}
        if i % max(1, len(fit) // _SAMPLES) == 0 or not tensors <= seen:
            chosen.append(sample)
            seen |= tensors
    return chosen


def _cases(
    subject: Subject, form: Form, fit: Sequence[Sample]
) -> Iterator[tuple[Form, Sample, Sample]]:
    """Each sample with a larger one, for which a kernel may replace what it keeps."""
    second = form.inplace and not form.op.mutates
    if second and subject.kernel.inplace is None:  # Hal copies what the other form returns.
        return
    given = sorted(filter(_apart, fit) if second else fit, key=_bytes)
    yield from zip([form] * len(given), given, [*given[1:], *given[:1]], strict=True)


def _named(case: tuple[Form, Sample, Sample]) -> str:
    form, sample, _ = case
    return f"{sample.name}, in place" if form.inplace else sample.name


@check("capture", isolated=True)
def graph_safe(subject: Subject, effort: Effort) -> int:
    """Captured, it agrees with the oracle when replayed with other data, where claimed."""
    claimed(subject, "graph_safe")
    module, _ = graph_class(subject.device.type)
    # A graph that is garbage must not be freed in a capture; its memory is not needed either.
    gc.collect()
    module.empty_cache()
    fit = [sample for sample in accepted(subject) if _capturable(sample)]
    if not fit:
        raise NotTried("no sample can be captured")
    if effort.every > 1:
        fit = _few([sample for sample in fit if _elements(sample) <= _MOST] or fit[:1])
    cases = [case for form in subject.forms for case in _cases(subject, form, fit)]
    # After a capture that failed nothing that a device says can be relied on.
    return each(cases, lambda case: _replays(subject, *case), _named, alone=True)
