"""Sequences served by a model, from graphs and without, on whatever device the model is on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import decoder
import hal

TINY = Path(__file__).parents[1] / "examples" / "tiny-qwen3"
BLOCK, BLOCKS = 16, 10
ROOM = BLOCK * BLOCKS

Choose = Callable[[Tensor, Tensor, Tensor], Tensor]


def greedy(logits: Tensor, seeds: Tensor, offsets: Tensor) -> Tensor:
    """The most probable token of each row."""
    del seeds, offsets
    return logits.argmax(-1)


def drawn(logits: Tensor, seeds: Tensor, offsets: Tensor) -> Tensor:
    """A token of each row, by the row's seed and how far it has come."""
    return hal.ops.sample(hal.ops.softmax(logits), seed=seeds, offset=offsets)


class Engine:
    """Sequences that come and go, each with blocks of its own and a seed.

    Attributes:
        logits: [rows, vocab_size], those of the last step.
    """

    logits: Tensor

    def __init__(self, model: Any, sequences: int, choose: Choose = greedy) -> None:
        self.model, self.choose, self.device = model, choose, model.head.device
        self.cache = model.new_cache(BLOCKS * sequences, BLOCK)
        blocks = torch.arange(BLOCKS * sequences, dtype=torch.int32, device=self.device)
        self.table = blocks.view(-1, BLOCKS)
        self.seeds = torch.arange(sequences, device=self.device) + 7
        self.past = [0] * sequences

    def batch(self, new: dict[int, Sequence[int]]) -> tuple[Tensor, decoder.Batch, Tensor]:
        """New tokens of some sequences, where they belong, and the sequences' seeds."""
        rows = list(new)
        counts = [len(new[row]) for row in rows]
        batch = decoder.Batch.of([self.past[r] for r in rows], counts, self.table[rows], BLOCK)
        tokens = torch.tensor([token for row in rows for token in new[row]], device=self.device)
        return tokens, batch, self.seeds[rows]

    def step(self, new: dict[int, Sequence[int]]) -> dict[int, int]:
        """Give some sequences new tokens; return the one chosen after each."""
        self.logits, chosen = self.forward(*self.batch(new))
        for row, tokens in new.items():
            self.past[row] += len(tokens)
        return dict(zip(new, chosen.tolist(), strict=True))

    def forward(self, tokens: Tensor, batch: decoder.Batch, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and a token of each sequence."""
        return self.chosen(self.model.hidden(tokens, batch, self.cache), batch, seeds)

    def chosen(self, hidden: Tensor, batch: decoder.Batch, seeds: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.logits(hidden, batch)
        return logits, self.choose(logits, seeds, batch.positions[batch.outputs])


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
    """The same, with prefill of at most ``most`` tokens and decode from graphs."""

    def __init__(
        self,
        model: Any,
        sequences: int,
        most: int,
        way: Any = hal.graphs.breakable,
        choose: Choose = greedy,
    ) -> None:
        super().__init__(model, sequences, choose)
        self.prefill, self.decode = self._prefill(most, way), self._decode(sequences)
        assert not self.cache.any()

    def _prefill(self, most: int, way: Any) -> hal.graphs.Captured:
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

        tokens, batch, _ = self.batch({0: [0] * most})
        return way(
            hidden,
            *(tokens, *fields(batch)),
            at=hal.ops.paged_attention,
            eager=("block_table", "seq_lens", "cu_seqlens", "max_new", "max_len"),
            pad={"tokens": 0, "positions": 0, "slots": -1},
        )

    def _decode(self, sequences: int) -> hal.graphs.Captured:
        def decode(
            tokens: Tensor,
            positions: Tensor,
            slots: Tensor,
            block_table: Tensor,
            seq_lens: Tensor,
            cu_seqlens: Tensor,
            seeds: Tensor,
        ) -> tuple[Tensor, Tensor]:
            batch = batch_of(positions, slots, block_table, seq_lens, cu_seqlens, 1, ROOM)
            hidden = self.model.hidden(tokens, batch, self.cache)
            logits = torch.nn.functional.linear(hidden, self.model.head)
            return logits, self.choose(logits, seeds, positions)

        tokens, batch, seeds = self.batch({row: [0] for row in range(sequences)})
        return hal.graphs.capture(
            decode,
            *(tokens, *fields(batch)[:5], seeds),
            pad={
                "tokens": 0,
                "positions": 0,
                "slots": -1,
                "block_table": 0,
                "seeds": 0,
                "seq_lens": 0,
                "cu_seqlens": "last",
            },
        )

    def forward(self, tokens: Tensor, batch: decoder.Batch, seeds: Tensor) -> tuple[Tensor, Tensor]:
        if batch.max_new == 1:
            return self.decode(tokens, *fields(batch)[:5], seeds)
        return self.chosen(self.prefill(tokens, *fields(batch)), batch, seeds)


def prompt(seed: int, count: int) -> list[int]:
    return torch.randint(1, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Served(NamedTuple):
    """The tokens after each step, and the logits that they were chosen by."""

    said: list[dict[int, int]]
    logits: list[Tensor]

    @property
    def tokens(self) -> list[int]:
        return [token for said in self.said for token in said.values()]

    @property
    def gap(self) -> float:
        """By how much the most probable token leads, where it leads least."""
        top = torch.cat([logits.topk(2, dim=-1).values for logits in self.logits])
        return (top[:, 0] - top[:, 1]).min().item()


def serve(engine: Engine, steps: int, given: list[dict[int, int]] | None = None) -> Served:
    """Prompts between buckets, above the largest, several at once, and batches that change.

    Each sequence goes on with what it said, or with what was said elsewhere.
    """
    said: list[dict[int, int]] = []
    logits: list[Tensor] = []

    def step(new: dict[int, Sequence[int]]) -> None:
        said.append(engine.step(new))
        logits.append(engine.logits)

    def last(row: int) -> int:
        before = said if given is None else given[: len(said)]
        return next(each[row] for each in reversed(before) if row in each)

    def go_on(rows: Sequence[int]) -> None:
        for _ in range(steps):
            step({row: [last(row)] for row in rows})

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
    assert len(Served(said, logits).tokens) == 13 * steps + 7
    return Served(said, logits)


# Of float32 logits, which are 1.4e-5 from those of float64 on a host. Where the most probable token
# leads by more than twice as much it is the same one.
ROUNDING = 1e-4


def same(model: Any, way: Any, steps: int, choose: Choose = greedy) -> Graphed:
    """Serve a float32 model from graphs, which are returned, and without: the tokens are the same.

    A bucket has more rows than what fills it, and for another number of rows a library may sum in
    another order. So the logits are as close as float32 lets them be, and no token hangs on that.
    """
    plain, graphed = Engine(model, 5, choose), Graphed(model, 5, 32, way, choose)
    want, got = serve(plain, steps), serve(graphed, steps)
    assert got.said == want.said
    assert len(set(want.tokens)) > 10
    assert want.gap > 2 * ROUNDING or choose is not greedy
    logits = torch.cat(got.logits), torch.cat(want.logits)
    torch.testing.assert_close(*logits, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(graphed.cache, plain.cache, rtol=ROUNDING, atol=ROUNDING)
    stats = graphed.prefill.stats()
    assert stats.replays == {16: 1, 12: 1, 8: 1, 32: 1}
    assert stats.fallbacks == {"more than 32 tokens": 1}
    stats = graphed.decode.stats()
    assert stats.replays == {1: steps, 4: steps, 2: 2 * steps, 5: steps}
    assert stats.fallbacks == {}
    return graphed


def calls(engine: Graphed, counts: Iterable[int]) -> dict[str, list[Callable[[], Any]]]:
    """What calls prefill, for some numbers of tokens, and decode, for any number of sequences."""
    prompts = [engine.batch({0: prompt(count, count)}) for count in counts]
    every = range(1, len(engine.past) + 1)
    batches = [engine.batch({row: [row + 1] for row in range(count)}) for count in every]

    def call(captured: hal.graphs.Captured, *given: Any) -> Callable[[], Any]:
        return lambda: captured(*given)

    return {
        "prefill": [call(engine.prefill, t, *fields(b)) for t, b, _ in prompts],
        "decode": [call(engine.decode, t, *fields(b)[:5], s) for t, b, s in batches],
    }


def level(device: torch.device, replays: int, each: Sequence[Callable[[], Any]]) -> None:
    """Replay graphs many times, in turn: they take no more memory, and compute what they did."""
    module = torch.get_device_module(device.type)

    def taken() -> tuple[int, int]:
        module.synchronize()
        return module.memory_reserved(), module.memory_allocated()

    first = [call() for call in each]
    for call in each:
        call()
    before = taken()
    for call in itertools.islice(itertools.cycle(each), replays):
        call()
    assert taken() == before
    again = [call() for call in each]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
