"""From logits to tokens, with the vocabulary of Qwen3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from case import Arguments, Case, randn
from judges import by_tokens

ROWS = (1, 8, 32, 128)
VOCAB = 151936
LIMITS = {
    "plain": (),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "top_k, top_p": ("top_k", "top_p"),
    "all": ("top_k", "top_p", "min_p"),
}


def limits(device: torch.device, rows: int) -> dict[str, Any]:
    """A limit of each kind for each row, as engines have them."""
    return {
        "top_k": torch.full((rows,), 50, dtype=torch.int32, device=device),
        "top_p": torch.full((rows,), 0.9, device=device),
        "min_p": torch.full((rows,), 0.05, device=device),
    }


def logits(device: torch.device, rows: int, vocab: int) -> torch.Tensor:
    return randn(device, rows, vocab, dtype=torch.float32, scale=3.0)


def sample(rows: int, vocab: int, kind: str) -> Case:
    def make(device: torch.device) -> Arguments:
        given = limits(device, rows)
        seed = torch.randint(2**62, (rows,), device=device)
        noise = {"seed": seed, "offset": torch.zeros((), dtype=torch.int64, device=device)}
        probs = logits(device, rows, vocab).softmax(-1)
        return (probs,), {**{name: given[name] for name in LIMITS[kind]}, **noise}

    shape, moved = f"({rows}, {vocab}) {kind}", rows * vocab * 4
    return Case("sampling", "sample", shape, rows, make, moved, judge=by_tokens)


def softmax(rows: int, vocab: int) -> Case:
    def make(device: torch.device) -> Arguments:
        temperature = torch.full((rows,), 0.7, device=device)
        return (logits(device, rows, vocab),), {"temperature": temperature}

    shape, moved = f"({rows}, {vocab})", rows * vocab * 8
    return Case("sampling", "softmax", shape, rows, make, moved)


def renorm(kind: str, rows: int, vocab: int) -> Case:
    def make(device: torch.device) -> Arguments:
        return (logits(device, rows, vocab).softmax(-1), limits(device, rows)[kind]), {}

    shape, moved = f"({rows}, {vocab})", rows * vocab * 8
    return Case("sampling", f"{kind}_renorm", shape, rows, make, moved)


def bitmask(rows: int, vocab: int) -> Case:
    """Half of the bits are set; only the logits that are forbidden have to be written."""

    def make(device: torch.device) -> Arguments:
        words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), device=device)
        return (logits(device, rows, vocab), words.int()), {}

    shape, moved = f"({rows}, {vocab})", rows * (vocab // 8 + vocab * 2)
    return Case("sampling", "apply_token_bitmask_", shape, rows, make, moved)


def samplers() -> Iterator[Case]:
    for kind in LIMITS:
        for rows in ROWS if kind in ("plain", "top_k, top_p") else (1, 32, 128):
            yield sample(rows, VOCAB, kind)
    for rows in (1, 32, 128):
        yield softmax(rows, VOCAB)
        yield bitmask(rows, VOCAB)
        for kind in ("top_k", "top_p", "min_p"):
            yield renorm(kind, rows, VOCAB)
