"""Models from graphs on the accelerator of the machine; ``tests/simulated`` has what needs none."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import decoder
import hal
from accelerator import HERE, with_graphs
from serving import TINY, Engine, Graphed, calls, drawn, greedy, level, same, serve
from theirs import MODELS, Theirs

X: Any = HERE
WAYS = {
    "breakable": hal.graphs.breakable,
    "piecewise": hal.graphs.piecewise,
    "piecewise, inductor": functools.partial(hal.graphs.piecewise, compiler="inductor"),
}

pytestmark = [
    with_graphs,
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
    # transformers and Inductor import what torch has deprecated; Inductor says that TF32 is off.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
]


@pytest.fixture(autouse=True)
def _all_bits_of_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    torch._dynamo.reset()


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights in any dtype: those of bfloat16."""
    return decoder.load(TINY, X, dtype) if name == "decoder" else Theirs(name, X, dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["decoder", *MODELS])
def test_five_hundred_tokens_are_those_without_graphs(name: str, way: str) -> None:
    same(model(name), WAYS[way], 38, greedy)


@pytest.mark.parametrize("name", ["decoder", *MODELS])
def test_so_are_those_drawn_in_a_graph(name: str) -> None:
    same(model(name), hal.graphs.breakable, 38, drawn)


def error(engine: Engine, exact: Any) -> float:
    """The root of the mean square of what logits are off, given the tokens that were said."""
    found = serve(engine, 38, exact.said)
    return (torch.cat(found.logits).float() - torch.cat(exact.logits)).square().mean().sqrt().item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["decoder", *MODELS])
def test_in_half_precision_they_are_as_close_to_float32(name: str, way: str) -> None:
    """Not the same tokens: a library rounds a bucket of rows otherwise than those that fill it."""
    exact, half = serve(Engine(model(name), 5), 38), model(name, torch.bfloat16)
    plain = error(Engine(half, 5), exact)
    graphed = Graphed(half, 5, 32, WAYS[way])
    assert 0 < error(graphed, exact) < 1.1 * plain
    assert graphed.prefill.stats().fallbacks == {"more than 32 tokens": 1}
    assert graphed.decode.stats().fallbacks == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["decoder", *MODELS])
def test_memory_does_not_grow_over_a_thousand_replays(name: str, way: str) -> None:
    engine = Graphed(model(name), 4, 16, WAYS[way])
    for each in calls(engine, [1, 16, 7, 13, 3]).values():
        level(X, 1000, each[-1:])
        level(X, 1000, each)
    assert engine.prefill.stats().fallbacks == engine.decode.stats().fallbacks == {}
