"""The stand-in for MATE's products: layouts of scales, tiles and what is left unwritten."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hal_musa.simulated import libraries

NEW = torch.musa.get_device_capability() == (3, 1)
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
pytestmark = pytest.mark.skipif(not NEW, reason="MATE is for MP31")


@pytest.fixture
def gemm() -> Iterator[Any]:
    with libraries("mate"):
        yield importlib.import_module("mate").gemm


def musa(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to("musa")


def scales(*shape: int) -> Tensor:
    return musa(*shape, dtype=torch.float32).abs() + 0.1


def wide(x: Tensor, scale: Tensor, rows: int) -> Tensor:
    """``x`` times its scales of ``rows`` by 128, on the host."""
    spread = scale.cpu().repeat_interleave(rows, -2).repeat_interleave(128, -1)
    return x.cpu().float() * spread[..., : x.shape[-2], : x.shape[-1]]


def test_products_of_fp8_in_blocks(gemm: Any) -> None:
    a, b = musa(5, 200, dtype=E4M3), musa(150, 200, dtype=E4M3)
    rows, columns = scales(5, 2), scales(2, 2)
    found = gemm.gemm_fp8_nt_groupwise(a, b, rows, columns)
    wanted = wide(a, rows, 1) @ wide(b, columns, 128).T
    assert (found.dtype, found.device.type) == (BF16, "musa")
    assert torch.equal(found.cpu(), wanted.to(BF16))
    turned = (rows.t().contiguous(), columns.t().contiguous())
    assert torch.equal(gemm.gemm_fp8_nt_groupwise(a, b, *turned, scale_major_mode="MN"), found)
    out = torch.empty(5, 150, dtype=torch.float16, device="musa")
    assert gemm.gemm_fp8_nt_groupwise(a, b, rows, columns, out=out, mma_sm=2) is out
    assert torch.equal(out.cpu(), wanted.half())


def test_scales_are_float32_contiguous_and_of_one_shape(gemm: Any) -> None:
    a, b, columns = musa(4, 256, dtype=E4M3), musa(128, 256, dtype=E4M3), scales(1, 2)
    column_major, packed = scales(2, 4).t(), torch.ones(4, 1, dtype=torch.int32, device="musa")
    for bad, said in (
        (column_major, "must be contiguous"),
        (packed, "must be float type"),
        (scales(4, 1), r"must be \[4, 2\]"),
    ):
        with pytest.raises(RuntimeError, match=said):
            gemm.gemm_fp8_nt_groupwise(a, b, bad, columns)
    with pytest.raises(RuntimeError, match="a and b must be contiguous"):
        gemm.gemm_fp8_nt_groupwise(musa(256, 4, dtype=E4M3).t(), b, scales(4, 2), columns)
    with pytest.raises(RuntimeError, match="has to be of float8"):
        gemm.gemm_fp8_nt_groupwise(musa(4, 256), b, scales(4, 2), columns)
    with pytest.raises(ValueError, match="Only bf16 and fp16"):
        gemm.gemm_fp8_nt_groupwise(a, b, scales(4, 2), columns, out_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="unsupported scale_granularity_mnk"):
        gemm.gemm_fp8_nt_groupwise(a, b, scales(4, 2), columns, scale_granularity_mnk=(1, 64, 128))


def test_batched_products(gemm: Any) -> None:
    a, b = musa(2, 3, 8), musa(2, 8, 4)
    assert torch.equal(
        gemm.bmm_fp16(a, b, BF16).cpu(), (a.cpu().float() @ b.cpu().float()).to(BF16)
    )
    eight = a.to(E4M3), b.mT.contiguous().to(E4M3).mT
    found = gemm.bmm_fp8(*eight, scales(1), scales(1), BF16).cpu()
    factor = (scales(1) * scales(1)).cpu()
    wanted = eight[0].cpu().float() @ eight[1].cpu().float() * factor
    assert torch.allclose(found.float(), wanted, rtol=1e-2)


def test_a_tile_of_tokens_has_one_expert(gemm: Any) -> None:
    tokens, weights = musa(256, 16), musa(3, 8, 16)
    info = torch.full((256,), 2, dtype=torch.int32, device="musa")
    info[100:] = 1  # The first tile goes on as expert 2 up to its end.
    out = torch.full((256, 8), 7.0, dtype=BF16, device="musa")
    gemm.ragged_m_moe_gemm_16bit(tokens, weights, info, out)
    host, right = tokens.cpu().float(), weights.cpu().float()
    assert torch.equal(out[:128].cpu(), (host[:128] @ right[2].T).to(BF16))
    assert torch.equal(out[128:].cpu(), (host[128:] @ right[1].T).to(BF16))
    info[128:] = -1
    out.fill_(7)
    gemm.ragged_m_moe_gemm_16bit(tokens, weights, info, out)
    assert (out[128:] == 7).all()
    with pytest.raises(RuntimeError, match="128 or 256"):
        gemm.ragged_m_moe_gemm_16bit(tokens, weights, info, out, alignment_m=64)


def test_tokens_in_the_order_of_their_experts(gemm: Any) -> None:
    tokens, weights = musa(10, 16), musa(3, 8, 16)
    counts = torch.tensor([4, 0, 6], dtype=torch.int32, device="musa")
    out = torch.empty(10, 8, dtype=BF16, device="musa")
    gemm.ragged_m_moe_gemm_16bit(tokens, weights, counts, out, gemm_mode="per_expert")
    host, right = tokens.cpu().float(), weights.cpu().float()
    wanted = torch.cat([host[:4] @ right[0].T, host[4:] @ right[2].T])
    assert torch.equal(out.cpu(), wanted.to(BF16))
    with pytest.raises(AssertionError, match="Not supported gemm mode"):
        gemm.ragged_m_moe_gemm_16bit(tokens, weights, counts, out, gemm_mode="psum_expert")


def test_masked_products_leave_the_rest(gemm: Any) -> None:
    a, b = musa(2, 5, 128, dtype=E4M3), musa(2, 8, 128, dtype=E4M3)
    rows, columns = scales(2, 5, 1), scales(2, 1, 1)
    counts = torch.tensor([5, 2], dtype=torch.int32, device="musa")
    out = torch.full((2, 5, 8), 7.0, dtype=BF16, device="musa")
    gemm.masked_moe_gemm_8bit((a, rows), (b, columns), counts, out)
    wanted = (wide(a, rows, 1) @ wide(b, columns, 128).mT).to(BF16)
    assert torch.equal(out[0].cpu(), wanted[0])
    assert torch.equal(out[1, :2].cpu(), wanted[1, :2])
    assert (out[1, 2:] == 7).all()


def test_names_of_deep_gemm(gemm: Any) -> None:
    deep = importlib.import_module("mate").deep_gemm
    a, b = (musa(4, 128, dtype=E4M3), scales(4, 1)), (musa(8, 128, dtype=E4M3), scales(1, 1))
    out = torch.empty(4, 8, dtype=BF16, device="musa")
    assert deep.fp8_gemm_nt(a, b, out) is out
    assert torch.equal(out, gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1]))
    with pytest.raises(Exception, match="UE8M0 cast is not supported"):
        deep.m_grouped_fp8_gemm_nt_contiguous(a, b, out, out, disable_ue8m0_cast=False)
