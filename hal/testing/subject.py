"""What a check is about: one kernel of one backend for an op on a device, and how it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal import ops
from hal.form import Form
from hal.functions import FORMS
from hal.hardware import Device
from hal.op import Kernel, Op
from hal.policy import use
from hal.testing.record import Record, Refusal, Sample
from hal.validate import as_tuple

__all__ = ["HOST", "Subject", "expected", "memory", "placed", "results", "samples"]


HOST = "cpu"
"""Where samples are made and oracles compute."""


@functools.cache
def samples(record: Record) -> tuple[Sample, ...]:
    """The samples of a record, made once; nothing writes into them."""
    return tuple(record.samples())


def expected(record: Record, sample: Sample) -> tuple[Any, ...]:
    """What the oracle says of a sample."""
    return _expected(record.oracle, sample)


@functools.cache
def _expected(oracle: Callable[..., Any], sample: Sample) -> tuple[Any, ...]:
    return results(oracle(*sample.args, **sample.kwargs))


def results(returned: Any) -> tuple[Any, ...]:
    """The results that are there."""
    return tuple(result for result in as_tuple(returned) if result is not None)


def memory(tensor: Tensor) -> Tensor:
    """The bytes of all the memory that a tensor's elements lie in, also between and around them."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage())  # pyright: ignore[reportArgumentType]


class _Mover:
    """Copies tensors to a device with their strides, offsets and the memory they share."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.storages: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        kept = self._storage(value)
        whole = kept[: kept.numel() // value.itemsize * value.itemsize].view(value.dtype)
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())

    def _storage(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.storages:  # pyright: ignore[reportPrivateUsage]
            # A tensor of bytes moves to any device; a storage moves to those torch knows.
            self.storages[storage._cdata] = memory(value).clone().to(self.device)  # pyright: ignore[reportPrivateUsage]
        return self.storages[storage._cdata]  # pyright: ignore[reportPrivateUsage]


def placed(values: Sequence[Any], device: str) -> list[Any]:
    """Copies of a call's arguments on ``device``, laid out in memory as they are."""
    return list(map(_Mover(device), values))


@attrs.frozen(eq=False)
class Subject:
    """One kernel of a backend for an op on a device.

    Attributes:
        backend: The name of the backend.
        op: The op that the kernel serves.
        kernel: What the backend offers.
        device: Where.
        record: What the kit knows of the op.
    """

    backend: str
    op: Op
    kernel: Kernel
    device: Device
    record: Record

    def __str__(self) -> str:
        return f"{self.op.name} by {self.spec} on {self.device}"

    @property
    def spec(self) -> str:
        """The kernel as ``hal.use`` names it."""
        return f"{self.backend}:{self.kernel.name}"

    @property
    def forms(self) -> Iterator[Form]:
        """The forms in which the op is called."""
        return (form for form in FORMS.values() if form.op is self.op)

    def forced(self) -> Any:
        """A block in which this kernel alone may serve the op."""
        return use(**{self.op.name: self.spec})

    def flat(self, call: Sample | Refusal) -> list[Any]:
        """Fresh arguments of a call on the device, in the order of the signature."""
        return placed(self.op.flatten(call.args, call.kwargs), str(self.device))

    def run(self, flat: Sequence[Any], name: str | None = None, **out: Any) -> Any:
        """Call ``hal.ops.<name>``, by default the op itself, with this kernel."""
        function = functools.partial(getattr(ops, name or self.op.name), **out)
        with self.forced():
            return self.op.call(function, flat)

    def refusal(self, sample: Sample) -> str | None:
        """Why the kernel does not take a sample; None if it does."""
        if self.kernel.supports is None:
            return None
        return self.op.call(self.kernel.supports, self.flat(sample))
