"""Programmatic dependent launch: a kernel may start early, but must not run ahead of its data."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hal.hardware import Capability, Device
from hal.plugins import registry
from hal.testing.checks.check import Effort, accepted, check, claimed, each
from hal.testing.compare import assert_close
from hal.testing.outcome import NotTried
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, expected, results

__all__ = ["pdl"]

# Each costs some launches that last as long as a hundred usual ones.
_SAMPLES = 12
_LARGEST = 2**20
"""Bytes of an argument that the late kernel, which is a single program, still copies soon."""


def _late_copy(device: Device) -> Callable[[Tensor, Tensor], None]:
    """What copies bytes so that the kernel after it may start long before they are there.

    Raises:
        NotTried: No backend gives one.
    """
    for plugin in registry().plugins:
        if plugin.serves(device.type):
            copy = registry().ask(plugin, "hal_late_copy", device)
            if copy is not None:
                return copy
    raise NotTried(f"no backend has a kernel that ends late on {device}")


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last, as they lie in memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in steps)
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    start, count = tensor.storage_offset() * tensor.itemsize, span * tensor.itemsize
    return whole.set_(tensor.untyped_storage(), start, (count,), (1,))  # pyright: ignore[reportArgumentType]


def _written_late(subject: Subject, sample: Sample, index: int) -> None:
    """Have an argument written by the kernel just before, which ends late."""
    flat, copy = subject.flat(sample), _late_copy(subject.device)
    argument = _bytes(flat[index])
    source = argument.clone()
    argument.zero_()
    subject.run(subject.flat(sample))  # What is compiled or planned once is by now.
    torch.get_device_module(subject.device.type).synchronize()
    copy(argument, source)
    returned = results(subject.run(flat))
    for got, want in zip(returned, expected(subject.record, sample), strict=True):
        assert_close(got.to(HOST), want, subject.record.gates.get(got.dtype, 0.0))


def _read_late(subject: Subject, sample: Sample) -> None:
    """Have memory that results come to lie in read by the kernel just before, which ends late."""
    flat, copy = subject.flat(sample), _late_copy(subject.device)
    sizes = [_bytes(r).numel() for r in results(subject.run(flat)) if r.numel()]
    # First, as they might lie there too.
    seen = [torch.ones(size, dtype=torch.uint8, device=str(subject.device)) for size in sizes]
    places = [r.data_ptr() for r in results(subject.run(flat)) if r.numel()]
    for to, pointer, size in zip(seen, places, sizes, strict=True):
        freed = _freed(pointer, size, subject.device)
        if freed is not None:
            freed.zero_()
            torch.get_device_module(subject.device.type).synchronize()
            copy(to, freed)
            del freed
            subject.run(flat)
            early = bool(to.any())
            assert not early, "memory was written that the kernel before had yet to read"


def _freed(pointer: int, size: int, device: Device) -> Tensor | None:
    """The memory at an address, if torch has it to give."""
    others: list[Tensor] = []
    # As many as there are of the smallest size in what torch asks the driver for at once.
    for _ in range(4096):
        found = torch.empty(size, dtype=torch.uint8, device=str(device))
        if found.data_ptr() == pointer:
            return found
        others.append(found)
    return None


def _cases(subject: Subject) -> list[tuple[str, Callable[[], None]]]:
    found: list[tuple[str, Callable[[], None]]] = []
    taken = accepted(subject)
    for sample in taken[:: max(1, len(taken) // _SAMPLES)]:
        flat = subject.op.flatten(sample.args, sample.kwargs)
        for i, value in enumerate(flat):
            if isinstance(value, Tensor) and 0 < value.nbytes <= _LARGEST:
                written = functools.partial(_written_late, subject, sample, i)
                found.append((f"{sample.name}, argument {i} written late", written))
        read = functools.partial(_read_late, subject, sample)
        found.append((f"{sample.name}, results' memory read late", read))
    return found


@check("pdl")
def pdl(subject: Subject, effort: Effort) -> int:
    """It awaits what the kernel before it reads and writes, though it may start early."""
    del effort
    claimed(subject, "pdl")
    if Capability.PDL not in subject.device.capabilities:
        raise NotTried(f"{subject.device} does not start a kernel before the last one has ended")
    _late_copy(subject.device)
    return each(_cases(subject), lambda case: case[1](), lambda case: case[0])
