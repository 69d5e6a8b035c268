"""The accelerator of the machine, and which tests need one."""

from __future__ import annotations

import pytest
import torch

import hal

HERE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None

with_graphs = pytest.mark.skipif(
    HERE is None or not hal.supports(hal.Capability.GRAPH_CAPTURE, HERE.type),
    reason="needs an accelerator with graphs",
)
