"""Records of the attention ops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample

HALVES = (torch.float16, torch.bfloat16)
LENGTHS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 257]
HEAD_DIMS = [1, 2, 3, 7, 8, 31, 33, 64, 65, 80, 96, 128, 129, 192, 255, 256]
RAGGED = ([3, 0, 1, 9, 2], [5, 4, 0, 9, 33])


class Maker:
    """Draws the arguments of attention calls, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

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
        q = self.randn(tokens, heads[0], head_dim, dtype=dtype)
        k = self.randn(keys, heads[1], head_dim, dtype=dtype)
        v = self.randn(keys, heads[1], value_head_dim, dtype=dtype)
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
                    cache[block, :filled] = self.randn(filled, *cache.shape[2:])
        caches = [cache.to(cache_dtype or dtype) for cache in caches]
        q = self.randn(sum(lens[0]), heads[0], head_dim, dtype=dtype)
        seq_lens = torch.tensor(lens[1], dtype=index)
        bounds = [max(part, default=0) for part in lens]
        return [q, *caches, table, seq_lens, starts(lens[0], index), *bounds]


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


def varlen_value_samples(maker: Maker) -> Iterator[Sample]:
    q, k, v, *rest = maker.varlen()
    causal = {"causal": True}
    yield Sample("NaN in q", (spoiled(q, (5, 1, 2), math.nan), k, v, *rest), causal)
    # Token 13 is the fifth key of a sequence with nine: earlier queries do not see it.
    yield Sample("NaN in k", (q, spoiled(k, (13, 1, 2), math.nan), v, *rest), causal)
    for value in (math.nan, math.inf, -math.inf):
        yield Sample(f"{value} in v", (q, k, spoiled(v, (13, 1, 2), value), *rest), causal)
    yield Sample("all NaN", (q * math.nan, k * math.nan, v * math.nan, *rest), causal)
    for value in (1e4, 6e4, 1e-38, 1e38):
        yield Sample(f"v of {value}", (q, k, v.sign() * value, *rest), causal)
    yield Sample("v of 6e4, float16", tuple(x.half() for x in (q, k, v * 0 + 6e4)) + tuple(rest))
    yield Sample("all 0", (q * 0, k * 0, v * 0, *rest))
    yield Sample("ties", (q * 0 + 2, k * 0 + 4, v, *rest), causal)
    # Integers, so that the scores are exact: rounding scores of 1e4 would hide everything else.
    q = torch.zeros_like(q).index_fill_(2, torch.tensor([3]), 100.0)
    k = torch.zeros_like(k)
    k[:, :, 3] = torch.arange(-25.0, 26.0).repeat(2)[: k.numel() // 16].view(-1, 2) * 4
    yield Sample("scores of 1e4", (q, k, v, *rest), {"scale": 1.0, "causal": True})
    yield Sample("scores of -1e4", (-q, k, v, *rest), {"scale": 1.0})
    yield Sample("softcap of scores of 1e4", (q, k, v, *rest), {"scale": 1.0, "softcap": 30.0})


def varlen_samples() -> Iterator[Sample]:
    maker = Maker(0)
    yield from shape_samples(maker.varlen)
    yield from option_samples(maker.varlen(), maker.randn(4))
    args = maker.varlen(dtype=torch.bfloat16)
    yield Sample("every option, bfloat16", tuple(args), {"softcap": 2.0, "sinks": maker.randn(4)})
    yield from loose_samples(maker.varlen())
    yield from varlen_value_samples(maker)
    q, k, v, *rest = maker.varlen()
    packed = torch.cat((k, v), dim=-1)
    yield Sample("k and v of one tensor", (q, packed[..., :16], packed[..., 16:], *rest))
    yield Sample("one head for all", (q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape), *rest))


def paged_samples() -> Iterator[Sample]:
    maker = Maker(1)
    yield from shape_samples(maker.paged)
    yield from option_samples(maker.paged(), maker.randn(4))
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


def merge_samples() -> Iterator[Sample]:
    maker = Maker(2)

    def sides(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        lse = torch.float64 if dtype == torch.float64 else torch.float32
        side = [maker.randn(*shape, dtype=dtype), maker.randn(*shape[:2], dtype=lse)]
        return [*side, maker.randn(*shape, dtype=dtype), maker.randn(*shape[:2], dtype=lse)]

    for size in [0, 1, 2, 3, 7, 8, 16, 33, 64, 65, 127, 128, 129, 256]:
        for dtype in (torch.float32, *HALVES):
            yield Sample(f"head_dim {size} {dtype}", tuple(sides(5, 3, size, dtype=dtype)))
    for shape in [(0, 3, 8), (3, 0, 8), (1, 1, 1), (1408, 1, 2), (257, 3, 16)]:
        yield Sample(f"shape {shape}", tuple(sides(*shape)))
    yield Sample("float64", tuple(sides(5, 3, 16, dtype=torch.float64)))
    out_a, lse_a, out_b, lse_b = sides(6, 4, 16)
    for value in (1e4, -1e4, 1e30, 1e-38, 88.0, -104.0):
        yield Sample(f"lse {value} and 0", (out_a, lse_a * 0 + value, out_b, lse_b * 0))
        yield Sample(f"lse {value} twice", (out_a, lse_a * 0 + value, out_b, lse_b * 0 + value))
    yield Sample("out of 3e38", (out_a.sign() * 3e38, lse_a, out_a.sign() * 3e38, lse_b))
    yield Sample("NaN in out", (spoiled(out_a, (2, 1, 3), math.nan), lse_a, out_b, lse_b))
    yield Sample("NaN in lse", (out_a, spoiled(lse_a, (2, 1), math.nan), out_b, lse_b))
    for value in (math.inf, -math.inf):
        holes_a, holes_b = spoiled(lse_a, (slice(0, 3),), value), lse_b.clone()
        yield Sample(f"lse_a {value}", (out_a, holes_a, out_b, lse_b))
        yield Sample(f"lse_b {value}", (out_b, lse_b, out_a, holes_a))
        yield Sample(
            f"lse_a {value}, out_a NaN", (out_a * math.nan, lse_a * 0 + value, out_b, lse_b)
        )
        holes_b[1:4] = -math.inf
        yield Sample(f"some lse {value}, -inf or both", (out_a, holes_a, out_b, holes_b))
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (out_a, lse_a)]
    yield Sample("heads first", (*strided, out_b, lse_b))
    yield Sample("lse expanded", (out_a, lse_a[:1].expand(6, 4), out_b, lse_b[:, :1].expand(6, 4)))
    doubled = torch.stack((out_a, out_a), dim=-1)[..., 1]
    yield Sample("every other column", (doubled, lse_a, out_b, lse_b))


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


def varlen_refusals() -> Iterator[Refusal]:
    q, k, v, cu_q, cu_k, *bounds = args = tuple(Maker(3).varlen())
    yield from option_refusals(args)
    message = r"k must be \[tokens, kv_heads, head_dim\]; k is \[51, 32\] float32"
    yield Refusal(message, (q, k.flatten(1), v, cu_q, cu_k, *bounds))
    message = r"k must be float32; k is \[51, 2, 16\] float16"
    yield Refusal(message, (q, k.half(), v, cu_q, cu_k, *bounds))
    message = r"v must be float32; v is \[51, 2, 16\] float64"
    yield Refusal(message, (q, k, v.double(), cu_q, cu_k, *bounds))
    message = (
        r"v must be \[51, 2, value_head_dim\], as many tokens and heads as k; v is \[50, 2, 16\]"
    )
    yield Refusal(message, (q, k, v[1:], cu_q, cu_k, *bounds))
    message = r"cu_seqlens_q must be int32 or int64; cu_seqlens_q is \[6\] float32"
    yield Refusal(message, (q, k, v, cu_q.float(), cu_k, *bounds))
    message = r"cu_seqlens_q must be \[sequences \+ 1\]; cu_seqlens_q is \[0\] int32"
    yield Refusal(message, (q, k, v, cu_q[:0], cu_k, *bounds))
    message = r"cu_seqlens_k must be int32 or int64; cu_seqlens_k is \[6\] int16"
    yield Refusal(message, (q, k, v, cu_q, cu_k.short(), *bounds))
    message = r"cu_seqlens_k must have shape \[6\]; cu_seqlens_k is \[5\] int32"
    yield Refusal(message, (q, k, v, cu_q, cu_k[1:], *bounds))
    message = r"kv_heads, 0; q is"
    yield Refusal(message, (q, k[:, :0], v[:, :0], cu_q, cu_k, *bounds))


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


def merge_refusals() -> Iterator[Refusal]:
    out, lse = torch.zeros(3, 2, 8), torch.zeros(3, 2)
    message = r"out_a must be floating point; out_a is \[3, 2, 8\] int64"
    yield Refusal(message, (out.long(), lse, out, lse))
    message = r"out_a must be \[tokens, heads, head_dim\]; out_a is \[3, 2\] float32"
    yield Refusal(message, (lse, lse, out, lse))
    message = r"out_b must be float32; out_b is \[3, 2, 8\] float16"
    yield Refusal(message, (out, lse, out.half(), lse))
    message = r"out_b must have shape \[3, 2, 8\]; out_b is \[3, 2, 7\] float32"
    yield Refusal(message, (out, lse, out[..., 1:], lse))
    message = r"lse_a must be float32; lse_a is \[3, 2\] float64"
    yield Refusal(message, (out, lse.double(), out, lse))
    message = r"lse_b must be float64; lse_b is \[3, 2\] float32"
    yield Refusal(message, (out.double(), lse.double(), out.double(), lse))
    message = r"lse_a must have shape \[3, 2\]; lse_a is \[2, 3\] float32"
    yield Refusal(message, (out, lse.t(), out, lse))


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


def varlen_oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    cuts = cu_seqlens_k.tolist()
    keys, values = ([x.double().numpy()[a:b] for a, b in pairwise(cuts)] for x in (k, v))
    return sequences_oracle(q, keys, values, cu_seqlens_q, v.shape[2], options)


def pages(cache: Tensor, scale: Any, block_table: Tensor, seq_lens: Tensor) -> list[np.ndarray]:
    """The rows of each sequence, gathered key by key."""
    rows = cache.double().numpy()
    factor = np.ones(1) if scale is None else np.asarray(scale, dtype=np.float64).reshape(-1)
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


def merge_oracle(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    out = np.zeros(out_a.shape)
    lse = np.full(lse_a.shape, -np.inf)
    outs = [x.double().numpy() for x in (out_a, out_b)]
    lses = [x.double().numpy() for x in (lse_a, lse_b)]
    for place in np.ndindex(*lse.shape):
        sides = [(y[place], x[place]) for x, y in zip(outs, lses, strict=True)]
        sides = [side for side in sides if not np.isinf(side[0])]
        if sides:
            weights = [
                1 / sum(np.exp(np.clip(b - a, -800, 700)) for b, _ in sides) for a, _ in sides
            ]
            out[place] = sum(w * x for w, (_, x) in zip(weights, sides, strict=True))
            with np.errstate(invalid="ignore"):
                lse[place] = np.logaddexp.reduce([a for a, _ in sides])
    return torch.from_numpy(out), torch.from_numpy(lse)


RECORDS = [
    Record("varlen_attention", varlen_samples, varlen_refusals, varlen_oracle),
    Record("paged_attention", paged_samples, paged_refusals, paged_oracle),
    Record("merge_attention_states", merge_samples, merge_refusals, merge_oracle),
]
