"""What a kernel returns: right, complete, its own, and the same each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hal.testing.checks.check import Effort, check, claimed, sampled
from hal.testing.compare import assert_close
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, expected, memory, results

__all__ = ["compare", "same_bits"]


def _bits(tensor: Tensor) -> Tensor:
    # A copy: one row of a wider tensor counts as contiguous with strides that no view can have.
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def same_bits(got: Tensor | None, want: Tensor | None) -> bool:
    """Whether two tensors hold the same, bit for bit."""
    if got is None or want is None:
        return got is want
    return torch.equal(_bits(got), _bits(want))


def compare(subject: Subject, sample: Sample, returned: Any) -> None:
    """Hold what a kernel has returned for a sample against the oracle's results."""
    found, wanted = results(returned), expected(subject.record, sample)
    assert len(found) == len(wanted), f"{len(found)} results, not {len(wanted)}"
    for got, want in zip(found, wanted, strict=True):
        gate = subject.record.gates.get(got.dtype, 0.0)
        assert_close(got.to(HOST), want, gate)


@check("numerics")
def numerics(subject: Subject, effort: Effort) -> int:
    """Every sample is within tolerance of the float64 oracle, NaN and infinities in place."""
    return sampled(
        subject, lambda s: compare(subject, s, subject.run(subject.flat(s))), effort.samples
    )


# Two buffers in turn, or three, are seen in the calls after the first.
_CALLS = 3


def _written(subject: Subject) -> set[str]:
    return set(subject.op.mutates)


def _pure(subject: Subject, sample: Sample) -> None:
    flat = subject.flat(sample)
    tensors = {
        parameter.name: value
        for parameter, value in zip(subject.op.parameters, flat, strict=True)
        if isinstance(value, Tensor)
    }
    # What shares memory with a target is written with it.
    targets = [tensors[name] for name in _written(subject) if name in tensors]
    before = {name: memory(tensor).clone() for name, tensor in tensors.items()}
    found = results(subject.run(flat))
    for name, tensor in tensors.items():
        if not any(_shared(tensor, target) for target in targets):
            assert torch.equal(memory(tensor), before[name]), f"wrote into {name}"
    if not targets:
        _check_own(found, tensors)
        for _ in range(_CALLS):
            latest = results(subject.run(flat))
            _check_own(
                latest, {f"result {i} of a call before": result for i, result in enumerate(found)}
            )
            found = (*found, *latest)


def _shared(one: Tensor, other: Tensor) -> bool:
    return bool(one.numel() and other.numel()) and (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )


def _check_own(found: Sequence[Tensor], given: dict[str, Tensor]) -> None:
    for i, result in enumerate(found):
        for name, tensor in given.items():
            assert not _shared(result, tensor), f"result {i} is in the memory of {name}"
        for j, other in enumerate(found[:i]):
            assert not _shared(result, other), f"results {j} and {i} share their memory"


@check("purity")
def purity(subject: Subject, effort: Effort) -> int:
    """No argument is written into, nor what lies around it; results are in memory of their own."""
    return sampled(subject, lambda sample: _pure(subject, sample), effort.samples)


_EMPTIES = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class Poisoned(TorchDispatchMode):
    """Fills what is allocated without a value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch; fill what it allocated."""
        del types
        made = func(*args, **(kwargs or {}))
        return _fill(made, self.value) if func in _EMPTIES else made


def _fill(made: Tensor, value: float) -> Tensor:
    if made.dtype.is_floating_point and made.dtype.itemsize > 1:
        return made.fill_(value)
    memory(made).fill_(0x7F if math.isnan(value) else 0x35)
    return made


def _complete(subject: Subject, sample: Sample) -> None:
    for value in (math.nan, 77.0):
        flat = subject.flat(sample)
        with Poisoned(value):
            returned = subject.op.call(subject.kernel.fn, flat)
        compare(subject, sample, returned)


@check("written")
def written(subject: Subject, effort: Effort) -> int:
    """Every element of a result is written: memory that torch allocates is filled beforehand."""
    return sampled(subject, lambda sample: _complete(subject, sample), effort.every)


def _repeats(subject: Subject, sample: Sample) -> None:
    first = results(subject.run(subject.flat(sample)))
    for _ in range(3):
        again = results(subject.run(subject.flat(sample)))
        assert all(map(same_bits, again, first)), "other bits for the same arguments"


@check("deterministic")
def deterministic(subject: Subject, effort: Effort) -> int:
    """The same arguments give the same bits, where that is claimed."""
    claimed(subject, "deterministic")
    return sampled(subject, lambda sample: _repeats(subject, sample), effort.samples)
