"""Kernels by Triton with tiles that are no rule of thumb's, as an architecture's table may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal_native.attention
import hal_native.experts
import hal_native.gemv
import hal_native.matmul
import hal_native.mla
import hal_triton.attention
import hal_triton.experts
import hal_triton.gemv
import hal_triton.matmul
import hal_triton.mla
from hal.wanted import wanted_in
from hal_triton import configurations
from hal_triton.configurations import Config

FLOATS = [torch.float32, torch.float16]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Config]]:
    """What all sizes of a name are given, which is asked for."""
    tables: dict[str, Config] = {}
    asked: set[str] = set()

    def find(name: str, _: torch.device, __: str, otherwise: Config) -> Config:
        asked.add(name)
        assert len(tables.get(name, otherwise)) == len(otherwise)
        return tables.get(name, otherwise)

    monkeypatch.setattr(configurations, "find", find)
    yield tables
    assert asked >= tables.keys()


def close(got: Any, want: Any) -> None:
    """Within the rounding of a sum in float32, or of its result."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for ours, right in zip(got, want, strict=True):
        assert ours.dtype == right.dtype
        off = (ours.double() - right.double()).norm() / right.double().norm()
        assert off < (6e-4 if ours.dtype == torch.float16 else 2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "config", [(16, 16, 64, 4, 2, 1), (16, 64, 32, 8, 4, 3), (32, 32, 128, 4, 3, 2)]
)
def test_products_by_other_tiles(
    table: dict[str, Config], config: Config, dtype: torch.dtype
) -> None:
    table["product none"] = table["product blocks"] = config
    x, weight = torch.randn(17, 272, dtype=dtype), torch.randn(96, 272, dtype=dtype)
    for activation in (None, "swiglu"):
        got = hal_triton.gemv.fused_gemv(x, weight, activation=activation)
        close(got, hal_native.gemv.fused_gemv(x, weight, activation=activation))
    packed = torch.randint(0, 256, (96, 160), dtype=torch.uint8)
    args = torch.randn(3, 320, dtype=dtype), packed, torch.randn(96, 5)
    got = hal_triton.matmul.w4a16_mm(*args, group_size=64)
    close(got, hal_native.matmul.w4a16_mm(*args, group_size=64))


@pytest.mark.parametrize("config", [(16, 32, 64, 4, 2, 3), (64, 64, 32, 8, 3, 1)])
def test_integers_by_other_tiles(table: dict[str, Config], config: Config) -> None:
    table["product rows"] = config
    a, b = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((20, 272), (48, 272)))
    args = a, b, torch.rand(20), torch.rand(48)
    got = hal_triton.matmul.scaled_mm(*args, out_dtype=torch.float32)
    assert torch.equal(got, hal_native.matmul.scaled_mm(*args, out_dtype=torch.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("config", [(1, 2, 128, 2), (1, 16, 512, 8), (2, 4, 256, 4)])
def test_single_rows_by_other_tiles(
    table: dict[str, Config], config: Config, dtype: torch.dtype
) -> None:
    table["routed pairs"], table["pairs"] = config, (1, *config[1:])
    x, weight = torch.randn(1, 272, dtype=dtype), torch.randn(48, 272, dtype=dtype)
    close(hal_triton.gemv.fused_gemv(x, weight), hal_native.gemv.fused_gemv(x, weight))
    weights, ids = torch.rand(3, 2), torch.tensor([[0, 3], [2, 1], [3, 2]], dtype=torch.int32)
    args = torch.randn(3, 272, dtype=dtype), torch.randn(4, 32, 272, dtype=dtype), weights, ids
    got = hal_triton.gemv.fused_moe_gemv(*args, activation="swiglu")
    close(got, hal_native.gemv.fused_moe_gemv(*args, activation="swiglu"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("config", [(16, 64, 32, 8, 3), (32, 32, 64, 4, 2)])
@pytest.mark.parametrize("tokens", [2, 20])
def test_experts_by_other_tiles(
    table: dict[str, Config], config: Config, dtype: torch.dtype, tokens: int
) -> None:
    table["experts"] = config
    w13, w2 = (torch.randn(size, dtype=dtype) * 0.1 for size in ((4, 128, 64), (4, 64, 64)))
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(tokens)]).int()
    args = torch.randn(tokens, 64, dtype=dtype), w13, w2, torch.rand(tokens, 2), ids
    close(hal_triton.experts.fused_experts(*args), hal_native.experts.fused_experts(*args))


def paged(lens: list[int], queries: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Sequences of some keys each in pages of 16, with 4 heads that share 2 of the keys."""
    pages = -(-max(lens) // 16)
    table = torch.randperm(len(lens) * pages).int().view(len(lens), pages)
    q = torch.randn(len(lens) * queries, 4, 32, dtype=dtype)
    k, v = (torch.randn(table.numel(), 16, 2, 32, dtype=dtype) for _ in "kv")
    starts = torch.arange(len(lens) + 1, dtype=torch.int32) * queries
    return q, k, v, table, torch.tensor(lens, dtype=torch.int32), starts, queries, max(lens)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("config", "slots"),
    [((16, 16, 4, 1, 64), 2), ((16, 128, 8, 3, 64), 4), ((16, 32, 2, 2, 256), 3)],
)
def test_few_queries_by_other_tiles(
    table: dict[str, Config], config: Config, slots: int, dtype: torch.dtype
) -> None:
    table["decode"], table["slots"] = config, (slots,)
    args = paged([700, 5, 333], 1, dtype)
    got = hal_triton.attention.paged_attention(*args, causal=True)
    close(got, hal_native.attention.paged_attention(*args, causal=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("config", [(16, 16, 4, 1), (32, 64, 8, 2), (128, 32, 4, 3)])
def test_many_queries_by_other_tiles(
    table: dict[str, Config], config: Config, dtype: torch.dtype
) -> None:
    table["prefill"] = config
    q, k, v, *rest = paged([90, 90], 70, dtype)
    got = hal_triton.attention.paged_attention(q, k, v, *rest, causal=True)
    close(got, hal_native.attention.paged_attention(q, k, v, *rest, causal=True))


@pytest.mark.parametrize("queries", [1, 70])
def test_results_are_put_where_they_are_wanted(queries: int) -> None:
    q, *rest = paged([90, 90], queries, torch.float16)
    want = hal_native.attention.paged_attention(q, *rest)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    fit = {(out, lse): [True, True], (None, lse): [False, True], (out,): [True], (): list[bool]()}
    unfit = {(out[:1], lse.half()): [False, False], (out.to("meta"), lse.to("meta")): [False] * 2}
    for places, there in {**fit, **unfit}.items():
        with wanted_in(places):
            got, again = (hal_triton.attention.paged_attention(q, *rest) for _ in range(2))
        close(got, want)
        close(again, want)
        assert [result is place for result, place in zip(got, places, strict=False)] == there
        # It is asked for once: what is computed on the way may be of the same shape.
        assert again[0] is not out
        assert again[1] is not lse


def test_latents_by_other_tiles(table: dict[str, Config]) -> None:
    table["decode"] = 16, 16, 4, 2, 256
    _, cache, _, pages, lens, *_ = paged([300, 40], 1, torch.float16)
    cache = torch.cat([cache.flatten(2), cache.flatten(2)[..., :16]], 2)
    q = torch.randn(2, 20, 80, dtype=torch.float16)
    args: tuple[Tensor, ...] = q[..., :64], q[..., 64:], cache, pages, lens
    got = hal_triton.mla.mla_decode(*args, scale=0.1)
    close(got, hal_native.mla.mla_decode(*args, scale=0.1))


def test_the_bits_of_a_sequence_go_by_no_other_one(table: dict[str, Config]) -> None:
    table["decode"] = 16, 32, 4, 2, 128
    args = paged([700, 90, 500, 260], 1, torch.float16)
    q, k, v, pages, lens, starts, *_ = args
    for slots in (2, 4):
        table["slots"] = (slots,)
        out, lse = hal_triton.attention.paged_attention(*args)
        one = q[:1], k, v, pages[:1], lens[:1], starts[:2], 1, 700
        alone, alone_lse = hal_triton.attention.paged_attention(*one)
        assert torch.equal(out[:1], alone)
        assert torch.equal(lse[:1], alone_lse)
