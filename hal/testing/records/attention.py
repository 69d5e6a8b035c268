"""What the attentions over ragged sequences have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Refusal, Sample
from hal.testing.records.draws import Draws

INDEX = (torch.int32, torch.int64)
HALVES = (torch.float16, torch.bfloat16)
LENGTHS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 257]
HEAD_DIMS = [1, 2, 3, 7, 8, 31, 33, 64, 65, 80, 96, 128, 129, 192, 255, 256]
RAGGED = ([3, 0, 1, 9, 2], [5, 4, 0, 9, 33])


class Maker(Draws):
    """Draws the arguments of attention calls."""

    def varlen(
        self,
        lens: tuple[Sequence[int], Sequence[int]] = RAGGED,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        value_head_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        index: torch.dtype = torch.int32,
    ) -> list[Any]:
        """Arguments of ``varlen_attention`` for sequences of these queries and keys."""
        value_head_dim = head_dim if value_head_dim is None else value_head_dim
        tokens, keys = sum(lens[0]), sum(lens[1])
        q = self(tokens, heads[0], head_dim, dtype=dtype)
        k = self(keys, heads[1], head_dim, dtype=dtype)
        v = self(keys, heads[1], value_head_dim, dtype=dtype)
        bounds = [max(part, default=0) for part in lens]
        return [q, k, v, *(starts(part, index) for part in lens), *bounds]

    def paged(
        self,
        lens: tuple[Sequence[int], Sequence[int]] = RAGGED,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        value_head_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        index: torch.dtype = torch.int32,
        block_size: int = 4,
        cache_dtype: torch.dtype | None = None,
    ) -> list[Any]:
        """Arguments of ``paged_attention``; what is not to be used is NaN, -1 or out of range."""
        value_head_dim = head_dim if value_head_dim is None else value_head_dim
        needed = [-(-length // block_size) for length in lens[1]]
        blocks = sum(needed) + 2
        order = torch.randperm(blocks, generator=self.generator).tolist()
        table = torch.full((len(needed), max(needed, default=0) + 1), -1, dtype=index)
        table[:, -1] = 2**31 - 1
        caches = [
            torch.full((blocks, block_size, heads[1], d), math.nan)
            for d in (head_dim, value_head_dim)
        ]
        for row, (count, length) in enumerate(zip(needed, lens[1], strict=True)):
            for column in range(count):
                block, filled = order.pop(), min(block_size, length - column * block_size)
                table[row, column] = block
                for cache in caches:
                    cache[block, :filled] = self(filled, *cache.shape[2:])
        caches = [cache.to(cache_dtype or dtype) for cache in caches]
        q = self(sum(lens[0]), heads[0], head_dim, dtype=dtype)
        seq_lens = torch.tensor(lens[1], dtype=index)
        bounds = [max(part, default=0) for part in lens]
        return [q, *caches, table, seq_lens, starts(lens[0], index), *bounds]


def within(cu_seqlens: Tensor, sequences: slice) -> tuple[slice, Tensor]:
    """The tokens of some sequences, and where each starts among them."""
    cuts = cu_seqlens[sequences.start : sequences.stop + 1]
    return slice(int(cuts[0]), int(cuts[-1])), cuts - cuts[0]


def starts(lens: Sequence[int], index: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([sum(lens[:i]) for i in range(len(lens) + 1)], dtype=index)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("causal", {"causal": True}),
    ("scale", {"scale": 0.5}),
    ("scale 0", {"scale": 0.0}),
    ("negative scale", {"scale": -0.3}),
    ("softcap", {"softcap": 0.7}),
    ("window (2, 0)", {"window": (2, 0)}),
    ("window (0, 0)", {"window": (0, 0)}),
    ("window (3, -1)", {"window": (3, -1)}),
    ("window (-1, 1)", {"window": (-1, 1)}),
    ("window (5, 5), causal", {"window": (5, 5), "causal": True}),
    ("window wider than anything", {"window": (2**31 - 1, 2**31 - 1)}),
]


def option_samples(args: list[Any], sinks: Tensor) -> Iterator[Sample]:
    for name, kwargs in OPTIONS:
        yield Sample(name, tuple(args), kwargs)
    yield Sample("sinks", tuple(args), {"sinks": sinks})
    yield Sample("sinks float64, causal", tuple(args), {"sinks": sinks.double(), "causal": True})
    yield Sample("a sink of -inf", tuple(args), {"sinks": torch.full_like(sinks, -math.inf)})
    every = {"scale": 0.4, "causal": True, "window": (4, -1), "softcap": 2.0, "sinks": 3 * sinks}
    yield Sample("every option", tuple(args), every)


def combinations(make: Any, sinks: Tensor) -> Iterator[Sample]:
    """Every option with every other, for three query heads to a head of the keys."""
    options = {"causal": True, "window": (3, 2), "softcap": 1.5, "sinks": sinks, "scale": 0.4}
    for i, chosen in enumerate(itertools.product((False, True), repeat=len(options))):
        kwargs = {name: options[name] for name, on in zip(options, chosen, strict=True) if on}
        args = make(heads=(6, 2), dtype=(torch.float32, *HALVES)[i % 3], index=INDEX[i % 2])
        yield Sample(f"{' and '.join(kwargs) or 'no option'} of GQA", tuple(args), kwargs)


def mixed_indices(args: list[Any], places: Sequence[int]) -> Iterator[Sample]:
    """Each of the index tensors in 64 bits beside the others in 32."""
    for i in places:
        given = [x.long() if i == j else x for j, x in enumerate(args)]
        yield Sample(f"argument {i} alone int64", tuple(given), {"causal": True})


def shape_samples(make: Any, **kwargs: Any) -> Iterator[Sample]:
    """Lengths, heads and head sizes, for either way to hold the keys."""
    for length in LENGTHS:
        lens = ([min(length, 5), 1], [length, 2])
        yield Sample(f"{length} keys", tuple(make(lens, **kwargs)), {"causal": True})
    for size in HEAD_DIMS:
        args = make(([2, 3], [6, 3]), head_dim=size, **kwargs)
        yield Sample(f"head_dim {size}", tuple(args), {"causal": True})
    for size, value_size in [(192, 128), (16, 1), (3, 65), (8, 0)]:
        args = make(head_dim=size, value_head_dim=value_size, **kwargs)
        yield Sample(f"head_dim {size}, of values {value_size}", tuple(args))
    for heads in [(1, 1), (3, 3), (3, 1), (12, 4), (16, 1), (0, 1)]:
        yield Sample(f"heads {heads}", tuple(make(heads=heads, **kwargs)), {"causal": True})
    for lens in [([], []), ([0], [0]), ([0, 0], [3, 2]), ([2, 1], [0, 0]), ([129], [129])]:
        yield Sample(f"lengths {lens}", tuple(make(lens, **kwargs)), {"causal": True})
    for dtype in (*HALVES, torch.float64):
        yield Sample(f"{dtype}", tuple(make(dtype=dtype, **kwargs)), {"causal": True})
    yield Sample("int64", tuple(make(index=torch.int64, **kwargs)))


def loose_samples(args: list[Any]) -> Iterator[Sample]:
    """Bounds above the lengths, padding behind the last query, views; q first, bounds last."""
    q, rest = args[0], args[1:]
    yield Sample("loose bounds", (*args[:-2], 100, 200), {"causal": True})
    padding = torch.full((3, *q.shape[1:]), math.nan)
    sinks = torch.ones(q.shape[1])
    yield Sample("padding", (torch.cat((q, padding)), *rest), {"causal": True, "sinks": sinks})
    yield Sample("heads first", (q.transpose(0, 1).contiguous().transpose(0, 1), *rest))
    yield Sample("head_dim strided", (torch.stack((q, q), dim=-1)[..., 0], *rest))
    yield Sample("part of a wider tensor", (torch.cat((q, q, q), dim=1)[:, 4:8], *rest))
    yield Sample("expanded", (q[:1].expand(q.shape), *rest), {"causal": True})


def spoiled(x: Tensor, where: tuple[int, ...], value: float) -> Tensor:
    x = x.clone()
    x[where] = value
    return x


def option_refusals(args: tuple[Any, ...]) -> Iterator[Refusal]:
    """Refusals of the arguments that both attentions share."""
    *tensors, max_q, max_k = args
    negative = "must not be negative; "
    yield Refusal(rf"max_seqlen_q {negative}max_seqlen_q is -1", (*tensors, -1, max_k))
    yield Refusal(rf"max_seqlen_k {negative}max_seqlen_k is -3", (*tensors, max_q, -3))
    yield Refusal(rf"softcap {negative}softcap is -1.0", args, {"softcap": -1.0})
    for window in [(1,), (1, 2, 3), (-2, 0), (0, -2)]:
        message = r"window must be \(left, right\), each at least 0 or -1 for no limit; window is "
        yield Refusal(message, args, {"window": window})
    yield Refusal(r"sinks must have shape \[4\]; sinks is \[2\]", args, {"sinks": torch.zeros(2)})
    message = r"sinks must be floating point; sinks is \[4\] int64"
    yield Refusal(message, args, {"sinks": torch.zeros(4, dtype=torch.int64)})
    q, rest = args[0], args[1:]
    yield Refusal(r"q must be floating point; q is \[15, 4, 16\] int32", (q.int(), *rest))
    message = r"q must be \[tokens, heads, head_dim\], head_dim at least 1; q is \[15, 64\]"
    yield Refusal(message, (q.flatten(1), *rest))
    message = r"q must have the head_dim of the keys, 16; q is \[15, 4, 8\] float32"
    yield Refusal(message, (q[..., :8], *rest))
    message = r"the heads of q must be a multiple of the kv_heads, 2; q is \[15, 3, 16\] float32"
    yield Refusal(message, (q[:, :3], *rest))


def one_head(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sink: float, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of one head of one sequence, query by query over the list of keys that it sees."""
    outs, lses = np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)
    left, right = options.get("window", (-1, -1))
    scale = options.get("scale")
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    softcap = options.get("softcap", 0.0)
    for i, query in enumerate(q):
        position = i + len(k) - len(q)
        first = 0 if left < 0 else max(0, position - left)
        last = len(k) - 1 if right < 0 else min(len(k) - 1, position + right)
        if options.get("causal", False):
            last = min(last, position)
        score = k[first : last + 1] @ query * scale if last >= first else np.zeros(0)
        score = softcap * np.tanh(score / softcap) if softcap else score
        everything = np.append(score, sink)
        if np.all(everything == -np.inf):
            continue
        top = everything.max()
        total = np.exp(everything - top).sum()
        lses[i] = top + np.log(total)
        outs[i] = np.exp(score - top) @ v[first : max(last + 1, first)] / total
    return outs, lses


def sequences_oracle(
    q: Tensor,
    keys: list[np.ndarray],
    values: list[np.ndarray],
    cu_seqlens_q: Tensor,
    value_head_dim: int,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    queries, bounds = q.double().numpy(), cu_seqlens_q.tolist()
    heads = q.shape[1]
    sinks = options.get("sinks")
    sinks = [-math.inf] * heads if sinks is None else sinks.tolist()
    out = np.zeros((*q.shape[:2], value_head_dim))
    lse = np.full(q.shape[:2], -np.inf)
    with np.errstate(all="ignore"):
        for b, (k, v) in enumerate(zip(keys, values, strict=True)):
            rows = slice(bounds[b], bounds[b + 1])
            for h in range(heads):
                shared = h // (heads // k.shape[1])
                out[rows, h], lse[rows, h] = one_head(
                    queries[rows, h], k[:, shared], v[:, shared], sinks[h], options
                )
    return torch.from_numpy(out), torch.from_numpy(lse)
