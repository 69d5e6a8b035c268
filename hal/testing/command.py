"""A run of the kit, as ``hal check`` makes it."""

from __future__ import annotations

from collections.abc import Sequence

from hal.terminal import fail, progress
from hal.testing.checks import THOROUGH, Effort
from hal.testing.outcome import Cell
from hal.testing.questions import gaps_of, questions, where
from hal.testing.run import answer
from hal.testing.verdict import Verdict

__all__ = ["conformance"]


def conformance(
    backend: str,
    device: str | None = None,
    ops: Sequence[str] | None = None,
    checks: Sequence[str] | None = None,
    thorough: bool = False,
    apart: bool = False,
) -> Verdict:
    """Hold a backend to what it claims, with a progress bar.

    Args:
        backend: Its name.
        device: Where, in torch's notation; without it the current device, or the first it serves.
        ops: Some operators; without it all.
        checks: Some checks; without it all.
        thorough: Whether each check sees every sample.
        apart: Whether the checks run in a child process, which a kernel may end.

    Raises:
        InvalidInput: An unknown name.
        BackendError: The backend could not be loaded, or does not serve the device.
    """
    found, effort = where(backend, device), THOROUGH if thorough else Effort()
    gaps, asked = gaps_of(backend), questions(backend, found, ops, checks)
    cells: list[Cell] = []
    try:
        for question in progress(asked, str):
            cells.append(answer(question, effort, gaps, apart))
    except KeyboardInterrupt:
        at = f"{asked[len(cells)]}, after {len(cells)} of {len(asked)} checks"
        fail(f"interrupted at {at}; nothing is recorded", status=130)
    return Verdict(backend, found, effort, cells)
