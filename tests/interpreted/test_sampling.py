"""What kernels draw of rows that they take in parts, and that rows do not change each other's."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from hal_native import sampling as reference
from hal_triton import draws, sampling

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
        {"top_k": 1},
        {"top_p": 0.4, "min_p": torch.full((7,), math.nan)},
        {"min_p": 0.02},
        {},
    ],
    ids=lambda limits: ", ".join(f"{k} {v}" for k, v in limits.items()).replace("\n", " "),
)
def test_long_rows_give_the_tokens_of_the_reference(probs: Tensor, limits: dict[str, Any]) -> None:
    drawn = sampling.sample(probs, **limits, **NOISE)
    assert drawn.tolist() == reference.sample(probs, **limits, **NOISE).tolist()


@pytest.mark.parametrize(("columns", "scale"), [(5, 2.0**-100), (5, 2.0**60), (4098, 1.0)])
def test_a_token_that_most_draws_take_loses_the_others(columns: int, scale: float) -> None:
    # It wins with variates of every size, of which the large ones are computed in another way.
    probs = torch.full((1, columns), 0.1 / (columns - 1))
    probs[0, columns // 2] = 0.9
    many: dict[str, Any] = {"indices": torch.zeros(60, dtype=torch.int64), **NOISE}
    drawn = sampling.sample(probs * scale, **many).tolist()
    assert drawn == reference.sample(probs, **many).tolist()
    assert 45 < drawn.count(columns // 2) < 60


@pytest.mark.parametrize("config", [(1024, 512, 4), (8192, 1024, 8)], ids=str)
def test_a_table_does_not_change_what_is_drawn(probs: Tensor, config: tuple[int, ...]) -> None:
    limits: list[dict[str, Any]] = [{}, {"top_p": 0.4}]
    usual = [sampling.sample(probs[:2], **each, **NOISE).tolist() for each in limits]
    with mock.patch.object(draws, "measured", mock.Mock(return_value=config)) as asked:
        found = [sampling.sample(probs[:2], **each, **NOISE).tolist() for each in limits]
    assert asked.call_count == 2
    assert found == usual


def test_a_row_is_drawn_from_alike_beside_others_and_alone(probs: Tensor) -> None:
    limits: dict[str, Any] = {"top_p": 0.4}
    rows = probs[:2].repeat(3, 1)
    seeds = torch.arange(6)
    together = sampling.sample(rows, **limits, seed=seeds, offset=0).tolist()
    for i, token in enumerate(together):
        alone = sampling.sample(rows[i : i + 1], **limits, seed=seeds[i : i + 1], offset=0)
        assert alone.tolist() == [token]
