"""Record of the attention over a paged cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.attention import (
    RAGGED,
    Maker,
    combinations,
    loose_samples,
    mixed_indices,
    option_refusals,
    option_samples,
    sequences_oracle,
    shape_samples,
    spoiled,
    starts,
    within,
)
from hal.testing.records.kv_cache import factors_of


def paged_samples() -> Iterator[Sample]:
    maker = Maker(1)
    yield from shape_samples(maker.paged)
    yield from option_samples(maker.paged(), maker(4))
    yield from loose_samples(maker.paged())
    for size in (1, 2, 3, 7, 8, 16, 33, 64, 128):
        yield Sample(f"blocks of {size}", tuple(maker.paged(block_size=size)), {"causal": True})
    yield Sample("decode", tuple(maker.paged(([1] * 5, [1, 4, 17, 0, 33]), block_size=16)))
    fp8 = [(torch.float8_e4m3fn, torch.float32), (torch.float8_e5m2, torch.bfloat16)]
    for cache_dtype, dtype in [*fp8, (torch.float8_e4m3fn, torch.float16)]:
        args = tuple(maker.paged(dtype=dtype, cache_dtype=cache_dtype))
        yield Sample(f"{cache_dtype} cache, {dtype}", args, {"causal": True})
        yield Sample(f"{cache_dtype}, number, {dtype}", args, {"k_scale": 0.25, "v_scale": 1.7})
        one = {"k_scale": torch.tensor(0.3), "v_scale": torch.tensor([2.5])}
        yield Sample(f"{cache_dtype}, one element, {dtype}", args, one)
        heads = {"k_scale": torch.tensor([0.3, 1.5]), "v_scale": torch.tensor([2.5, 0.7])}
        yield Sample(f"{cache_dtype}, for each head, {dtype}", args, heads)
    yield from paged_combinations()
    q, k_cache, v_cache, *rest = maker.paged()
    both = torch.stack((k_cache, v_cache), dim=1)
    yield Sample("two halves of one tensor", (q, both[:, 0], both[:, 1], *rest), {"causal": True})
    swapped = [c.transpose(1, 2).contiguous().transpose(1, 2) for c in (k_cache, v_cache)]
    yield Sample("heads before the block size", (q, *swapped, *rest), {"causal": True})
    table, seq_lens, cu_seqlens_q, *bounds = rest
    args = (q, k_cache, v_cache, table[:, :-1], seq_lens, cu_seqlens_q, *bounds)
    yield Sample("a table of exactly the blocks", args)
    empty = [c[:0] for c in (k_cache, v_cache)]
    args = (q, *empty, table, torch.zeros_like(seq_lens), cu_seqlens_q, *bounds)
    yield Sample("a cache without blocks", args)
    args = (q, k_cache, v_cache, table[:, :0], torch.zeros_like(seq_lens), cu_seqlens_q, *bounds)
    yield Sample("a table without columns", args)
    block = int(table[3, 1])
    for name, where in [("k", 1), ("v", 2)]:
        caches = [q, k_cache, v_cache]
        caches[where] = spoiled(caches[where], (block, 2, 0, 3), math.nan)
        yield Sample(f"NaN in {name}_cache", (*caches, *rest), {"causal": True})
    yield Sample("NaN in q", (spoiled(q, (3, 1, 2), math.nan), k_cache, v_cache, *rest))


def paged_combinations() -> Iterator[Sample]:
    maker = Maker(8)
    yield from combinations(maker.paged, maker(6))
    yield from mixed_indices(maker.paged(), (3, 4, 5))
    every = {"scale": 0.4, "causal": True, "window": (4, 2), "softcap": 2.0, "sinks": maker(4)}
    heads = {"k_scale": torch.tensor([0.3, 1.5]), "v_scale": torch.tensor([2.5, 0.7])}
    for cache_dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        args = tuple(maker.paged(dtype=torch.bfloat16, cache_dtype=cache_dtype))
        yield Sample(f"{cache_dtype}, every option", args, every | heads)
        yield Sample(f"{cache_dtype}, k_scale alone", args, {"k_scale": 0.3, "window": (3, 3)})
        yield Sample(f"{cache_dtype}, v_scale alone", args, {"v_scale": 0.3, "window": (3, 3)})
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            scales = {name: scale.to(dtype) for name, scale in heads.items()}
            yield Sample(f"{cache_dtype}, {dtype} scales", args, scales)
    args = maker.paged(dtype=torch.float64, cache_dtype=torch.float8_e4m3fn)
    yield Sample("float64 by an 8-bit cache", tuple(args), every | heads)


def paged_refusals() -> Iterator[Refusal]:
    q, k_cache, v_cache, table, lens, *rest = args = tuple(Maker(3).paged())
    yield from option_refusals(args)
    shape = r"\[17, 4, 2, 16\]"
    message = (
        r"k_cache must be \[blocks, block_size, kv_heads, head_dim\]; k_cache is \[17, 4, 32\]"
    )
    yield Refusal(message, (q, k_cache.flatten(2), v_cache, table, lens, *rest))
    message = (
        rf"k_cache must be float32 or float8_e4m3fn or float8_e5m2; k_cache is {shape} float16"
    )
    yield Refusal(message, (q, k_cache.half(), v_cache, table, lens, *rest))
    message = r"v_cache must have the dtype, blocks, block size and heads of k_cache; v_cache is "
    fp8 = torch.float8_e4m3fn
    yield Refusal(message, (q, k_cache, v_cache.to(fp8), table, lens, *rest))
    yield Refusal(message, (q, k_cache, v_cache[1:], table, lens, *rest))
    message = r"k_cache must have a block size of at least 1; k_cache is \[17, 0, 2, 16\] float32"
    yield Refusal(message, (q, k_cache[:, :0], v_cache[:, :0], table, lens, *rest))
    message = r"block_table must be int32 or int64; block_table is \[5, 10\] float32"
    yield Refusal(message, (q, k_cache, v_cache, table.float(), lens, *rest))
    message = (
        r"block_table must be \[5, blocks\], a row for each sequence; block_table is \[4, 10\]"
    )
    yield Refusal(message, (q, k_cache, v_cache, table[1:], lens, *rest))
    message = r"seq_lens must have shape \[5\]; seq_lens is \[6\] int32"
    yield Refusal(message, (q, k_cache, v_cache, table, starts(RAGGED[1]), *rest))
    message = r"k_scale goes with an 8-bit cache; k_cache is "
    yield Refusal(message, args, {"k_scale": 1.0})
    args = (q, k_cache.to(fp8), v_cache.to(fp8), table, lens, *rest)
    message = r"v_scale must be positive and finite; v_scale is 0.0"
    yield Refusal(message, args, {"v_scale": 0.0})
    message = (
        r"k_scale must have one element or one for each of 2 kv_heads; k_scale is \[3\] float32"
    )
    yield Refusal(message, args, {"k_scale": torch.ones(3)})


def pages(cache: Tensor, scale: Any, block_table: Tensor, seq_lens: Tensor) -> list[np.ndarray]:
    """The rows of each sequence, gathered key by key."""
    rows = cache.double().numpy()
    factor = factors_of(scale)
    size, table = cache.shape[1], block_table.tolist()
    found = []
    for sequence, length in enumerate(seq_lens.tolist()):
        picked = [rows[table[sequence][j // size], j % size] for j in range(length)]
        stacked = np.array(picked).reshape(length, *cache.shape[2:])
        found.append(stacked * factor[:, None])
    return found


def paged_oracle(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    keys = pages(k_cache, options.get("k_scale"), block_table, seq_lens)
    values = pages(v_cache, options.get("v_scale"), block_table, seq_lens)
    return sequences_oracle(q, keys, values, cu_seqlens_q, v_cache.shape[3], options)


def paged_parts(given: dict[str, Any]) -> Iterator[Part]:
    """Rows are sequences."""
    for rows in spans(len(given["seq_lens"])):
        queries, starts_q = within(given["cu_seqlens_q"], rows)
        part = cut(given, ["seq_lens", "block_table"], rows)
        part |= {"q": given["q"][queries], "cu_seqlens_q": starts_q}
        yield Part(part, (queries, queries))


RECORDS = [
    Record(
        "paged_attention",
        paged_samples,
        paged_refusals,
        paged_oracle,
        parts=paged_parts,
        far=("q", "k_cache", "v_cache"),
    ),
]
