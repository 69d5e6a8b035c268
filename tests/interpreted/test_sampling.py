"""What kernels draw of rows that they take in parts, and that rows do not change each other's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hal_native import sampling as reference
from hal_triton import sampling

NOISE: dict[str, Any] = {"seed": 5, "offset": 1}


@pytest.fixture(scope="module")
def probs() -> Tensor:
    """Rows [7, 4097], whose limits lie in the middle, nowhere, and at a single token."""
    probs = (torch.randn(7, 4097, generator=torch.Generator().manual_seed(0)) * 3).softmax(-1)
    probs[2] = 0
    probs[3] = 1 / 4097
    probs[4] = math.nan
    probs[5, 4096] = math.inf
    probs[6, :-1] = 0
    return probs


@pytest.mark.parametrize(
    "limits",
    [
        {"top_p": 0.9},
        {"top_p": 0.4, "min_p": 0.02},
        {"top_p": 1.0, "min_p": 0.3},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"top_p": torch.tensor([0.2, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5])},
        {"top_p": 0.4, "top_k": 30},
        {"min_p": 0.02},
        {},
    ],
    ids=lambda limits: ", ".join(f"{k} {v}" for k, v in limits.items()).replace("\n", " "),
)
def test_long_rows_give_the_tokens_of_the_reference(probs: Tensor, limits: dict[str, Any]) -> None:
    drawn = sampling.sample(probs, **limits, **NOISE)
    assert drawn.tolist() == reference.sample(probs, **limits, **NOISE).tolist()


def test_a_row_is_drawn_from_alike_beside_others_and_alone(probs: Tensor) -> None:
    limits: dict[str, Any] = {"top_p": 0.4}
    rows = probs[:2].repeat(3, 1)
    seeds = torch.arange(6)
    together = sampling.sample(rows, **limits, seed=seeds, offset=0).tolist()
    for i, token in enumerate(together):
        alone = sampling.sample(rows[i : i + 1], **limits, seed=seeds[i : i + 1], offset=0)
        assert alone.tolist() == [token]
