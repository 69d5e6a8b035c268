"""What a run of the kit says as a whole: the table, what stands out in it, and the file."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from hal.errors import InvalidInput
from hal.evidence import DEVICE, FORMAT, setting
from hal.hardware import Device
from hal.settings import recorded
from hal.testing.checks import CHECKS, Effort
from hal.testing.outcome import Cell, Status
from hal.testing.questions import OFFER, loaded

__all__ = ["Verdict"]

_MARKS = {
    Status.PROVEN: "ok",
    Status.REFUTED: "NO",
    Status.GAP: "gap",
    Status.NOT_APPLICABLE: "-",
    Status.NOT_TRIED: "?",
}


@attrs.frozen
class Verdict:
    """The cells of a run, with all that is needed to know what they are about."""

    backend: str
    device: Device
    effort: Effort
    cells: Sequence[Cell]

    @property
    def ok(self) -> bool:
        """Whether nothing is refuted, and something is proven."""
        counts = self.counts()
        return not counts[Status.REFUTED] and bool(counts[Status.PROVEN])

    def counts(self) -> Counter[Status]:
        """How many claims ended how."""
        return Counter(cell.status for cell in self.cells if cell.check != OFFER or _red(cell))

    def summary(self) -> str:
        """The outcome in a line."""
        counts = self.counts()
        kernels = len({(c.op, c.kernel) for c in self.cells if c.op != DEVICE and c.check != OFFER})
        cases, seconds = sum(c.cases for c in self.cells), sum(c.seconds for c in self.cells)
        said = ", ".join(f"{counts[status]} {status.value}" for status in Status)
        name = f"{self.device.name}, simulated" if self.device.simulated else self.device.name
        return (
            f"{self.backend} on {self.device} ({name}): {kernels} kernels, {said}; "
            f"{cases:,} cases in {seconds:.0f} s"
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads of three letters, and a row of marks for each kernel."""
        ran = [name for name in CHECKS if any(cell.check == name for cell in self.cells)]
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for cell in self.cells:
            if cell.check in CHECKS:
                rows.setdefault((cell.op, cell.kernel), {})[cell.check] = _MARKS[cell.status]
        several = {op for (op, _), n in Counter((op, "") for op, _ in rows).items() if n > 1}
        return (
            ["op", *(name[:3] for name in ran)],
            [
                [f"{op} {kernel}" if op in several else op, *(marks.get(n, "") for n in ran)]
                for (op, kernel), marks in rows.items()
            ],
        )

    def marks(self) -> list[str]:
        """What the marks mean."""
        return [", ".join(f"{mark} {status.value}" for status, mark in _MARKS.items())]

    def legend(self) -> list[list[str]]:
        """What the heads mean: head, check, and what it asks."""
        ran = {cell.check for cell in self.cells}
        return [[c.name[:3], c.name, c.summary] for c in CHECKS.values() if c.name in ran]

    def device_lines(self) -> list[str]:
        """What became of the claims about the device."""
        claimed = [
            c for c in self.cells if c.op == DEVICE and c.status is not Status.NOT_APPLICABLE
        ]
        return [f"device: {c.check} {c.status.value}" + _because(c) for c in claimed]

    def remarks(self) -> list[str]:
        """What is refuted, by what was found; known gaps; why others were not tried, by reason."""
        red = [cell for cell in self.cells if _red(cell)]
        gaps = [cell for cell in self.cells if cell.status is Status.GAP]
        lines = list(_alike(red))
        lines += [f"known gap: {c.op} {c.kernel} {c.check}: {c.reason}" for c in gaps]
        return lines + list(_absent(self.cells)) + list(_untried(self.cells))

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data."""
        plugin = loaded(self.backend)
        return {
            "format": FORMAT,
            "backend": {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
            },
            "setting": setting(self.device),
            "python": platform.python_version(),
            "effort": attrs.asdict(self.effort),
            "ok": self.ok,
            "cells": [cell.to_dict() for cell in self.cells],
        }

    @property
    def recorded(self) -> Path:
        """Where ``hal report`` finds it; the next record of this backend and device replaces it."""
        name = f"{self.backend}-{self.device.type}-{self.device.arch or self.device.name}"
        name += "-simulated" * self.device.simulated
        return Path(recorded()) / f"{re.sub('[^A-Za-z0-9.-]+', '_', name)}.json"

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InvalidInput: It cannot be written there.
        """
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise InvalidInput(f"the outcome cannot be written to {path}: {error}") from None


def _red(cell: Cell) -> bool:
    return cell.status is Status.REFUTED


def _because(cell: Cell) -> str:
    return f": {cell.reason}" if cell.reason else ""


def _alike(red: Iterable[Cell]) -> Iterable[str]:
    """A line for what several checks found in a kernel at the same case."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in red:
        count, first, case = cell.reason.partition(" cases, the first: ")
        found.setdefault((cell.op, cell.kernel, case if first else count), []).append(cell)
    for cells in found.values():
        checks, one = ", ".join(cell.check for cell in cells), cells[0]
        yield f"refuted: {one.op} {one.kernel} {checks}: {one.reason}"


def _absent(cells: Iterable[Cell]) -> Iterable[str]:
    """Why there is nothing to check, where there is no kernel at all."""
    asked = [cell for cell in cells if cell.op != DEVICE]
    if all(cell.check == OFFER for cell in asked):
        for reason in dict.fromkeys(cell.reason for cell in asked if not _red(cell)):
            ops = [cell.op for cell in asked if cell.reason == reason]
            yield f"no kernel: {_many(ops)}: {reason}"


def _many(ops: Sequence[str]) -> str:
    return f"{len(ops)} ops" if len(ops) > 3 else ", ".join(ops)


def _untried(cells: Iterable[Cell]) -> Iterable[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.status is Status.NOT_TRIED:
            by_reason.setdefault((cell.check, cell.reason), []).append(cell.op)
    for (check, reason), ops in by_reason.items():
        yield f"not tried: {check} of {_many(ops)}: {reason}"
