"""The steps of one phase in all ways: held against each other, then timed in turn."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from failures import Failures, attempt, synchronize
from steps import Call, Phase, off
from subject import Subject
from timing import Time
from ways import Graphs, Took, Way, reserved

ROUNDS = 5
# Of a way's turn: seconds, and steps at least and at most. A device that was idle has a tenth more
# clock than one at work, for a tenth of a second, so that a way would gain by what it comes after.
SETTLE, TURN, LEAST, MOST = 0.1, 0.05, 2, 10
# Two of bfloat16's roundings in a row are 8e-3. Those of the layers add up as steps of a random
# walk do, and 5e-2 is far from what they make of 4 layers (1.2e-2 to 1.7e-2 against float32). Here
# both sides have rounded.
LIMIT, LAYERS = 5e-2 * 2**0.5, 4
# The same operators on as many rows round alike.
CLOSE = 1e-2


@attrs.define
class Cell(Failures):
    """A step: microseconds by way, errors of its logits, and the tokens that are computed.

    Attributes:
        slower: Why a way does not replay it from the graphs that it has.
    """

    phase: Phase
    us: dict[str, float] = attrs.field(factory=dict, init=False)
    spread: dict[str, float] = attrs.field(factory=dict, init=False)
    errors: dict[str, float] = attrs.field(factory=dict, init=False)
    computed: dict[str, int] = attrs.field(factory=dict, init=False)
    slower: dict[str, str] = attrs.field(factory=dict, init=False)


@attrs.frozen
class Want:
    """What a step gives on hal as it is written: logits, and what it stores."""

    logits: Tensor
    stored: Tensor


def limit(way: Way, name: str, cell: Cell, layers: int) -> float:
    """How far its logits may be from those of hal as it is written."""
    alike = isinstance(way, Graphs) and way.bucket(cell.phase) == cell.phase.tokens
    if alike and not name.endswith("inductor"):
        return CLOSE
    return LIMIT * math.sqrt(max(layers / LAYERS, 1))


def latencies(call: Call) -> list[float]:
    """Microseconds of each step of a turn, after some by which the device has its clock."""
    before = [_seconds(call)]
    while sum(before) < SETTLE:
        before.append(_seconds(call))
    steps = int(TURN / before[-1])
    return [_seconds(call) * 1e6 for _ in range(max(LEAST, min(MOST, steps)))]


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - began


def timed(cell: Cell, calls: dict[str, Call], rounds: int) -> None:
    """Time the steps of all ways in turn, in an order that alternates.

    Those of hal are together, since between others, which leave the device idle, they would gain.
    """
    ordered = sorted(calls, key=lambda name: name.startswith("hal"))
    found: dict[str, list[float]] = {name: [] for name in ordered}
    for turn in range(rounds):
        for name in list(found)[:: 1 if turn % 2 == 0 else -1]:
            times = attempt(cell, name, functools.partial(latencies, calls[name]))
            if times is None:
                del found[name], calls[name]
                cell.us.pop(name, None)
            else:
                found[name] += times
    each = {name: Time.of(times) for name, times in found.items()}
    cell.us |= {name: time.us for name, time in each.items()}
    cell.spread |= {name: time.spread for name, time in each.items()}


@attrs.define(eq=False)
class Turns:
    """The steps of one phase.

    Attributes:
        subject: What they are of.
        cells: What is known of each step.
        layers: How many layers the model has.
        say: Told what has been done, as it is; also keeps it.
        took: What each way took to make.
    """

    subject: Subject
    cells: list[Cell]
    layers: int
    say: Callable[[str], None]
    took: dict[str, Took] = attrs.field(factory=dict)
    _ways: dict[str, Way] = attrs.field(factory=dict)
    _calls: dict[Phase, dict[str, Call]] = attrs.field(factory=dict)
    _wants: dict[Phase, Want] = attrs.field(factory=dict)

    def add(self, ways: Mapping[str, Callable[[], Way]]) -> None:
        """Make ways, and their steps ready."""
        for name, make in ways.items():
            reserved(self.subject.tokens.device)  # What is given back later is not taken now.
            began, failures = time.perf_counter(), Failures()
            way = attempt(failures, name, make)
            if way is None:
                for cell in self.cells:
                    cell.wrong |= failures.wrong
                    cell.refused |= failures.refused
            else:
                self._ways[name] = way
                self._ready(name, way)
                self.took[name] = way.took()
            ready = sum(name in self.calls(cell) for cell in self.cells)
            seconds = time.perf_counter() - began
            steps = f"{ready} of {len(self.cells)} steps ready in {seconds:.1f} s"
            self.say(f"{self.subject.kind}: {name}: {steps}")

    def calls(self, cell: Cell) -> dict[str, Call]:
        """The ways that are ready for a step."""
        return self._calls.setdefault(cell.phase, {})

    def steps_of(self, name: str) -> dict[Phase, Call]:
        """The steps of one way."""
        return {phase: calls[name] for phase, calls in self._calls.items() if name in calls}

    def _ready(self, name: str, way: Way) -> None:
        # What is compiled once for prompts of any length is so by one in the middle.
        first = self.cells[len(self.cells) // 2 if self.subject.kind == "prefill" else 0]
        for cell in sorted(self.cells, key=lambda cell: cell is not first):
            call = attempt(cell, name, functools.partial(way.ready, cell.phase))
            if call is not None and self._right(name, way, cell, call):
                cell.computed[name] = way.bucket(cell.phase)
                self.calls(cell)[name] = call
            elif sum(name in cell.wrong for cell in self.cells) > 1 and not self.steps_of(name):
                return  # To compile it for each step, to the same end, takes long.

    def _right(self, name: str, way: Way, cell: Cell, call: Call) -> bool:
        """Whether logits, and what is stored, are those of hal as it is written."""
        step, ours = self.subject.step(cell.phase), name.startswith("hal")
        if ours:
            self.subject.forget(step)
        logits = attempt(cell, name, lambda: call().clone())
        if logits is None:
            return False
        got = Want(logits, self.subject.stored(step).clone())
        want = self._wants.setdefault(cell.phase, got)
        errors = [off(got.logits, want.logits), off(got.stored, want.stored)][: 1 + ours]
        cell.errors[name] = error = math.nan if any(map(math.isnan, errors)) else max(errors)
        if not error <= limit(way, name, cell, self.layers):
            cell.wrong[name] = f"its logits, or what it stores, are off by {error:.1e}"
        return name not in cell.wrong

    def _calibrate(self, cell: Cell) -> None:
        """Let what is captured do what is quicker, as things are."""
        for name in list(self.calls(cell)):
            way = self._ways[name]
            if isinstance(way, Graphs):
                reason = attempt(cell, name, functools.partial(way.calibrated, cell.phase))
                cell.slower |= {name: reason} if reason else {}
                if name in cell.wrong:
                    del self.calls(cell)[name]

    def time(self, rounds: int, calibrated: bool = True) -> None:
        """Time all ways that there are, in turn."""
        for cell in self.cells:
            if calibrated:
                self._calibrate(cell)
            timed(cell, self.calls(cell), rounds)
            found = ", ".join(f"{name} {us:.0f}" for name, us in cell.us.items())
            self.say(f"{self.subject.kind} of {cell.phase.tokens}: {found} us")

    def close(self) -> None:
        """Give back all that they hold."""
        for way in self._ways.values():
            way.close()
        self._ways, self._calls, self._wants = {}, {}, {}
        torch._dynamo.reset()
        gc.collect()
