"""Triton's kernels on cards whose warps are wider than those that configurations are made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hal
from simulated.vendors import ARCH

pytest.importorskip("triton")

from hal_triton import launch
from hal_triton.kernels import activation

WIDTH = {21: 128, 22: 128, 31: 32}[ARCH]


class Compiled:
    """In place of a kernel: notes with what it is launched."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **options: self.options.append(options)


@pytest.mark.parametrize("warps", [1, 2, 4, 8, 16])
def test_a_program_has_as_many_threads_as_it_was_configured_for(
    warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Compiled()
    monkeypatch.setattr(activation.gate_and_mul, "kernel", compiled)
    monkeypatch.setattr(launch, "_DIRECTLY", False)
    x = torch.empty(2, 8, device="musa")
    activation.gate_and_mul((1, 1, 1), (x, x), (1, warps, 3), ("silu", 1, 8, 1), warps)
    (options,) = compiled.options
    assert hal.device(x).warp_size == WIDTH
    assert options["num_warps"] * WIDTH == max(warps * 32, WIDTH)


def test_where_triton_has_no_driver_for_the_card_it_serves_nothing() -> None:
    serves = hal.supports(hal.Capability.TRITON, "musa")
    assert serves == launch.INTERPRETED
