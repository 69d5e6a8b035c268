"""The decoder of ``examples`` from graphs: prefill in two ways, decode captured whole."""

from __future__ import annotations

import functools
import gc
from typing import Any

import attrs
import pytest
import torch

import decoder
import hal
from hal.testing.simulated import simulate
from serving import TINY, Engine, Graphed, calls, drawn, greedy, level, same, serve
from simulated.vendors import ARCH, vendors

HERE = simulate("musa")
X = torch.device("musa:0")
INDUCTOR = functools.partial(hal.graphs.piecewise, compiler="inductor")
WAYS = {
    hal.graphs.breakable: (1, 2, 4, 8, 12, 16, 20, 24, 28, 32),
    hal.graphs.piecewise: (2, 4, 8, 12, 16, 20, 24, 28, 32),
    INDUCTOR: (2, 4, 8, 12, 16, 20, 24, 28, 32),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
    pytest.mark.filterwarnings("ignore:.*backend.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model() -> decoder.Decoder:
    return decoder.load(TINY, X, torch.float32)


CASES = [
    (hal.graphs.breakable, greedy, 6),
    pytest.param(hal.graphs.breakable, greedy, 38, marks=pytest.mark.long),
    pytest.param(hal.graphs.breakable, drawn, 38, marks=pytest.mark.long),
    pytest.param(hal.graphs.piecewise, greedy, 38, marks=pytest.mark.long),
    pytest.param(INDUCTOR, greedy, 6, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("way", "choose", "steps"), CASES)
def test_the_tokens_are_those_without_graphs(
    model: decoder.Decoder, way: Any, choose: Any, steps: int
) -> None:
    stats = same(model, way, steps, choose).prefill.stats()
    assert stats.buckets == WAYS[way]
    assert stats.graphs == len(WAYS[way]) * (len(model.layers) + 1)


@pytest.mark.skipif(ARCH < 31, reason="MATE is for mp_31")
@pytest.mark.parametrize(
    "way", [hal.graphs.breakable, pytest.param(hal.graphs.piecewise, marks=pytest.mark.long)]
)
def test_so_they_are_with_the_vendors_kernels(way: Any) -> None:
    with vendors("mate", "sgl_kernel"):
        model = decoder.load(TINY, X, torch.bfloat16)
        plain, graphed = Engine(model, 5), Graphed(model, 5, 32, way)
        for captured in graphed.prefill, graphed.decode:
            assert {"paged_attention: musa:mate", "silu_and_mul: musa:torch_musa"} <= {
                *captured.stats().warmed
            }
        assert serve(graphed, 6).said == serve(plain, 6).said


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "way"),
    [("prefill", way) for way in WAYS if way is not INDUCTOR] + [("decode", hal.graphs.breakable)],
)
def test_memory_does_not_grow_over_a_thousand_replays(
    model: decoder.Decoder, what: str, way: Any
) -> None:
    # One layer: what the others do is the same, and takes its time on a host.
    model = attrs.evolve(
        model, layers=model.layers[:1], config=attrs.evolve(model.config, num_layers=1)
    )
    engine = Graphed(model, 4, 8, way)
    level(X, 1000, calls(engine, [1, 8, 3, 6])[what])


@pytest.mark.long
def test_memory_does_not_grow_as_it_serves(model: decoder.Decoder) -> None:
    engine = Graphed(model, 2, 8)
    sizes: list[int] = []
    for _ in range(3):
        engine.past = [0, 0]
        engine.step({0: [3, 4, 5], 1: [6, 7, 8, 9]})
        for token in range(30):
            engine.step({0: [token], 1: [token]})
        gc.collect()
        sizes.append(HERE.memory_allocated(X))
    assert len(set(sizes)) == 1
