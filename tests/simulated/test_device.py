"""Tensors and operators on a simulated device."""

from __future__ import annotations

import torch

import hal
from hal.testing.simulated import simulate

MUSA = simulate("musa")


def test_tensors_lie_there() -> None:
    x = torch.randn(4, 6, device="musa")
    assert (x.device.type, x.device.index, x.is_musa) == ("musa", 0, True)
    assert x.t().stride() == (1, 6)
    assert hal.device(x).type == "musa"
