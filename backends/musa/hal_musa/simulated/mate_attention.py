"""MATE's attention on a simulated device: ragged, padded and paged, and its plans."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hal_musa.simulated.attend import attend, hidden
from hal_musa.simulated.host import check, host, only, register, sent

__all__ = ["FMHA", "MLA", "MLA_PLAN", "PLAN", "scale"]

_SCHEMAS = (
    "fmha(Tensor q, Tensor k, Tensor v, Tensor? cu_q, Tensor? cu_k, int? max_q, Tensor? used_q, "
    "Tensor? used_k, Tensor? pages, Tensor? qv, Tensor? sink, Tensor? plan, float scale, "
    "bool causal, int left, int right, float softcap) -> (Tensor, Tensor)",
    "plan(Tensor lengths, Tensor? used_k, int[] sizes) -> Tensor",
    "mla_plan(Tensor lengths, int[] sizes) -> (Tensor, Tensor)",
    "mla(Tensor q, Tensor cache, Tensor table, Tensor lengths, Tensor parts, Tensor splits, "
    "float scale, bool causal) -> (Tensor, Tensor)",
)


def scale(said: float | None, q: Tensor, qv: Tensor | None) -> float:
    """The scale of the scores: what was said, or that of all the dimensions of a query."""
    if said is not None:
        return said
    return float(q.shape[-1] + (0 if qv is None else qv.shape[-1])) ** -0.5


def _valid(q: Tensor, k: Tensor, v: Tensor, *indices: Tensor | None) -> None:
    only("q", q.dtype, torch.float16, torch.bfloat16)
    check(q.dtype == k.dtype == v.dtype, "q, k and v have to be of one dtype")
    check(max(q.shape[-1], v.shape[-1]) <= 512, "head_dim has to be 512 at most")
    check(q.shape[-2] % k.shape[-2] == 0, "heads of q have to be a multiple of those of k")
    for index in indices:
        check(index is None or index.dtype == torch.int32, "lengths and pages have to be int32")


def _here(x: Tensor | None) -> Tensor | None:
    return None if x is None else host(x)


def _rows(x: Tensor, cu: Tensor | None) -> Tensor:
    """[tokens, heads, dim] of what may be a batch."""
    return x.flatten(0, 1) if cu is None else x


def _bounds(x: Tensor, cu: Tensor | None) -> list[tuple[int, int]]:
    """Where each sequence's rows are in ``x``, its batch flattened."""
    if cu is not None:
        return list(pairwise(cu.tolist()))
    batch, length = x.shape[:2]
    return [(index * length, (index + 1) * length) for index in range(batch)]


def _keys(
    x: Tensor, index: int, cu: Tensor | None, used: Tensor | None, pages: Tensor | None
) -> Tensor:
    """The keys or values of one sequence, [keys, heads, dim]."""
    if pages is not None:
        check(used is not None, "pages come with cache_seqlens")
        count = int(used[index]) if used is not None else 0
        return x[pages[index, : -(-count // x.shape[1])].long()].flatten(0, 1)[:count]
    start, end = _bounds(x, cu)[index]
    flat = _rows(x, cu)
    return flat[start:end] if used is None else flat[start : start + int(used[index])]


def _planned(plan: Tensor | None, sizes: list[int], lengths: Tensor | None) -> bool:
    """Whether the plan is of this work, or there is none."""
    told = [] if lengths is None else lengths.tolist()
    return plan is None or plan.tolist() == [*sizes, *told]


def _fmha(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int | None,
    used_q: Tensor | None,
    used_k: Tensor | None,
    pages: Tensor | None,
    qv: Tensor | None,
    sink: Tensor | None,
    plan: Tensor | None,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    _valid(q, k, v, cu_q, cu_k, used_q, used_k, pages)
    check(cu_q is None or max_q is not None, "cu_seqlens_q comes with max_seqlen_q")
    queries, keys, values = host(q), host(k), host(v)
    starts, key_starts, uses, key_uses, table = map(_here, (cu_q, cu_k, used_q, used_k, pages))
    flat, flat_qv = _rows(queries, starts), None if qv is None else _rows(host(qv), starts)
    # Rows of no sequence, and all of them by another's plan, stay so.
    out = torch.full((*flat.shape[:2], v.shape[-1]), torch.nan)
    lse = torch.full((flat.shape[1], flat.shape[0]), torch.nan)
    bounds = _bounds(queries, starts)
    sizes = [len(bounds), q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], int(causal)]
    planned = _planned(_here(plan), sizes, key_starts if key_uses is None else key_uses)
    for index, (start, end) in enumerate(bounds if planned else ()):
        end = end if uses is None else start + int(uses[index])
        of = (index, key_starts, key_uses, table)
        mine = _keys(keys, *of)
        out[start:end], lse[:, start:end] = attend(
            *(flat[start:end], mine, _keys(values, *of), scale),
            hidden(end - start, len(mine), causal, left, right),
            softcap=softcap,
            sink=_here(sink),
            qv=None if flat_qv is None else flat_qv[start:end],
        )
    if starts is None:
        out = out.unflatten(0, q.shape[:2])
        lse = lse.unflatten(1, q.shape[:2]).transpose(0, 1)
    return sent(out, q, q.dtype), sent(lse, q)


def _plan(lengths: Tensor, used_k: Tensor | None, sizes: list[int]) -> Tensor:
    told = host(lengths if used_k is None else used_k).to(torch.int32)
    return sent(torch.cat([torch.tensor(sizes, dtype=torch.int32), told]), lengths)


def _mla_plan(lengths: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    told = torch.cat([torch.tensor(sizes, dtype=torch.int32), host(lengths).to(torch.int32)])
    parts = torch.zeros(-(-len(told) // 8), 8, dtype=torch.int32)
    parts.view(-1)[: len(told)] = told
    splits = torch.arange(len(lengths) + 1, dtype=torch.int32)
    return sent(parts, lengths), sent(splits, lengths)


def _mla(
    q: Tensor,
    cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    parts: Tensor,
    splits: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    only("q", q.dtype, torch.float16, torch.bfloat16)
    check(q.dtype == cache.dtype, "q and k_cache have to be of one dtype")
    check(q.shape[-1] == cache.shape[-1] == 576, "head_dim has to be 576")
    check(cache.shape[2] == 1, "k_cache has to have one head")
    check(table.dtype == lengths.dtype == torch.int32, "lengths and pages have to be int32")
    queries, pages, rows, counts = host(q), host(cache), host(table), host(lengths)
    told = [q.shape[1] * q.shape[2] // cache.shape[2], cache.shape[2], *counts.tolist()]
    out = torch.full((*q.shape[:3], 512), torch.nan)
    lse = torch.full(q.shape[:3], torch.nan)
    planned = host(parts).flatten()[: len(told)].tolist() == told
    for index in range(len(queries) if planned else 0):
        keys = _keys(pages, index, None, counts, rows)
        gone = hidden(q.shape[1], len(keys), causal, -1, -1)
        out[index], one = attend(queries[index], keys, keys[..., :512], scale, gone)
        lse[index] = one.T
    return sent(out, q, q.dtype), sent(lse, q)


_KERNELS = {"fmha": _fmha, "plan": _plan, "mla_plan": _mla_plan, "mla": _mla}
_library = register("simulated_mate", "FRAGMENT", _SCHEMAS, _KERNELS)
FMHA, PLAN, MLA, MLA_PLAN = (
    getattr(torch.ops.simulated_mate, name) for name in ("fmha", "plan", "mla", "mla_plan")
)
