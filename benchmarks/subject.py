"""A model on hal and on transformers, and what its steps are given in each phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from model import PAGE, Model, Step
from steps import Phase

# What a step takes in each phase; which of it counts tokens, and with what the rest of a bucket is
# filled; what else does where attention is in the graph too, and what attention alone takes.
NAMES = {
    "prefill": ("tokens", "positions", "slots", "starts", "last"),
    "decode": ("tokens", "positions", "slots", "table", "lens", "starts", "last"),
}
PAD: dict[str, dict[str, Any]] = {
    "prefill": {"tokens": 0, "positions": 0, "slots": -1},
    "decode": {"tokens": 0, "positions": 0, "slots": -1, "last": 0},
}
WHOLE: dict[str, dict[str, Any]] = {
    "prefill": {},
    "decode": {"table": 0, "lens": 0, "starts": "last"},
}
FREE = {"prefill": ("starts",), "decode": ("table", "lens", "starts")}


@attrs.frozen(eq=False)
class Subject:
    """A model on hal and on transformers, and what its steps are given.

    Attributes:
        peer: That of transformers.
        model: That on hal.
        kind: ``prefill`` or ``decode``.
        tokens: [sequences, keys] int64.
        table: [sequences, pages] int32, in which the pages lie anywhere.
        cache: The keys and values of all of them.
    """

    peer: Any
    model: Model
    kind: str
    tokens: Tensor
    table: Tensor
    cache: Tensor

    @classmethod
    def of(cls, peer: Any, model: Model, phases: Sequence[Phase]) -> Subject:
        """One for the steps of all ``phases``, with what came before in its cache."""
        rows, keys = max(p.rows for p in phases), max(p.keys for p in phases)
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(peer.config.vocab_size, (rows, keys), generator=generator)
        pages = -(-keys // PAGE)
        table = torch.randperm(rows * pages, generator=generator).int().view(rows, pages)
        place, kind = peer.device, phases[0].name
        cache = model.new_cache(rows * pages)
        made = cls(peer, model, kind, tokens.to(place), table.to(place), cache)
        if past := keys - max(p.new for p in phases):
            for row in range(rows):
                model(
                    Step.of(made.tokens[row : row + 1, :past], 0, made.table[row : row + 1]), cache
                )
        return made

    def step(self, phase: Phase) -> Step:
        """What a step takes."""
        past = phase.keys - phase.new
        new = self.tokens[: phase.rows, past : phase.keys]
        return Step.of(new, past, self.table[: phase.rows])

    def example(self, count: int) -> list[Tensor]:
        """Arguments of ``function`` for so many tokens, which do for fewer as well."""
        rows = 1 if self.kind == "prefill" else count
        keys = count if self.kind == "prefill" else self.tokens.shape[1]
        step = self.step(Phase(self.kind, rows, count // rows, keys))
        if rows == 1 and self.kind == "prefill":
            # A sequence of one token lies within the rows of the smallest bucket.
            step = step._replace(starts=step.starts.clamp(max=1), last=step.last * 0)
        return [getattr(step, name) for name in NAMES[self.kind]]

    def function(self) -> Callable[..., Tensor]:
        """A step as a function of tensors, of any number of tokens."""
        model, cache, keys = self.model, self.cache, self.tokens.shape[1]

        def prefill(
            tokens: Tensor, positions: Tensor, slots: Tensor, starts: Tensor, last: Tensor
        ) -> Tensor:
            new = tokens.shape[0]
            # Nothing is read from the cache.
            step = Step(tokens, positions, slots, starts, starts, starts, last, new, new)
            return model(step, cache)

        def decode(
            tokens: Tensor,
            positions: Tensor,
            slots: Tensor,
            table: Tensor,
            lens: Tensor,
            starts: Tensor,
            last: Tensor,
        ) -> Tensor:
            step = Step(tokens, positions, slots, table, lens, starts, last, 1, keys)
            return model(step, cache)

        return prefill if self.kind == "prefill" else decode

    def stored(self, step: Step) -> Tensor:
        """[2, tokens, kv_heads, head_dim]: the new keys and values of the last layer."""
        return self.cache[-1].flatten(1, 2)[:, step.slots]

    def forget(self, step: Step) -> None:
        """Let what a step stores be NaN until it does."""
        self.cache.flatten(2, 3)[:, :, step.slots] = float("nan")
