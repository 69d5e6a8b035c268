"""What stands around the calls of NVIDIA's libraries, in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hal import prepared
from hal_cuda import attention, fa3, gemv, matmul
from hal_native.activation import silu_and_mul
from hal_native.attention import varlen_attention
from hal_native.matmul import scaled_mm

INT8, F32, F16 = torch.int8, torch.float32, torch.float16


@pytest.mark.parametrize("rows", [(5,), (2, 3), (40,)])
@pytest.mark.parametrize("out_dtype", [F32, F16])
def test_sums_of_integers_are_scaled(rows: tuple[int, ...], out_dtype: torch.dtype) -> None:
    a, b = (torch.randint(-128, 128, (*shape, 64)).to(INT8) for shape in (rows, (32,)))
    for by in (torch.rand(rows), torch.rand(64)[::2]), (torch.rand(1), torch.rand(1)):
        for bias in (None, torch.randn(64)[::2].half()):
            got = matmul.scaled_mm(a, b, *by, out_dtype=out_dtype, bias=bias)
            want = scaled_mm(a, b, *by, out_dtype=out_dtype, bias=bias)
            torch.testing.assert_close(got, want)


def spreading(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """A fused attention of which a NaN reaches all queries, and nothing to sum gives +inf."""
    options = {"causal": True, "scale": rest[-1]}
    starts = torch.tensor([0, len(q)]), torch.tensor([0, len(k)])
    if len(rest) > 1:
        starts, options["causal"] = rest[:2], rest[3]
    out, lse = varlen_attention(q, k, v, *starts, len(q), len(k), **options)
    return out + v.sum() * 0, lse.where(lse.isfinite(), math.inf).T.contiguous()


def silent(*given: Any) -> tuple[Tensor, Tensor]:
    """The same, by a kernel that gives -inf where there is nothing to sum, or NaN."""
    out, lse = spreading(*given)
    return out, lse.where(lse.isfinite(), -math.inf)


@pytest.fixture(autouse=True)
def _instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "by_cudnn", spreading)
    monkeypatch.setattr(attention, "by_flash", spreading)
    monkeypatch.setattr(fa3, "by_fa3", silent)
    monkeypatch.setattr(attention, "planned", lambda tokens: -(-tokens // 64) * 64)


BROKEN = [(), ((20, 0, 2, math.nan),), ((3, 0, 1, math.inf), (4, 0, 1, -math.inf))]


@pytest.mark.parametrize("sizes", [(70, 70, 4, 2, 16), (64, 50, 2, 1, 24), (130, 97, 3, 3, 8)])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_not_finite_reaches_the_queries_that_see_it(
    sizes: tuple[int, ...], broken: tuple[tuple[int, int, int, float], ...]
) -> None:
    tokens, end, heads, kv_heads, width = sizes
    q, k, v = (
        torch.randn(tokens, count, size).half()
        for count, size in ((heads, 16), (kv_heads, 16), (kv_heads, width))
    )
    for token, head, column, value in broken:
        v[token, head, column] = value
    q[7, 1] = math.nan if broken else 0.0
    starts = torch.tensor([0, end], dtype=torch.int32)
    got = attention.attend(q, k, v, starts, None)
    want = varlen_attention(q, k, v, starts, starts, tokens, tokens, causal=True)
    torch.testing.assert_close(got[0], want[0], atol=3e-3, rtol=3e-3, equal_nan=True)
    torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=1e-4, equal_nan=True)


def test_padding_alone_gives_nothing() -> None:
    q = torch.randn(5, 2, 8).half()
    out, lse = attention.attend(q, q, q, torch.tensor([0, 0]), 0.5)
    assert not out.any()
    assert bool((lse == -math.inf).all())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("call", [attention.flash, fa3.varlen_attention])
def test_sequences_keep_what_is_not_finite(call: Any, causal: bool, index: torch.dtype) -> None:
    starts = torch.tensor([[0, 40, 40, 60, 63], [0, 30, 35, 35, 90]]).to(index)
    q, k, v = (torch.randn(count, heads, 16).half() for count, heads in ((66, 4), (95, 2), (95, 2)))
    for token, value in (4, math.nan), (70, math.inf), (80, -math.inf), (93, math.nan):
        v[token, token % 2, token % 16] = value
    q[61, 3, 2] = math.nan
    got = call(q, k, v, *starts, 40, 55, causal=causal)
    want = varlen_attention(q, k, v, *starts, 40, 55, causal=causal)
    torch.testing.assert_close(got[0], want[0], atol=3e-3, rtol=3e-3, equal_nan=True)
    torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("flash", [False, True])
def test_which_serves(
    sequences: int, same: bool, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"narrow cudnn": 64, "flash": 64} if flash else {"narrow cudnn": 64}
    asked = "wins", lambda what, rows, like: rows >= named.get(what, rows + 1)
    monkeypatch.setattr(attention, *asked)
    served: list[str] = []
    for name in ("attend", "flash"):
        monkeypatch.setattr(attention, name, lambda *_, name=name, **__: served.append(name))
    q, v = torch.randn(128, 2, 16).half(), torch.randn(128, 2, 16).half()
    starts = torch.linspace(0, 128, sequences + 1).int()
    others = starts if same else starts.clone()
    assert isinstance(attention.varlen_attention, prepared)
    attention.varlen_attention(q, q, v, starts, others, 128, 128, causal=True)
    alone = sequences == 1 and same
    assert served == (["attend"] if alone else ["flash"] if flash else [])


def test_a_product_in_float32_is_gated_and_rounded_once() -> None:
    product = torch.randn(5, 64)
    gated = gemv._gated(torch.empty(5, 7, dtype=F16), 5, 32)
    torch.testing.assert_close(gated(product, None), silu_and_mul(product).half())
