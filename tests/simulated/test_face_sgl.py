"""The stand-in for sgl_kernel on MUSA: schemas, and the faults of its kernels."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hal_musa.simulated import libraries

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
NEW = torch.musa.get_device_capability() == (3, 1)

# common_extension_musa.cc's, as torch prints them.
DECLARED = """
rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()
fused_add_rmsnorm(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()
silu_and_mul(Tensor! out, Tensor input) -> ()
rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, bool is_neox) -> ()
sgl_per_token_group_quant_8bit(Tensor input, Tensor output_q, Tensor output_s, int group_size, float eps, float fp8_min, float fp8_max, bool scale_ue8m0) -> ()
sgl_per_token_group_quant_8bit_v2(Tensor input, Tensor output_q, Tensor output_s, int group_size, float eps, float fp8_min, float fp8_max, bool scale_ue8m0, bool fuse_silu_and_mul, Tensor? masked_m) -> ()
sgl_per_token_quant_fp8(Tensor input, Tensor output_q, Tensor output_s) -> ()
topk_softmax(Tensor! topk_weights, Tensor! topk_indices, Tensor gating_output, bool renormalize, float moe_softcapping, Tensor? correction_bias) -> ()
topk_sigmoid(Tensor! topk_weights, Tensor! topk_indices, Tensor gating_output, bool renormalize, Tensor? correction_bias) -> ()
moe_sum_reduce(Tensor input, Tensor output, float routed_scaling_factor) -> ()
moe_fused_gate(Tensor input, Tensor bias, int num_expert_group, int topk_group, int topk, int num_fused_shared_experts, float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) -> Tensor[]
apply_token_bitmask_inplace_cuda(Tensor logits, Tensor bitmask, Tensor? indices=None) -> ()
musa_rotary_embedding_contiguous(Tensor! positions, Tensor! query, Tensor! key, int head_size, Tensor! cos_sin_cache, bool is_neox) -> ()
musa_batched_rotary_embedding_contiguous(Tensor! positions, Tensor! query, Tensor! key, int head_size, Tensor! cos_sin_cache, bool is_neox, int rot_dim, Tensor! cos_sin_cache_offsets) -> ()
musa_fused_moe_gemv(Tensor! A, Tensor! B, Tensor! C, Tensor? A_scale, Tensor? B_scale, Tensor! topk_weights, Tensor! topk_ids, bool mul_routed_weight, int topk, bool use_int4_w4a16, bool use_swigelu) -> ()
musa_fused_gemv(Tensor! A, Tensor! B, Tensor! C, Tensor? A_scale, Tensor? B_scale, bool use_int4_w4a16, bool use_swigelu, bool use_rms_norm, Tensor? gamma, float eps) -> ()
musa_fused_mul_add(Tensor! output, Tensor! self, Tensor! bias, float scale) -> ()
""".strip().splitlines()  # noqa: E501


@pytest.fixture(autouse=True)
def sgl() -> Iterator[Any]:
    with libraries("sgl_kernel"):
        yield importlib.import_module("sgl_kernel")


@pytest.mark.parametrize("declared", DECLARED, ids=lambda line: line.partition("(")[0])
def test_schemas(declared: str) -> None:
    wanted = torch._C.parse_schema(f"sgl_kernel::{declared}")
    found = getattr(torch.ops.sgl_kernel, wanted.name.removeprefix("sgl_kernel::"))
    assert str(found.default._schema) == str(wanted)


def test_it_is_gone_with_its_operators_where_nobody_asks() -> None:
    assert hasattr(torch.ops.sgl_kernel, "rmsnorm")
    with libraries():
        assert not hasattr(torch.ops.sgl_kernel, "rmsnorm")
    assert hasattr(importlib.import_module("sgl_kernel"), "rmsnorm")


def test_the_eighth_argument_is_not_mate_s(sgl: Any) -> None:
    names = list(inspect.signature(sgl.moe_fused_gate).parameters)
    assert names[7] == "apply_routed_scaling_factor_on_output"


def musa(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to("musa")


def test_what_is_declared_and_has_no_kernel(sgl: Any) -> None:
    a, weights = musa(1, 64), musa(2, 32, 64)
    ids = torch.zeros(1, 1, dtype=torch.int32, device="musa")
    with pytest.raises(NotImplementedError, match="musa_fused_moe_gemv"):
        sgl.musa_fused_moe_gemv(
            *(a, weights, musa(1, 32), None, None, musa(1, 1), ids, False, 1, False, False)
        )


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@pytest.mark.parametrize("rows", [1, 3])
def test_products_with_rows(sgl: Any, rows: int) -> None:
    x, weight = musa(rows, 256), musa(32, 256)
    product = x.cpu().float() @ weight.cpu().float().T
    assert torch.equal(sgl.musa_fused_gemv(x, weight).cpu(), product.to(BF16))
    found = sgl.musa_fused_gemv(x, weight, use_swigelu=True)
    assert torch.equal(found.cpu(), swiglu(product).to(BF16))


def test_the_norm_of_a_product_is_lost_with_rows(sgl: Any) -> None:
    weight, gamma = musa(32, 256), musa(32)
    one = sgl.musa_fused_gemv(musa(1, 256), weight, use_rms_norm=True, gamma=gamma)
    product = musa(1, 256).cpu().float() @ weight.cpu().float().T
    wanted = F.rms_norm(product, (32,), gamma.cpu().float(), 1e-6)
    assert torch.equal(one.cpu(), wanted.to(BF16))
    two = sgl.musa_fused_gemv(musa(2, 256), weight, use_rms_norm=True, gamma=gamma)
    assert two.isnan().all()
    with pytest.raises(AssertionError, match="gamma is None"):
        sgl.musa_fused_gemv(musa(1, 256), weight, use_rms_norm=True)
    with pytest.raises(AssertionError, match="only fused one activation"):
        sgl.musa_fused_gemv(musa(1, 256), weight, None, None, True, True, gamma)


@pytest.mark.parametrize(("n", "k"), [(30, 256), (32, 100)])
def test_products_want_whole_tiles(sgl: Any, n: int, k: int) -> None:
    with pytest.raises(RuntimeError, match="no multiple of a tile"):
        sgl.musa_fused_gemv(musa(1, k), musa(n, k))


def test_products_of_four_bits(sgl: Any) -> None:
    x, codes = musa(2, 512), torch.randint(0, 256, (32, 256), dtype=torch.uint8)
    low_first = torch.stack([codes & 15, codes >> 4], -1).flatten(1).float()
    for scales, weight in (
        (musa(32, 4), low_first - 8),
        (musa(32, 1), torch.where(low_first > 7, low_first - 16, low_first)),
    ):
        wide = weight * scales.cpu().float().repeat_interleave(512 // scales.shape[1], 1)
        found = sgl.musa_fused_gemv(x, codes.to("musa"), qweight_scales=scales)
        assert torch.equal(found.cpu(), (x.cpu().float() @ wide.T).to(BF16))


def test_products_of_fp8(sgl: Any) -> None:
    x, weight = musa(2, 256, dtype=E4M3), musa(128, 256, dtype=E4M3)
    rows, blocks = musa(2, 2, dtype=torch.float32), musa(1, 2, dtype=torch.float32)
    if torch.musa.get_device_capability()[0] < 3:
        with pytest.raises(RuntimeError, match="needs an S5000"):
            sgl.musa_fused_gemv(x, weight, rows, blocks)
        return
    found = sgl.musa_fused_gemv(x, weight, rows, blocks)
    wide = [s.cpu().repeat_interleave(128, 1) for s in (rows, blocks)]
    wanted = (x.cpu().float() * wide[0]) @ (weight.cpu().float() * wide[1]).T
    assert torch.equal(found.cpu(), wanted.to(BF16))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sgl.musa_fused_gemv(x, weight, None, blocks)


def test_a_product_and_sum_writes_behind_its_end(sgl: Any) -> None:
    x, y = musa(5), musa(6)[:5]
    assert torch.equal(sgl.musa_fused_mul_add(x, y, 2.0), x * 2 + y)
    room = torch.full((16,), 7.0, dtype=BF16, device="musa")
    torch.ops.sgl_kernel.musa_fused_mul_add(room[:5], x, y, 2.0)
    assert torch.equal(room[:5], x * 2 + y)
    assert not (room[5:8] == 7).any()
    assert (room[8:] == 7).all()
    assert sgl.musa_fused_mul_add(x, y, 2.0, accurate=False) is y
    square = musa(3, 4).t()
    odd = sgl.musa_fused_mul_add(square, square, 1.0)
    assert odd.stride() == square.stride()
    assert not torch.equal(odd, square * 2)  # In the order of contiguous memory.


def test_the_fused_norm_looks_at_nothing(sgl: Any) -> None:
    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        residual = x.clone()
        sgl.fused_add_rmsnorm(x, residual, weight, 1e-6)
        return x.cpu(), residual.cpu()

    before, weight = musa(4, 16).cpu(), musa(16)
    total = before.float() * 2
    y, residual = run(musa(4, 16), weight)
    assert torch.equal(residual, total.to(BF16))
    assert torch.allclose(
        y.float(), F.rms_norm(total, (16,), weight.cpu().float(), 1e-6), rtol=1e-2
    )
    # Of three dimensions the first two are rows and columns: most stays as it was.
    assert torch.equal(
        run(musa(2, 4, 8), musa(8))[0].flatten()[8:], musa(2, 4, 8).cpu().flatten()[8:]
    )
    # A float32 weight is read as if it were bfloat16.
    assert not torch.allclose(run(musa(4, 16), weight.float())[0], y)
    # What is left of a row after its vectors is not written.
    assert torch.equal(run(musa(4, 19), musa(19))[0][:, 16:], musa(4, 19).cpu()[:, 16:])


def test_activations_look_at_no_strides(sgl: Any) -> None:
    x = musa(4, 16)
    assert torch.allclose(sgl.silu_and_mul(x).cpu().float(), swiglu(x.cpu().float()), rtol=1e-2)
    strided = musa(4, 32)[:, :16]
    assert not torch.equal(sgl.silu_and_mul(strided), sgl.silu_and_mul(strided.contiguous()))
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        sgl.silu_and_mul(musa(4, 14))


def rotated(x: Tensor, rows: Tensor, is_neox: bool) -> Tensor:
    cos, sin = (part[:, None] for part in rows.chunk(2, -1))
    first, second = x.chunk(2, -1) if is_neox else (x[..., 0::2], x[..., 1::2])
    found = first * cos - second * sin, second * cos + first * sin
    return torch.cat(found, -1) if is_neox else torch.stack(found, -1).flatten(-2)


@pytest.mark.parametrize("is_neox", [True, False])
def test_rotations(sgl: Any, is_neox: bool) -> None:
    positions, cache = torch.tensor([3, 0, 2], device="musa"), musa(8, 16)
    query, key = musa(3, 4, 32)[..., :16], musa(3, 2, 16)
    before = query.cpu(), key.cpu()
    sgl.musa_rotary_embedding_contiguous(positions, query, key, 16, cache, is_neox)
    for after, x in zip((query, key), before, strict=True):
        assert torch.equal(after.cpu(), rotated(x, cache.cpu()[[3, 0, 2]], is_neox))
    query, key = before[0].to("musa"), before[1].to("musa")
    offsets = torch.tensor([1, 1, 0], device="musa")
    args = (positions, query, key, 16, cache, is_neox, 16, offsets)
    sgl.musa_batched_rotary_embedding_contiguous(*args)
    assert torch.equal(key.cpu(), rotated(before[1], cache.cpu()[[4, 1, 2]], is_neox))


def test_what_rotations_want(sgl: Any) -> None:
    positions, cache, x = torch.arange(3, device="musa"), musa(8, 16), musa(3, 2, 16)
    call = sgl.musa_rotary_embedding_contiguous
    for args, said in (
        ((positions.int(), x, x, 16, cache), "expected scalar type Long"),
        ((positions, x, x, 16, cache.float()), "expected scalar type"),
        ((positions, x.flatten(1), x, 16, cache), "must be 3D"),
    ):
        with pytest.raises(RuntimeError, match=said):
            call(*args, True)
    # Heads of key are looked for where those of query would be.
    wide, key = musa(3, 2, 16), musa(3, 2, 32)[..., :16]
    wanted = rotated(key.cpu(), cache.cpu()[:3], True)
    sgl.rotary_embedding(positions, wide, key, 16, cache, True)
    assert not torch.equal(key.cpu(), wanted)
