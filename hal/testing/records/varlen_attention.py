"""Record of the attention over ragged keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hal.testing.parts import spans
from hal.testing.record import Part, Record, Refusal, Sample
from hal.testing.records.attention import (
    Maker,
    combinations,
    loose_samples,
    mixed_indices,
    option_refusals,
    option_samples,
    sequences_oracle,
    shape_samples,
    spoiled,
    within,
)


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
    yield from option_samples(maker.varlen(), maker(4))
    args = maker.varlen(dtype=torch.bfloat16)
    yield Sample("every option, bfloat16", tuple(args), {"softcap": 2.0, "sinks": maker(4)})
    yield from loose_samples(maker.varlen())
    yield from varlen_value_samples(maker)
    more = Maker(9)
    yield from combinations(more.varlen, more(6))
    yield from mixed_indices(more.varlen(), (3, 4))
    q, k, v, *rest = maker.varlen()
    packed = torch.cat((k, v), dim=-1)
    yield Sample("k and v of one tensor", (q, packed[..., :16], packed[..., 16:], *rest))
    yield Sample("one head for all", (q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape), *rest))
    # No sequence at all, so that every token is padding.
    yield Sample("padding alone", (q[:3], *maker.varlen(([], []))[1:]))


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


def varlen_parts(given: dict[str, Any]) -> Iterator[Part]:
    """Rows are sequences."""
    for rows in spans(len(given["cu_seqlens_q"]) - 1):
        queries, starts_q = within(given["cu_seqlens_q"], rows)
        keys, starts_k = within(given["cu_seqlens_k"], rows)
        tensors = {"q": given["q"][queries], "k": given["k"][keys], "v": given["v"][keys]}
        starts = {"cu_seqlens_q": starts_q, "cu_seqlens_k": starts_k}
        yield Part(given | tensors | starts, (queries, queries))


RECORDS = [
    Record(
        "varlen_attention",
        varlen_samples,
        varlen_refusals,
        varlen_oracle,
        parts=varlen_parts,
        far=("q", "k", "v"),
    ),
]
