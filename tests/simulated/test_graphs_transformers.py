"""Models of transformers, with hal's attention over a paged cache, from graphs in two ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hal
from serving import Graphed, calls, level, same
from theirs import MODELS, Theirs

X = torch.device("musa:0")

pytestmark = [
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]
WAYS = [hal.graphs.breakable, hal.graphs.piecewise]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [6, pytest.param(38, marks=pytest.mark.long)])
def test_their_tokens_are_those_without_graphs(name: str, way: Any, steps: int) -> None:
    same(Theirs(name, X), way, steps)


@pytest.mark.long
@pytest.mark.parametrize(("name", "way"), list(zip(MODELS, WAYS, strict=True)))
def test_memory_does_not_grow_over_a_thousand_replays(name: str, way: Any) -> None:
    engine = Graphed(Theirs(name, X), 4, 8, way)
    level(X, 1000, calls(engine, [1, 8, 3, 6])["prefill"])
