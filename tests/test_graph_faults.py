"""The check of captures refutes kernels that are not safe in graphs, and no other, on a device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graph_faults import CASES, judged

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no device here has graphs; simulated ones are tried too"
)


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_right(name: str, record_property: Callable[[str, object], None]) -> None:
    judged(name, "cuda", "spawn", record_property)
