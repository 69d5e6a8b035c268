"""Kernels that must not be captured into graphs and say that they may be, and some that may."""

from __future__ import annotations

import functools
import multiprocessing
import re
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

import hal
from hal.testing.attempt import tried
from hal.testing.checks import CHECKS, Effort
from hal.testing.outcome import Cell, Status
from hal.testing.questions import questions
from hal.testing.subject import samples
from offering import NATIVE, backend, installed

__all__ = ["CASES", "FAULTS", "SOUND", "Case", "judged"]

RELU, MUL_ADD, RMS = "relu_squared", "mul_add", "rms_norm"

FORBIDDEN = "captur"
"""What devices say of what may not be done in a capture."""

EARLY = "called when a capture had not been replayed: "
OTHER = "replayed with other data: "
TWICE = "replayed twice after calls with other arguments: "
LEFT = "left alone when other calls were made: "


@attrs.frozen(eq=False)
class Case:
    """A kernel that claims to be safe in graphs.

    Attributes:
        op: The op that it computes.
        name: What is wrong with it, or looks as if it were.
        complaint: A pattern of what the check says of it; None if there is nothing to say.
        fn: The kernel.
        only: A pattern of the names of the samples that are tried, where all take too long.
        inplace: Whether it is the in-place form, beside a correct kernel.
    """

    op: str
    name: str
    complaint: str | None
    fn: Callable[..., Any]
    only: str = ""
    inplace: bool = False

    def __str__(self) -> str:
        return self.name

    def caught(self, cell: Cell) -> bool:
        """Whether a verdict is the right one."""
        if self.complaint is None:
            return cell.status is Status.PROVEN
        return cell.status is Status.REFUTED and bool(re.search(self.complaint, cell.reason))


FAULTS: list[Case] = []
SOUND: list[Case] = []


SEEDS = r"^seeds|^offset|^5x1$"
"""Samples of ``sample``, which takes long, with seeds and offsets in memory and without."""


def fault(
    op: str, complaint: str, only: str = "", inplace: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the decorated kernel, whose name says what is wrong with it."""

    def plant(fn: Callable[..., Any]) -> Callable[..., Any]:
        name = fn.__name__.replace("_", " ")
        FAULTS.append(Case(op, name, complaint, fn, only, inplace))
        return fn

    return plant


def sound(op: str, only: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant the decorated kernel, with which nothing is wrong."""

    def plant(fn: Callable[..., Any]) -> Callable[..., Any]:
        SOUND.append(Case(op, fn.__name__.replace("_", " "), None, fn, only))
        return fn

    return plant


def right(op: str, *args: Any, **kwargs: Any) -> Any:
    """What the op does."""
    return NATIVE.hooks[op](hal.device("cpu")).fn(*args, **kwargs)


def module_of(x: Tensor) -> Any:
    return torch.get_device_module(x.device.type)


def capturing(x: Tensor) -> bool:
    return module_of(x).is_current_stream_capturing()


def layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.stride()


def through(buffer: Tensor, value: Tensor) -> Tensor:
    """``value``, written into bytes of a buffer."""
    kept = buffer[: value.nbytes].view(value.dtype).view(value.shape)
    return kept.copy_(value)


# ---- What the host does


@fault(RELU, FORBIDDEN)
def reads_a_value(x: Tensor) -> Tensor:
    return right(RELU, x) if x.isfinite().all().item() else right(RELU, x).clone()


@fault(RELU, FORBIDDEN)
def computes_on_the_host(x: Tensor) -> Tensor:
    return right(RELU, x.cpu()).to(x.device)


@fault(RELU, FORBIDDEN)
def waits_for_the_device(x: Tensor) -> Tensor:
    result = right(RELU, x)
    module_of(x).synchronize()
    return result


@fault(MUL_ADD, FORBIDDEN)
def sends_a_number_from_pageable_memory(x: Tensor, y: Tensor, scale: float) -> Tensor:
    factor = torch.tensor([scale], dtype=torch.float64).to(x.device)
    return (x.double() * factor + y.double()).to(x.dtype)


_staging: list[Tensor] = []


@fault(MUL_ADD, TWICE)
def sends_numbers_of_all_calls_by_one_pinned_buffer(x: Tensor, y: Tensor, scale: float) -> Tensor:
    if not _staging:
        _staging.append(torch.empty(1, dtype=torch.float64).pin_memory())
    _staging[0].fill_(scale)
    factor = _staging[0].to(x.device, non_blocking=True)
    if not capturing(x):
        module_of(x).synchronize()
    return (x.double() * factor + y.double()).to(x.dtype)


_tuned: dict[int, Tensor] = {}


@fault(RELU, FORBIDDEN)
def is_tuned_at_the_first_call_for_an_address(x: Tensor) -> Tensor:
    if x.data_ptr() not in _tuned:
        _tuned[x.data_ptr()] = x  # So that no other comes to lie there.
        begin, end = (module_of(x).Event(enable_timing=True) for _ in "ab")
        begin.record()
        right(RELU, x)
        end.record()
        end.synchronize()
    return right(RELU, x)


_positive: dict[Any, Tensor] = {}


@fault(RELU, OTHER)
def looks_for_what_is_positive_before_the_capture(x: Tensor) -> Tensor:
    if not capturing(x):
        _positive[layout(x)] = (~(x <= 0)).flatten().nonzero().flatten()
    chosen, result = _positive[layout(x)], torch.zeros_like(x).contiguous()
    result.view(-1)[chosen] = right(RELU, x.flatten()[chosen])
    return result


_epochs: list[Any] = []


@fault(RELU, EARLY)
def counts_calls_on_the_host_and_on_the_device(x: Tensor) -> Tensor:
    if not _epochs:
        _epochs[:] = [0, torch.zeros(1, dtype=torch.int64, device=x.device)]
    _epochs[0] += 1
    _epochs[1].add_(1)
    return torch.where(_epochs[1] == _epochs[0], right(RELU, x), -1)


# ---- Memory


_leaked: list[Tensor] = []


@fault(RELU, "captured and called once more: [0-9]+ bytes more are in use")
def keeps_memory_of_each_call(x: Tensor) -> Tensor:
    _leaked.append(torch.empty(512, dtype=torch.uint8, device=x.device))
    return right(RELU, x)


_of_address: dict[Any, Any] = {}


@fault(RMS, OTHER)
def casts_a_weight_once(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    if weight is None:
        return right(RMS, x, weight, eps)
    key = weight.data_ptr(), weight._version, layout(weight)
    _, cast = _of_address.setdefault(key, (weight, weight.double()))
    return right(RMS, x.double(), cast, eps).to(x.dtype)


_inputs: dict[Any, Tensor] = {}


@fault(RELU, f"{OTHER}|{EARLY}")
def reads_the_input_of_the_first_call(x: Tensor) -> Tensor:
    if not capturing(x):
        _inputs[layout(x)] = x
    return right(RELU, _inputs.setdefault(layout(x), x))


_workspaces: list[Tensor] = []


@fault(RELU, f"freed|{TWICE}")
def replaces_its_workspace_by_a_larger_one(x: Tensor) -> Tensor:
    result = right(RELU, x)
    if not _workspaces or _workspaces[0].nbytes < result.nbytes:
        _workspaces[:] = [torch.empty(result.nbytes, dtype=torch.uint8, device=x.device)]
    return through(_workspaces[0], result).clone()


_results: dict[Any, Tensor] = {}


@fault(RELU, LEFT)
def returns_one_buffer_for_all_calls(x: Tensor) -> Tensor:
    result = right(RELU, x)
    key = result.shape, result.dtype
    return _results.setdefault(key, torch.empty_like(result)).copy_(result)


_tables: dict[int, Tensor] = {}


@fault(MUL_ADD, OTHER)
def makes_a_table_at_the_first_call_on_a_stream(x: Tensor, y: Tensor, scale: float) -> Tensor:
    stream = module_of(x).current_stream().stream_id
    if stream not in _tables:
        _tables[stream] = torch.ones(1, dtype=torch.float64, device=x.device)
    return right(MUL_ADD, (x.double() * _tables[stream]).to(x.dtype), y, scale)


_zeros: dict[Any, Tensor] = {}


@fault(RELU, f"{EARLY}|{OTHER}|{TWICE}")
def adds_to_zeros_that_the_call_before_made(x: Tensor) -> Tensor:
    result = right(RELU, x)
    key = result.shape, result.dtype
    total = _zeros.pop(key, torch.zeros_like(result)).add_(result)
    _zeros[key] = torch.zeros_like(result)
    return total


_sums: dict[Any, list[Any]] = {}


@fault(RELU, f"{EARLY}|{OTHER}|{TWICE}")
def clears_its_sums_when_the_host_has_counted_two(x: Tensor) -> Tensor:
    result = right(RELU, x)
    key = result.shape, result.dtype
    if key not in _sums:
        _sums[key] = [0, torch.zeros(2, *result.shape, dtype=x.dtype, device=x.device)]
    kept = _sums[key]
    kept[0] += 1
    if kept[0] % 2 == 0:
        kept[1].zero_()
    return kept[1][kept[0] % 2].add_(result).clone()


@fault(RELU, "it wrote into x")
def writes_into_its_argument(x: Tensor) -> Tensor:
    x.copy_(torch.where(x < 0, 0, x))
    return right(RELU, x)


# ---- Streams, and random numbers


_sides: list[Any] = []


def side(x: Tensor) -> Any:
    if not _sides:
        _sides.append(module_of(x).Stream())
    return _sides[0]


@fault(RELU, FORBIDDEN)
def has_the_host_join_a_side_stream(x: Tensor) -> Tensor:
    side(x).wait_stream(module_of(x).current_stream())
    with module_of(x).stream(side(x)):
        result = right(RELU, x)
    if not capturing(x):
        side(x).synchronize()
    return result


@fault(RELU, OTHER)
def works_on_a_stream_outside_of_the_capture(x: Tensor) -> Tensor:
    if not capturing(x):
        module_of(x).synchronize()
    with module_of(x).stream(side(x)):
        result = right(RELU, x)
    if not capturing(x):
        module_of(x).synchronize()
    return result


_seeds: dict[Any, Any] = {}


def _once(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    key = value.data_ptr(), value._version, layout(value)
    return _seeds.setdefault(key, (value, value.clone()))[1]


@fault("sample", f"{OTHER}.*integers differ", SEEDS)
def draws_once_for_a_seed(
    probs: Tensor,
    *,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    seed: Any,
    offset: Any,
    indices: Tensor | None = None,
) -> Tensor:
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "indices": indices}
    return right("sample", probs, seed=_once(seed), offset=_once(offset), **limits)


@fault(MUL_ADD, f"in place: {OTHER}", inplace=True)
def adds_in_place_what_an_argument_was(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x.copy_(right(MUL_ADD, x, _once(y), scale))


# ---- What looks like a fault and is none


_spaces: list[Tensor] = []


@sound(RELU)
def has_one_workspace_for_a_device(x: Tensor) -> Tensor:
    if not _spaces:
        _spaces.append(torch.empty(2**22, dtype=torch.uint8, device=x.device))
    return through(_spaces[0], right(RELU, x)).clone()


@sound(RELU)
def joins_a_side_stream(x: Tensor) -> Tensor:
    current, result = module_of(x).current_stream(), torch.empty_like(right(RELU, x))
    side(x).wait_stream(current)
    with module_of(x).stream(side(x)):
        result.copy_(right(RELU, x))
    current.wait_stream(side(x))
    return result


@sound("sample", SEEDS)
def draws_by_seeds_in_memory(
    probs: Tensor,
    *,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    seed: Any,
    offset: Any,
    indices: Tensor | None = None,
) -> Tensor:
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "indices": indices}
    return right("sample", probs, seed=seed, offset=offset, **limits)


@sound(RELU)
def goes_through_rows_in_an_order_drawn_by_chance(x: Tensor) -> Tensor:
    flat = x.flatten()
    order = torch.rand(len(flat), device=x.device).argsort()
    return right(RELU, flat[order])[order.argsort()].view(x.shape)


_totals: dict[Any, Tensor] = {}


@sound(RELU)
def leaves_its_sums_at_zero(x: Tensor) -> Tensor:
    result = right(RELU, x)
    total = _totals.setdefault((result.shape, result.dtype), torch.zeros_like(result))
    found = total.add_(result).clone()
    total.zero_()
    return found


_constants: list[Tensor] = []


@sound(MUL_ADD)
def copies_a_constant_from_pinned_memory(x: Tensor, y: Tensor, scale: float) -> Tensor:
    if not _constants:
        _constants.append(torch.ones(1, dtype=torch.float64).pin_memory())
    factor = _constants[0].to(x.device, non_blocking=True)
    return right(MUL_ADD, (x.double() * factor).to(x.dtype), y, scale)


CASES = {str(case): case for case in [*FAULTS, *SOUND]}


def _found(name: str, device: str) -> Cell:
    """What the check says of a kernel."""
    case, where = CASES[name], hal.device(device)
    kernel = hal.Kernel(fn=case.fn, name="k", graph_safe=True)
    if case.inplace:
        correct = NATIVE.hooks[case.op](hal.device("cpu")).fn
        kernel = attrs.evolve(kernel, fn=correct, inplace=case.fn)
    planted = backend("planted", devices=(where.type,), **{case.op: kernel})
    with installed(planted, NATIVE):
        (question,) = questions("planted", where, [case.op], ["capture"])
        (subject,) = question.run.args  # type: ignore[attr-defined]
        fit = [s for s in samples(subject.record) if re.search(case.only, s.name)]
        record = attrs.evolve(subject.record, samples=lambda: fit)
        subject = attrs.evolve(subject, record=record)
        run = functools.partial(CHECKS["capture"].run, subject)
        return tried(attrs.evolve(question, run=run), Effort())[0]


def _answered(sender: Any, name: str, device: str) -> None:
    torch.set_num_threads(1)
    sender.send(_found(name, device))


def answer(name: str, device: str, start: str) -> Cell:
    """Ask in a process of its own, as a capture that fails spoils one.

    Args:
        name: One of ``CASES``.
        device: A type of device with graphs.
        start: ``"fork"``, or ``"spawn"`` where the device's driver does not survive a fork.
    """
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answered, args=(sender, name, device))
    with warnings.catch_warnings():
        # A thread that it may have has no part in this.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()
    try:
        assert receiver.poll(120), f"{name}: no answer in 120 s"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def judged(
    name: str, device: str, start: str, record_property: Callable[[str, object], None]
) -> None:
    """Require the right verdict, and have a fault in the table that a run ends with."""
    case, cell = CASES[name], answer(name, device, start)
    if case.complaint is not None:
        row = [case.name, case.op, "capture", case.caught(cell), cell.reason]
        record_property("fault", row)
    assert case.caught(cell), f"{cell.status.value}: {cell.reason}"
