"""The paths of Qwen and DeepSeek on a Moore Threads card: who serves, what is passed, what comes.

Two cards, and with Triton's interpreter or without Triton: who serves differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal.hardware import Capability
from simulated.vendors import ARCH, asked, chosen, close, drawn, host, on_card, vendors

BF16, F16, F32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
TRITON = hal.supports(Capability.TRITON, "musa")
OTHERWISE = "triton:triton" if TRITON else "native:torch"
# The interpreter computes on the bits of bfloat16.
OTHERWISE_16 = "native:torch"

pytestmark = pytest.mark.filterwarnings("ignore:the reference, which is slow")
from_22 = pytest.mark.skipif(ARCH < 22, reason="mp_21 has no bfloat16")
from_31 = pytest.mark.skipif(ARCH < 31, reason="MATE is for mp_31")


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        yield


def lengths(*each: int) -> Tensor:
    return torch.tensor(each, dtype=torch.int32)


def starts(*each: int) -> Tensor:
    return torch.tensor([0, *each]).cumsum(0).to(torch.int32)


# Activations and norms.


@from_22
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_swiglu_is_mudnns(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(5, 256, dtype=dtype)
    assert chosen("silu_and_mul", on_card(x)) == "musa:torch_musa"
    calls = asked(monkeypatch, "aten._fused_swiglu_forward")
    close("silu_and_mul", x)
    assert torch.equal(host(calls[0]["input"]), x)


@from_22
def test_a_norm_is_mudnns_with_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = drawn(5, 256, dtype=BF16), drawn(256, dtype=BF16)
    assert chosen("rms_norm", *on_card((x, weight))) == "musa:torch_musa"
    calls = asked(monkeypatch, "aten._fused_rmsnorm_forward")
    close("rms_norm", x, weight, 1e-5)
    (call,) = calls
    assert (call["normalized_shape"], call["eps"], call["weight"].dtype) == ([256], 1e-5, BF16)


def test_a_weight_becomes_wider_and_never_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "aten._fused_rmsnorm_forward")
    close("rms_norm", drawn(5, 256), drawn(256, dtype=BF16), 1e-6)
    assert calls[0]["weight"].dtype == F32
    narrow = drawn(5, 256, dtype=BF16), drawn(256)
    assert chosen("rms_norm", *on_card(narrow)) == OTHERWISE_16
    close("rms_norm", *narrow)
    assert len(calls) == 1


# Routing.


@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_softmax_routing_caps_before_it_adds_the_bias(softcap: float) -> None:
    gating, bias = 20 * drawn(6, 48), drawn(48)
    options: dict[str, Any] = {"correction_bias": bias, "softcap": softcap, "renormalize": True}
    reason = str(hal.explain("topk_softmax", on_card(gating), 4, **on_card(options)))
    assert "sgl_kernel adds the bias before the cap" in reason
    assert chosen("topk_softmax", on_card(gating), 4, **on_card(options)) == OTHERWISE
    close("topk_softmax", gating, 4, **options)


def test_sigmoid_routing_has_ids_in_range() -> None:
    gating, bias = drawn(6, 48), torch.full((48,), -2e4)
    assert chosen("topk_sigmoid", *on_card((gating, 4)), correction_bias=on_card(bias)) == OTHERWISE
    _, ids = close("topk_sigmoid", gating, 4, correction_bias=bias, renormalize=True)
    assert int(host(ids).max()) < 48


def routed(experts: int = 256, rows: int = 6) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups = {"num_groups": 8, "topk_groups": 4, "scoring": "sigmoid", "renormalize": True}
    return (drawn(rows, experts), 8), {**groups, "correction_bias": drawn(experts)}


@from_31
@pytest.mark.skipif(TRITON, reason="Triton's is one kernel, and comes first")
def test_biased_grouped_routing_is_mates(monkeypatch: pytest.MonkeyPatch) -> None:
    args, options = routed()
    assert chosen("grouped_topk", *on_card(args), **on_card(options)) == "musa:mate"
    calls = asked(monkeypatch, "mate.moe_fused_gate")
    close("grouped_topk", *args, **options, routed_scaling_factor=2.5, scale_on_output=True)
    (call,) = calls
    assert call["input"].dtype == call["bias"].dtype == F32
    wanted = {"num_expert_group": 8, "topk_group": 4, "topk": 8, "num_fused_shared_experts": 0}
    assert wanted.items() <= call.items()
    # It divides by a sum that may be 0, and knows nothing of rows with NaN: hal weighs.
    assert (call["renormalize"], call["apply_routed_scaling_factor_on_output"]) == (False, False)


@from_31
@pytest.mark.skipif(TRITON, reason="Triton's is one kernel, and comes first")
@pytest.mark.parametrize("value", [float("nan"), -200.0, -float("inf"), float("inf")])
@pytest.mark.parametrize("shared", [0, 2])
def test_mates_routing_is_right_for_any_logits(value: float, shared: int) -> None:
    (gating, k), options = routed()
    gating[1], gating[2, 3], gating[3, ::2] = value, value, value
    more = {"num_fused_shared_experts": shared, "routed_scaling_factor": 2.5}
    close("grouped_topk", gating, k + shared, **options, **more)
    options["correction_bias"][5] = -float("inf")
    close("grouped_topk", gating, k + shared, **options, **more)


@pytest.mark.skipif(not TRITON and ARCH >= 31, reason="MATE's is there")
def test_biased_grouped_routing_is_tritons_where_it_works() -> None:
    args, options = routed()
    found = hal.explain("grouped_topk", *on_card(args), **on_card(options))
    assert str(found.chosen) == OTHERWISE
    assert ("do what Triton's does in one" in str(found)) == (TRITON and ARCH >= 31)
    close("grouped_topk", *args, **options)


# 8-bit products.


@from_31
def test_group_quantisation_divides_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(6, 512, dtype=BF16)
    assert chosen("per_token_group_quant", on_card(x)) == "musa:sgl_kernel"
    calls = asked(monkeypatch, "sgl_kernel.sgl_per_token_group_quant_8bit")
    q, scale = hal.ops.per_token_group_quant(on_card(x))
    wanted_q, wanted = hal.ops.per_token_group_quant(x)
    assert torch.equal(host(q).view(torch.uint8), wanted_q.view(torch.uint8))
    assert torch.equal(host(scale), wanted)
    (call,) = calls
    assert (call["group_size"], call["enable_v2"], call["scale_ue8m0"]) == (128, False, False)
    assert (call["eps"], call["fp8_min"], call["fp8_max"]) == (1e-10, -448.0, 448.0)


def blocks(rows: int, n: int, k: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    a, a_scale = hal.ops.per_token_group_quant(drawn(rows, k))
    b = (drawn(n, k) * 60).clamp(-448, 448).to(E4M3)
    return (a, b, a_scale, drawn(-(-n // 128), k // 128).abs() + 0.5), {"out_dtype": BF16}


@from_31
def test_the_block_scaled_product_is_mates(monkeypatch: pytest.MonkeyPatch) -> None:
    args, options = blocks(6, 192, 512)
    # Scales column by column, as some quantise.
    args = (*args[:2], args[2].t().contiguous().t(), args[3])
    assert chosen("block_scaled_mm", *on_card(args), **options) == "musa:mate"
    calls = asked(monkeypatch, "mate.gemm.gemm_fp8_nt_groupwise")
    close("block_scaled_mm", *args, **options)
    (call,) = calls
    assert (call["scale_major_mode"], call["out_dtype"]) == ("K", BF16)
    assert tuple(call["scale_granularity_mnk"]) == (1, 128, 128)
    assert all(call[name].is_contiguous() for name in ("a", "b", "a_scale", "b_scale"))


@from_31
def test_the_scaled_product_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (drawn(n, 64).mul(60).clamp(-448, 448).to(E4M3) for n in (6, 32))
    scales = drawn(6, 1).abs(), drawn(1).abs()
    assert chosen("scaled_mm", *on_card((a, b, *scales)), out_dtype=BF16) == "musa:torch_musa"
    calls = asked(monkeypatch, "aten._scaled_mm")
    close("scaled_mm", a, b, *scales, out_dtype=BF16)
    (call,) = calls
    # Scales of one kind, both for each row.
    assert (call["scale_a"].shape, call["scale_b"].shape) == ((6, 1), (1, 32))
    assert call["mat2"].stride(0) == 1


# Attention.


def paged(
    queries: tuple[int, ...], keys: tuple[int, ...], page: int = 64, heads: int = 8
) -> tuple[Any, ...]:
    """Arguments of paged attention: pages in any order, and numbers of none beyond what is used."""
    pages = max(-(-n // page) for n in keys)
    table = torch.full((len(keys), pages), -7, dtype=torch.int32)
    order = iter(torch.randperm(len(keys) * pages).tolist())
    for row, n in zip(table, keys, strict=True):
        for i in range(-(-n // page)):
            row[i] = next(order)
    caches = (drawn(len(keys) * pages, page, 2, 128, dtype=BF16) for _ in "kv")
    q = drawn(sum(queries), heads, 128, dtype=BF16)
    return q, *caches, table, lengths(*keys), starts(*queries), max(queries), max(keys)


STEPS = {
    "decode": ((1, 1, 1), (130, 1, 64)),
    "chunked prefill": ((64, 5, 1), (130, 5, 64)),
    "speculative verification": ((4, 4, 4), (130, 4, 67)),
}


@from_31
@pytest.mark.parametrize("step", STEPS)
def test_paged_attention_is_mates(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = paged(*STEPS[step])
    assert chosen("paged_attention", *on_card(args), causal=True) == "musa:mate"
    plans = asked(monkeypatch, "mate.get_scheduler_metadata")
    calls = asked(monkeypatch, "mate.flash_attn_with_kvcache")
    close("paged_attention", *args, causal=True)
    (call,), (plan,) = calls, plans
    assert torch.equal(host(call["cache_seqlens"]), args[4])
    assert torch.equal(host(call["cu_seqlens_q"]), args[5])
    wanted = {"causal": True, "window_size": (-1, -1), "softcap": 0.0, "return_softmax_lse": True}
    assert wanted.items() <= call.items()
    assert (call["max_seqlen_q"], call["softmax_scale"]) == (args[6], 128**-0.5)
    # What the table holds where no block is needed is no address to look at.
    assert int(host(call["page_table"]).min()) >= 0
    assert plan["seqused_k"] is call["cache_seqlens"]
    assert (plan["num_heads_q"], plan["num_heads_kv"], plan["page_size"]) == (8, 2, 64)
    assert (plan["max_seqlen_q"], plan["max_seqlen_k"]) == args[6:]


@from_31
def test_a_schedule_is_of_the_lengths_of_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    args = on_card(paged((1, 1), (130, 70)))
    plans = asked(monkeypatch, "mate.get_scheduler_metadata")
    hal.ops.paged_attention(*args)
    # The same call to hal, on the same tensors, a step later.
    args[4].copy_(lengths(128, 3))
    out, lse = hal.ops.paged_attention(*args)
    assert [host(plan["seqused_k"]).tolist() for plan in plans] == [[128, 3]] * 2
    wanted_out, wanted_lse = hal.ops.paged_attention(*host(args))
    torch.testing.assert_close(host(out), wanted_out)
    torch.testing.assert_close(host(lse), wanted_lse)


@from_31
def test_a_schedule_is_asked_for_by_the_name_that_the_library_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mate

    real, seen = mate.get_scheduler_metadata, list[Tensor]()

    def renamed(batch_size: int, *args: Any, cache_seqlens: Tensor, **kwargs: Any) -> Tensor:
        seen.append(cache_seqlens)
        return real(batch_size, *args, seqused_k=cache_seqlens, **kwargs)

    monkeypatch.setattr(mate, "get_scheduler_metadata", renamed)
    args = paged((1, 1), (130, 70))
    close("paged_attention", *args)
    assert torch.equal(host(seen[0]), args[4])


@from_31
def test_a_captured_step_is_replayed_with_other_lengths() -> None:
    args = on_card(paged((1, 1), (130, 70)))
    hal.ops.paged_attention(*args)
    graph = torch.musa.MUSAGraph()
    with torch.musa.graph(graph):
        out, _ = hal.ops.paged_attention(*args)
    for keys in ((128, 3), (64, 65)):
        args[4].copy_(lengths(*keys))
        graph.replay()
        wanted, _ = hal.ops.paged_attention(*host(args))
        torch.testing.assert_close(host(out), wanted)


def images(dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    """Vision: patches of three images that see each other, and some that pad the batch."""
    each, heads = starts(9, 16, 4), (drawn(32, 4, 72, dtype=dtype) for _ in "qkv")
    return *heads, each, each, 16, 16


def test_vision_attention_is_mates_from_31_on(monkeypatch: pytest.MonkeyPatch) -> None:
    args = images()
    if ARCH < 31:
        found = hal.explain("varlen_attention", *on_card(args))
        assert "mate has it from mp_31 on, and this is mp_" in str(found)
        close("varlen_attention", *args)
        return
    assert chosen("varlen_attention", *on_card(args)) == "musa:mate"
    calls = asked(monkeypatch, "mate.flash_attn_varlen_func")
    out, lse = close("varlen_attention", *args)
    (call,) = calls
    wanted = {"causal": False, "window_size": (-1, -1), "max_seqlen_q": 16, "max_seqlen_k": 16}
    assert wanted.items() <= call.items()
    assert torch.equal(host(call["cu_seqlens_k"]), args[4])
    # What pads the batch is written too.
    assert not host(out)[29:].any()
    assert host(lse)[29:].isneginf().all()


@from_31
def test_a_cap_is_not_left_to_mates_choice_of_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "mate.flash_attn_varlen_func")
    args = images()
    close("varlen_attention", *args, softcap=20.0)
    close("varlen_attention", *args, window=(4, -1), causal=True)
    assert [call["backend"] for call in calls] == ["mutlass", "auto"]
    assert calls[1]["window_size"] == (4, 0)


@pytest.mark.skipif(ARCH != 22, reason="where there is MATE it comes first")
def test_one_causal_sequence_is_mudnns_on_22(monkeypatch: pytest.MonkeyPatch) -> None:
    q, (k, v) = drawn(40, 8, 128, dtype=BF16), (drawn(40, 2, 128, dtype=BF16) for _ in "kv")
    whole = starts(37)
    args = q, k, v, whole, whole, 40, 40
    calls = asked(monkeypatch, "aten._scaled_dot_product_attention_flash_musa")
    there = on_card((q, k, v))
    both = on_card(whole)
    out, lse = hal.ops.varlen_attention(*there, both, both, 40, 40, causal=True)
    wanted_out, wanted_lse = hal.ops.varlen_attention(*args, causal=True)
    torch.testing.assert_close(host(out), wanted_out)
    torch.testing.assert_close(host(lse), wanted_lse)
    assert (calls[0]["query"].shape, calls[0]["is_causal"]) == ((1, 8, 40, 128), True)
    # The same shapes, with starts that may hold something else, or without the mask.
    hal.ops.varlen_attention(*there, both, both.clone(), 40, 40, causal=True)
    close("varlen_attention", *args)
    assert len(calls) == 1


@from_31
@pytest.mark.parametrize("heads", [16, 128])
def test_latents_are_mates(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q_nope, q_rope = drawn(3, heads, 512, dtype=BF16), drawn(3, heads, 64, dtype=BF16)
    table = torch.tensor([[1, 2], [0, -1], [5, 7]], dtype=torch.int32)
    args = q_nope, q_rope, drawn(4, 64, 576, dtype=BF16), table, lengths(100, 7, 0)
    assert chosen("mla_decode", *on_card(args), scale=0.07) == "musa:mate"
    plans = asked(monkeypatch, "mate.flashmla.get_mla_metadata")
    calls = asked(monkeypatch, "mate.flashmla.flash_mla_with_kvcache")
    close("mla_decode", *args, scale=0.07)
    (call,), (plan,) = calls, plans
    assert call["q"].shape == (3, 1, heads, 576)
    assert (call["head_dim_v"], call["softmax_scale"], call["causal"]) == (512, 0.07, False)
    assert (plan["num_q_tokens_per_head_k"], plan["num_heads_k"]) == (heads, 1)
    assert plan["cache_seqlens"] is call["cache_seqlens"]


# Decode without attention.


@from_22
@pytest.mark.parametrize("activation", [None, "swiglu"])
def test_a_row_is_multiplied_by_sgl_kernel(
    activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = drawn(1, 256, dtype=BF16), drawn(64, 256, dtype=BF16)
    assert chosen("fused_gemv", *on_card((x, weight)), activation=activation) == "musa:sgl_kernel"
    calls = asked(monkeypatch, "sgl_kernel.musa.musa_fused_gemv")
    close("fused_gemv", x, weight, activation=activation)
    (call,) = calls
    assert (call["use_swigelu"], call["use_rms_norm"]) == (activation is not None, False)
    # It reads the weight once for each row.
    close("fused_gemv", drawn(7, 256, dtype=BF16), weight, activation=activation)
    assert len(calls) == 1


@from_22
def test_nibbles_are_multiplied_by_sgl_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randint(0, 256, (64, 128), dtype=torch.uint8)
    x, scale = drawn(2, 256, dtype=F16), drawn(64, 2, dtype=F16)
    calls = asked(monkeypatch, "sgl_kernel.musa.musa_fused_gemv")
    close("fused_gemv", x, weight, weight_scale=scale)
    assert calls[0]["x_scales"] is None


@from_31
def test_codes_are_multiplied_by_sgl_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    (a, b, a_scale, b_scale), _ = blocks(2, 192, 512)
    calls = asked(monkeypatch, "sgl_kernel.musa.musa_fused_gemv")
    close("fused_gemv", a, b, x_scale=a_scale, weight_scale=b_scale)
    assert calls[0]["x_scales"].shape == (2, 4)


@pytest.mark.parametrize("offsets", [None, torch.tensor([3, 0, 7])])
@pytest.mark.parametrize("is_neox", [False, True])
def test_heads_of_float32_are_turned_by_sgl_kernel(offsets: Tensor | None, is_neox: bool) -> None:
    positions = torch.tensor([4, 0, 2], dtype=torch.int32)
    args = positions, drawn(3, 4, 64), drawn(3, 2, 64), drawn(16, 32)
    options: dict[str, Any] = {"is_neox": is_neox, "offsets": offsets}
    there = on_card((args, options))
    assert chosen("rotary_embedding", *there[0], **there[1]) == "musa:sgl_kernel"
    close("rotary_embedding", *args, **options)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 31, 64])
def test_a_tail_is_no_ones_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch, "sgl_kernel.musa.musa_fused_mul_add")
    x, y = drawn(size), drawn(size, 1)[:, 0]
    close("mul_add", x, y, 0.5)
    (call,) = calls
    assert call["self"].numel() % 4 == 0 == call["bias"].numel() % 4
    assert call["accurate"] is True
