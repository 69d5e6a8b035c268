"""The decoder of ``examples`` from graphs: prefill broken at attention, decode captured whole."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import decoder
import hal
from hal.testing.simulated import simulate
from simulated.vendors import ARCH, vendors

HERE = simulate("musa")
X = torch.device("musa:0")
TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3"
BLOCK, BLOCKS = 16, 10
ROOM = BLOCK * BLOCKS

pytestmark = pytest.mark.filterwarnings("ignore:the reference, which is slow")

Forward = Callable[[Tensor, decoder.Batch], Tensor]


class Engine:
    """Sequences that come and go, each with blocks of its own, and logits from ``forward``."""

    def __init__(self, model: decoder.Decoder, sequences: int) -> None:
        self.model = model
        self.cache = model.new_cache(BLOCKS * sequences, BLOCK)
        self.table = torch.arange(BLOCKS * sequences, dtype=torch.int32, device=X).view(-1, BLOCKS)
        self.past = [0] * sequences

    def step(self, forward: Forward, new: dict[int, Sequence[int]]) -> dict[int, int]:
        """Give some sequences new tokens; return the most probable one after each."""
        rows = list(new)
        counts = [len(new[row]) for row in rows]
        batch = decoder.Batch.of([self.past[r] for r in rows], counts, self.table[rows], BLOCK)
        tokens = torch.tensor([token for row in rows for token in new[row]], device=X)
        logits = forward(tokens, batch)
        for row, count in zip(rows, counts, strict=True):
            self.past[row] += count
        return dict(zip(rows, logits.argmax(-1).tolist(), strict=True))

    def eager(self, tokens: Tensor, batch: decoder.Batch) -> Tensor:
        return self.model.forward(tokens, batch, self.cache)


class Fields(NamedTuple):
    """What ``hidden`` takes of a batch; torch.compile can make no attrs class that is frozen."""

    positions: Tensor
    slots: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens: Tensor
    max_new: int
    max_len: int


def batch_of(*fields: Any) -> Any:
    """A batch for ``hidden`` by its fields."""
    return Fields(*fields)


def fields(batch: decoder.Batch) -> tuple[Any, ...]:
    return (
        *(batch.positions, batch.slots, batch.block_table),
        *(batch.seq_lens, batch.cu_seqlens, batch.max_new, batch.max_len),
    )


class Graphed(Engine):
    """The same, with prefill and decode from graphs."""

    def __init__(
        self, model: decoder.Decoder, sequences: int, most: int, way: Any = hal.graphs.breakable
    ) -> None:
        super().__init__(model, sequences)
        self.way = way
        self.prefill, self.decode = self._prefill(most), self._decode(sequences)
        assert not self.cache.any()

    def _prefill(self, most: int) -> hal.graphs.Captured:
        def hidden(
            tokens: Tensor,
            positions: Tensor,
            slots: Tensor,
            block_table: Tensor,
            seq_lens: Tensor,
            cu_seqlens: Tensor,
            max_new: int,
            max_len: int,
        ) -> Tensor:
            batch = batch_of(positions, slots, block_table, seq_lens, cu_seqlens, max_new, max_len)
            return self.model.hidden(tokens, batch, self.cache)

        batch = decoder.Batch.of([0], [most], self.table[:1], BLOCK)
        return self.way(
            hidden,
            torch.zeros(most, dtype=torch.long, device=X),
            *fields(batch),
            at=hal.ops.paged_attention,
            eager=("block_table", "seq_lens", "cu_seqlens", "max_new", "max_len"),
            pad={"tokens": 0, "positions": 0, "slots": -1},
        )

    def _decode(self, sequences: int) -> hal.graphs.Captured:
        def logits(
            tokens: Tensor,
            positions: Tensor,
            slots: Tensor,
            block_table: Tensor,
            seq_lens: Tensor,
            cu_seqlens: Tensor,
        ) -> Tensor:
            batch = batch_of(positions, slots, block_table, seq_lens, cu_seqlens, 1, ROOM)
            hidden = self.model.hidden(tokens, batch, self.cache)
            return torch.nn.functional.linear(hidden, self.model.head)

        batch = decoder.Batch.of([0] * sequences, [1] * sequences, self.table, BLOCK)
        return hal.graphs.capture(
            logits,
            torch.zeros(sequences, dtype=torch.long, device=X),
            *fields(batch)[:5],
            pad={
                "tokens": 0,
                "positions": 0,
                "slots": -1,
                "block_table": 0,
                "seq_lens": 0,
                "cu_seqlens": "last",
            },
        )

    def graphed(self, tokens: Tensor, batch: decoder.Batch) -> Tensor:
        if batch.max_new == 1:
            return self.decode(tokens, *fields(batch)[:5])
        return self.model.logits(self.prefill(tokens, *fields(batch)), batch)


@pytest.fixture(scope="module")
def model() -> decoder.Decoder:
    return decoder.load(TINY, X, torch.float32)


def prompt(seed: int, count: int) -> list[int]:
    return torch.randint(1, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def serve(engine: Engine, forward: Forward, steps: int) -> list[dict[int, int]]:
    """Prompts between buckets, above the largest, several at once, and batches that change."""
    said: list[dict[int, int]] = []

    def step(new: dict[int, Sequence[int]]) -> None:
        said.append(engine.step(forward, new))

    def go_on(rows: Sequence[int]) -> None:
        for _ in range(steps):
            last = {row: next(s[row] for s in reversed(said) if row in s) for row in rows}
            step({row: [last[row]] for row in rows})

    step({0: prompt(1, 13)})
    go_on([0])
    step({1: prompt(2, 5), 2: prompt(3, 6)})
    go_on([0, 1, 2])
    step({3: prompt(4, 50)})  # More than in the largest bucket.
    go_on([3, 1])
    step({4: prompt(5, 2), 0: prompt(6, 3)})
    go_on([0, 1, 2, 3, 4])
    step({4: prompt(7, 32)})
    go_on([2, 4])
    return said


@pytest.mark.parametrize("steps", [12, pytest.param(38, marks=pytest.mark.long)])
def test_the_tokens_are_those_without_graphs(model: decoder.Decoder, steps: int) -> None:
    plain, graphed = Engine(model, 5), Graphed(model, 5, 32)
    want = serve(plain, plain.eager, steps)
    got = serve(graphed, graphed.graphed, steps)
    assert got == want
    assert sum(map(len, got)) == 13 * steps + 7
    torch.testing.assert_close(graphed.cache, plain.cache, rtol=1e-4, atol=1e-4)
    layers = len(model.layers)
    stats = graphed.prefill.stats()
    assert stats.buckets == (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
    assert stats.graphs == 10 * (layers + 1)
    assert stats.replays == {16: 1, 12: 1, 8: 1, 32: 1}
    assert stats.fallbacks == {"more than 32 tokens": 1}
    assert graphed.decode.stats().replays == {1: steps, 4: steps, 2: 2 * steps, 5: steps}
    assert graphed.decode.stats().fallbacks == {}


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
        assert serve(graphed, graphed.graphed, 6) == serve(plain, plain.eager, 6)


@pytest.mark.long
def test_memory_does_not_grow_as_it_serves(model: decoder.Decoder) -> None:
    engine = Graphed(model, 2, 8)
    sizes: list[int] = []
    for _ in range(3):
        engine.past = [0, 0]
        engine.step(engine.graphed, {0: prompt(1, 3), 1: prompt(2, 4)})
        for token in range(30):
            engine.step(engine.graphed, {0: [token], 1: [token]})
        gc.collect()
        sizes.append(HERE.memory_allocated(X))
    assert len(set(sizes)) == 1
