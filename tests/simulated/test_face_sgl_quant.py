"""The stand-in for sgl_kernel on MUSA: quantisation, routing, masks and hidden writes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hal_musa.simulated import libraries

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def sgl() -> Iterator[Any]:
    with libraries("sgl_kernel"):
        yield importlib.import_module("sgl_kernel")


def musa(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to("musa")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, 1, dtype=dtype, device="musa")


def quantised(sgl: Any, x: Tensor, q: Tensor, s: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    low, high = (-448.0, 448.0) if q.dtype == E4M3 else (-128.0, 127.0)
    sgl.sgl_per_token_group_quant_8bit(x, q, s, 128, 1e-10, low, high, **how)
    return q.cpu(), s.cpu()


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
@pytest.mark.parametrize("column_major", [False, True])
def test_groups(sgl: Any, column_major: bool, dtype: torch.dtype) -> None:
    x = musa(3, 256)
    s = empty(2, 3).t() if column_major else empty(3, 2)
    q, s = quantised(sgl, x, empty(3, 256, dtype=dtype), s)
    groups = x.cpu().float().view(3, 2, 128)
    high = 448 if dtype == E4M3 else 127
    assert torch.allclose(s, groups.abs().amax(-1) / high)
    back = q.float().view(3, 2, 128) * s[..., None]
    assert (back - groups).abs().max() < groups.abs().max() * (0.04 if dtype == E4M3 else 0.01)


def test_the_first_form_truncates(sgl: Any) -> None:
    x = torch.full((1, 128), 127.0, dtype=BF16, device="musa")
    x[0, 1] = 3.5
    q = empty(1, 128, dtype=torch.int8)
    assert quantised(sgl, x, q, empty(1, 1), enable_v2=False)[0][0, 1] == 3
    assert quantised(sgl, x, q, empty(1, 1), enable_v2=True)[0][0, 1] == 4


def test_powers_of_two_are_packed(sgl: Any) -> None:
    x = musa(4, 512)
    s = torch.zeros(1, 4, dtype=torch.int32, device="musa").t()
    _, s = quantised(sgl, x, empty(4, 512, dtype=E4M3), s, scale_ue8m0=True)
    found = s.flatten().view(torch.uint8).view(4, 4).float() - 127
    largest = x.cpu().float().view(4, 4, 128).abs().amax(-1)
    assert torch.equal(found, torch.log2(largest / 448).ceil())


def test_fusing_is_for_powers_of_two_alone(sgl: Any) -> None:
    x = musa(4, 256)
    q, s = quantised(
        sgl, x, empty(4, 128, dtype=E4M3), empty(4, 1), fuse_silu_and_mul=True, enable_v2=True
    )
    alone = quantised(sgl, x[:, :128].contiguous(), empty(4, 128, dtype=E4M3), empty(4, 1))
    assert torch.equal(q.view(torch.uint8), alone[0].view(torch.uint8))
    assert torch.equal(s, alone[1])


def test_what_groups_want(sgl: Any) -> None:
    q, s = empty(2, 128, dtype=E4M3), empty(2, 1)
    call = sgl.sgl_per_token_group_quant_8bit
    for x, eps, said in (
        (musa(2, 128, dtype=torch.float32), 1e-10, "float16, bfloat16"),
        (musa(2, 128), 1e-6, "eps has to be 1e-10"),
        (musa(0, 128), 1e-10, "must not be empty"),
        (musa(2, 100), 1e-10, "not a multiple of group_size"),
    ):
        with pytest.raises(RuntimeError, match=said):
            call(x, q, s, 128, eps, -448.0, 448.0)


def test_a_row_of_zeros_has_the_largest_codes(sgl: Any) -> None:
    x, q, s = musa(2, 64), empty(2, 64, dtype=E4M3), empty(2, 1)
    x[1] = 0
    sgl.sgl_per_token_quant_fp8(x, q, s)
    assert torch.allclose(s[0].cpu(), x[0].cpu().float().abs().amax() / 448)
    assert s[1].item() == 0
    assert (q[1].cpu().float() == 448).all()


def compiled(op: Any, x: Tensor) -> Tensor:
    def f(x: Tensor) -> Tensor:
        q = torch.zeros(2, 128, dtype=torch.int8, device="musa")
        s = torch.zeros(2, 1, device="musa")
        op(x, q, s, 128, 1e-10, -128.0, 127.0, False, False, None)
        return q.clone()

    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True)(x)


def test_a_write_that_is_not_declared_is_removed() -> None:
    op, x = torch.ops.sgl_kernel.sgl_per_token_group_quant_8bit_v2, musa(2, 128)
    with pytest.raises(Exception, match="fake tensors"):
        compiled(op, x)
    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    torch.library.register_fake(op.default.name(), lambda *args: None, lib=library)
    assert (compiled(op, x) == 0).all()
    library._destroy()


def routed(sgl: Any, name: str, gating: Tensor, k: int, **how: Any) -> tuple[Tensor, Tensor]:
    weights, ids = empty(len(gating), k), empty(len(gating), k, dtype=torch.int32)
    getattr(sgl, name)(weights, ids, gating, **how)
    return weights.cpu(), ids.cpu()


def test_routing_by_softmax(sgl: Any) -> None:
    gating, bias = musa(3, 8), musa(8, dtype=torch.float32)
    weights, ids = routed(sgl, "topk_softmax", gating, 2, moe_softcapping=2.0, correction_bias=bias)
    logits = 2 * torch.tanh(gating.cpu().float() / 2) + bias.cpu()
    wanted = logits.softmax(-1).topk(2)
    assert torch.equal(ids.long(), wanted.indices)
    assert torch.allclose(weights, wanted.values)  # The bias is in the weights.
    total = routed(sgl, "topk_softmax", gating, 2, renormalize=True)[0].sum(-1)
    assert torch.allclose(total, torch.ones(3))
    gating[1, 2] = torch.nan
    weights, ids = routed(sgl, "topk_softmax", gating, 2)
    assert weights[1].tolist() == [-1, -1]
    assert ids[1].tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="topk exceeds"):
        routed(sgl, "topk_softmax", gating, 9)


def test_routing_by_sigmoid_loses_what_the_bias_covers(sgl: Any) -> None:
    gating = musa(3, 8)
    weights, ids = routed(sgl, "topk_sigmoid", gating, 2)
    wanted = gating.cpu().float().sigmoid().topk(2)
    assert torch.equal(ids.long(), wanted.indices)
    assert torch.equal(weights, wanted.values)
    bias = torch.full((8,), 1e4, device="musa")
    lossy, _ = routed(sgl, "topk_sigmoid", gating, 2, correction_bias=bias)
    assert 1e-5 < (lossy - wanted.values).abs().max() < 1e-2


def test_the_gate_always_renormalises(sgl: Any) -> None:
    gating, bias = musa(3, 32, dtype=torch.float32), musa(32, dtype=torch.float32)
    weights, ids = sgl.moe_fused_gate(gating, bias, 4, 2, 4, 0, 2.5)
    assert torch.allclose(weights.cpu().sum(-1), torch.ones(3))
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    for experts, said in ((48, "no power of two"), (256, "more than 32 experts")):
        x, b = musa(1, experts, dtype=torch.float32), musa(experts, dtype=torch.float32)
        with pytest.raises(RuntimeError, match=said):
            sgl.moe_fused_gate(x, b, 4, 2, 4, 0, 2.5)


def test_sums_over_experts(sgl: Any) -> None:
    x, out = musa(3, 4, 8), empty(3, 8, dtype=BF16)
    sgl.moe_sum_reduce(x, out, 2.0)
    assert torch.equal(out.cpu(), (x.cpu().float().sum(1) * 2).to(BF16))
    sgl.moe_sum(x, out)
    assert torch.equal(out.cpu(), x.cpu().float().sum(1).to(BF16))


def test_masks_leave_columns_beyond_them(sgl: Any) -> None:
    logits = musa(2, 40)
    before = logits.cpu()
    mask = torch.tensor([[0b101]], dtype=torch.int32, device="musa").expand(2, 1).contiguous()
    sgl.apply_token_bitmask_inplace_cuda(logits, mask, [1])
    assert torch.equal(logits.cpu()[0], before[0])
    kept = torch.zeros(40, dtype=torch.bool)
    kept[[0, 2, *range(32, 40)]] = True
    assert torch.equal(logits.cpu()[1], before[1].masked_fill(~kept, -torch.inf))


def test_merging_of_nothing_is_nan(sgl: Any) -> None:
    a, b = musa(2, 2, 8), musa(2, 2, 8) + 1
    lse = torch.tensor([[0.0, -torch.inf], [1.0, -torch.inf]], device="musa")
    other = torch.tensor([[0.0, -torch.inf], [torch.inf, 2.0]], device="musa")
    values, merged = sgl.merge_state_v2(a, lse, b, other)
    assert torch.allclose(values[0, 0].cpu().float(), ((a + b) / 2)[0, 0].cpu().float(), rtol=2e-2)
    assert merged[0, 1].isnan()
    assert values[0, 1].isnan().all()
    assert torch.equal(values[1, 0], a[1, 0])  # Infinity counts as its opposite.
    assert torch.equal(values[1, 1], b[1, 1])
