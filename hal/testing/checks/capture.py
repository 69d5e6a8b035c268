"""Capture into a device graph: replayed with other data, it does what the op does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hal.graphs import device
from hal.testing.checks.check import Effort, accepted, check, claimed, each
from hal.testing.compare import assert_close
from hal.testing.outcome import NotTried
from hal.testing.record import Sample
from hal.testing.subject import HOST, Subject, results

__all__ = ["graph_class"]

# A graph that is captured from each op in so many calls shows what a few can.
_SAMPLES = 4


def graph_class(kind: str) -> tuple[Any, Any]:
    """The module of a device type in torch, and the class of its graphs.

    Raises:
        NotTried: It has none.
    """
    found = device.graph_class(kind)
    if found is None:
        raise NotTried(f"torch has no graphs for {kind}")
    return torch.get_device_module(kind), found


def _other(value: Any) -> Any:
    """Data of the same kind: what is halved stays in every range, also of probabilities."""
    halves = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1
    return value / 2 if halves else value


def _renewed(flat: Sequence[Any]) -> list[Any]:
    floats = [v for v in flat if isinstance(v, Tensor) and v.is_floating_point() and v.itemsize > 1]
    if floats:
        return list(map(_other, flat))
    return [value.flip(0) if isinstance(value, Tensor) and value.ndim else value for value in flat]


def _fill(target: Sequence[Any], source: Sequence[Any]) -> None:
    for to, value in zip(target, source, strict=True):
        if isinstance(to, Tensor):
            to.copy_(value)


def _stale(module: Any, device: str) -> None:
    """Write over what was freed: a graph that reads it shows."""
    spoiled = [
        torch.full((2**power,), float("nan"), device=device) for power in range(8, 22) for _ in "ab"
    ]
    module.synchronize()
    del spoiled


def _replays(subject: Subject, sample: Sample) -> None:
    module, graph_type = graph_class(subject.device.type)
    static, where = subject.flat(sample), str(subject.device)
    stream = module.Stream()
    stream.wait_stream(module.current_stream())
    with module.stream(stream):  # What is compiled or allocated once must be by now.
        for _ in range(3):
            subject.run(static)
    module.current_stream().wait_stream(stream)
    graph = graph_type()
    with module.graph(graph):
        returned = subject.run(static)
    host = subject.op.flatten(sample.args, sample.kwargs)
    for data in (_renewed(host), host, _renewed(host)):
        _stale(module, where)
        _fill(static, data)
        graph.replay()
        module.synchronize()
        want = results(subject.op.call(subject.record.oracle, data))
        for got, expected in zip(results(returned), want, strict=True):
            gate = subject.record.gates.get(got.dtype, 0.0)
            assert_close(got.to(HOST), expected, gate)


def _capturable(sample: Sample) -> bool:
    """An expanded tensor cannot be written into, nor is there anything to see in an empty one."""
    given = [v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, Tensor)]
    return all(v.numel() > 1 and all(v.stride()) for v in given if v.ndim)


@check("capture", isolated=True)
def graph_safe(subject: Subject, effort: Effort) -> int:
    """Captured once, it agrees with the oracle when replayed with other data, where claimed."""
    claimed(subject, "graph_safe")
    graph_class(subject.device.type)
    fit = [sample for sample in accepted(subject) if _capturable(sample)]
    if not fit:
        raise NotTried("no sample can be captured")
    count = len(fit) if effort.every == 1 else _SAMPLES
    chosen = fit[:: max(1, len(fit) // count)]
    return each(chosen, lambda sample: _replays(subject, sample), lambda sample: sample.name)
