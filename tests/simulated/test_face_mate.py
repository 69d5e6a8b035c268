"""The stand-in for MATE: signatures, constraints and what it computes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hal_musa.simulated import add, libraries
from hal_musa.simulated.attend import attend, hidden

NEW = torch.musa.get_device_capability() == (3, 1)
BF16 = torch.bfloat16
on_mp31 = pytest.mark.skipif(not NEW, reason="MATE is for MP31")


@pytest.fixture
def mate() -> Iterator[Any]:
    with libraries("mate"):
        yield importlib.import_module("mate")


def test_it_is_there_where_it_is_asked_for() -> None:
    assert importlib.util.find_spec("mate") is None
    with libraries("mate"):
        assert importlib.util.find_spec("mate") is not None
        assert importlib.util.find_spec("sgl_kernel") is None
        with libraries():
            assert importlib.util.find_spec("mate") is None
        assert importlib.import_module("mate").__version__ == "0.2.2"
    assert importlib.util.find_spec("mate") is None
    assert "mate" not in sys.modules
    with pytest.raises(ValueError, match="no stand-in is called 'flash_attn'"):
        add("flash_attn")


@pytest.mark.skipif(NEW, reason="MP31 has it")
def test_other_cards_import_it_and_use_nothing(mate: Any) -> None:
    with pytest.raises(RuntimeError, match="is for MP31"):
        mate.flash_attn_varlen_func  # noqa: B018 - the module is loaded when it is asked for


@on_mp31
def test_names_it_has_not(mate: Any) -> None:
    assert not hasattr(mate, "fused_moe")
    assert mate.gemm.__name__ == "mate.gemm"


# As MATE 0.2.2 has them, of which order and defaults matter.
SIGNATURES = {
    "flash_attn_varlen_func": "q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, "
    "max_seqlen_k=None, seqused_q=None, seqused_k=None, page_table=None, softmax_scale=None, "
    "causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
    "window_size=(-1, -1), learnable_sink=None, attention_chunk=0, softcap=0.0, "
    "scheduler_metadata=None, num_splits=0, pack_gqa=None, deterministic=False, sm_margin=0, "
    "return_softmax_lse=False, backend='auto', cp_world_size=1, cp_rank=0, "
    "cp_tot_seqused_k=None, out=None",
    "flash_attn_with_kvcache": "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, "
    "rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, "
    "page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, "
    "rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, "
    "causal=False, window_size=(-1, -1), learnable_sink=None, attention_chunk=0, softcap=0.0, "
    "rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, "
    "return_softmax_lse=False, cp_world_size=1, cp_rank=0, cp_tot_seqused_k=None",
    "get_scheduler_metadata": "batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, "
    "headdim, seqused_q=None, seqused_k=None, qkv_dtype=torch.bfloat16, headdim_v=None, "
    "cu_seqlens_q=None, cu_seqlens_k=None, cu_seqlens_k_new=None, cache_leftpad=None, "
    "page_size=None, max_seqlen_k_new=0, causal=False, window_size=(-1, -1), attention_chunk=0, "
    "has_softcap=False, num_splits=0, pack_gqa=None, mp_margin=0",
    "moe_fused_gate": "input, bias, num_expert_group, topk_group, topk, num_fused_shared_experts, "
    "routed_scaling_factor, renormalize, apply_routed_scaling_factor_on_output, "
    "num_token_non_padded=0, static_index_map=None, dynamic_index_map=None, "
    "dynamic_index_map_valid=None, random_index=None, num_physical_experts=0, map_policy=0",
    "get_mla_metadata": "cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q=None, "
    "is_fp8_kvcache=False, topk=None, q=None, bs=None",
    "flash_mla_with_kvcache": "q, k_cache, block_table, cache_seqlens, head_dim_v, "
    "tile_scheduler_metadata, num_splits, softmax_scale=None, causal=False, is_fp8_kvcache=False, "
    "indices=None",
    "gemm.gemm_fp8_nt_groupwise": "a, b, a_scale, b_scale, scale_major_mode=None, mma_sm=None, "
    "scale_granularity_mnk=None, out=None, out_dtype=None, backend='auto', output_scale=None",
    "gemm.bmm_fp8": "a, b, a_scale, b_scale, out_dtype, out=None, backend='auto', "
    "scale_granularity_mnk=None, output_scale=None",
    "gemm.bmm_fp16": "a, b, out_dtype, out=None, backend='auto', c=None",
    "gemm.ragged_m_moe_gemm_16bit": "input_a, input_b, ragged_tokens_info, out, "
    "gemm_mode='per_token', major_a_mode='K', major_b_mode='K', num_mp=None, alignment_m=None",
    "gemm.ragged_m_moe_gemm_8bit": "input_a, input_b, ragged_tokens_info, out, "
    "gemm_mode='per_token', major_a_mode='K', major_b_mode='K', scale_granularity_mnk=None, "
    "num_mp=None, alignment_m=None",
    "gemm.masked_moe_gemm_16bit": "a, b, masked_tokens_info, out, expect_tokens=None, "
    "enable_overlap=False, signal=None",
    "gemm.masked_moe_gemm_8bit": "input_a, input_b, masked_tokens_info, out, "
    "scale_granularity_mnk=None, expect_tokens=None, enable_overlap=False, signal=None",
}


@on_mp31
@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(mate: Any, name: str) -> None:
    place, _, last = name.rpartition(".")
    found = getattr(getattr(mate, place) if place else mate, last)
    wanted = inspect.signature(eval(f"lambda {SIGNATURES[name]}: None"))
    parameters = [(p.name, p.kind, p.default) for p in inspect.signature(found).parameters.values()]
    assert parameters == [(p.name, p.kind, p.default) for p in wanted.parameters.values()]


def musa(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to("musa")


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="musa")


def ragged(**how: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sequences of 3 and 2 rows over 5 and 2 keys, of 4 heads and 2."""
    mate = importlib.import_module("mate")
    q, k, v = musa(5, 4, 16), musa(7, 2, 16), musa(7, 2, 16)
    cu = {"cu_seqlens_q": ints(0, 3, 5), "cu_seqlens_k": ints(0, 5, 7)}
    out, lse = mate.flash_attn_varlen_func(
        *(q, k, v), **cu, max_seqlen_q=3, max_seqlen_k=5, return_softmax_lse=True, **how
    )
    return out, lse, [x.cpu() for x in (q, k, v)]


@on_mp31
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (1, 0)])
def test_ragged_attention(mate: Any, causal: bool, window: tuple[int, int]) -> None:
    out, lse, (q, k, v) = ragged(causal=causal, window_size=window)
    assert (out.dtype, lse.dtype, lse.shape) == (BF16, torch.float32, (4, 5))
    for rows, keys in ((slice(0, 3), slice(0, 5)), (slice(3, 5), slice(5, 7))):
        gone = hidden(rows.stop - rows.start, keys.stop - keys.start, causal, *window)
        wanted, wanted_lse = attend(q[rows], k[keys], v[keys], 0.25, gone)
        assert torch.equal(out[rows].cpu(), wanted.to(BF16))
        assert torch.equal(lse[:, rows].cpu(), wanted_lse)


def test_the_reference_is_torch_s() -> None:
    q, k, v = (torch.randn(4, 2, 8) for _ in range(3))
    found, _ = attend(q, k, v, 0.5, hidden(4, 4, True, -1, -1))
    turned = (x.transpose(0, 1) for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*turned, is_causal=True, scale=0.5)
    assert torch.allclose(found.transpose(0, 1), wanted, atol=1e-6)
    none = attend(q, k, v, 0.5, torch.ones(4, 4, dtype=torch.bool))
    assert torch.equal(none[0], torch.zeros(4, 2, 8))
    assert torch.equal(none[1], torch.full((2, 4), -torch.inf))


def paged(**how: Any) -> Any:
    mate = importlib.import_module("mate")
    return mate.flash_attn_with_kvcache(
        *(musa(2, 1, 4, 16), musa(6, 4, 2, 16), musa(6, 4, 2, 16)),
        cache_seqlens=ints(5, 2),
        page_table=torch.tensor([[3, 1], [5, 0]], dtype=torch.int32, device="musa"),
        causal=True,
        **how,
    )


@on_mp31
def test_pages(mate: Any) -> None:
    out = paged().cpu()
    keys = musa(6, 4, 2, 16).cpu()
    mine = torch.cat([keys[3], keys[1]])[:5]
    wanted = attend(musa(2, 1, 4, 16).cpu()[0], mine, mine, 0.25)[0]
    assert torch.equal(out[0], wanted.to(BF16))


@on_mp31
def test_a_plan_is_of_one_shape_and_its_lengths(mate: Any) -> None:
    def plan(*lengths: int, heads: int = 4) -> Tensor:
        used = ints(*lengths)
        return mate.get_scheduler_metadata(2, 1, 8, heads, 2, 16, seqused_k=used, causal=True)

    assert torch.equal(paged(scheduler_metadata=plan(5, 2)), paged())
    assert paged(scheduler_metadata=plan(4, 2)).isnan().all()
    assert paged(scheduler_metadata=plan(5, 2, heads=8)).isnan().all()
    with pytest.raises(TypeError, match="cache_seqlens"):
        mate.get_scheduler_metadata(2, 1, 8, 4, 2, 16, cache_seqlens=ints(5, 2))


@on_mp31
def test_attention_s_constraints(mate: Any) -> None:
    wide, half = musa(4, 2, 576), musa(4, 2, 16, dtype=torch.float32)
    cu = (ints(0, 4), ints(0, 4), 4, 4)
    for x, said in ((half, "float16, bfloat16"), (wide, "512 at most")):
        with pytest.raises(RuntimeError, match=said):
            mate.flash_attn_varlen_func(x, x, x, *cu)
    with pytest.raises(NotImplementedError, match="descale"):
        ragged(q_descale=musa(2, 2))


@on_mp31
def test_latent_attention(mate: Any) -> None:
    q, pages = musa(2, 1, 8, 576), musa(4, 4, 1, 576)
    table, lengths = ints(2, 0, 1, 3).view(2, 2), ints(6, 3)
    plan = mate.get_mla_metadata(lengths, 8, 1)
    out, lse = mate.flash_mla_with_kvcache(q, pages, table, lengths, 512, *plan)
    assert (out.shape, lse.shape) == ((2, 1, 8, 512), (2, 1, 8))
    keys = torch.cat([pages.cpu()[2], pages.cpu()[0]])[:6]
    wanted = attend(q.cpu()[0], keys, keys[..., :512], 576**-0.5)[0]
    assert torch.equal(out.cpu()[0], wanted.to(BF16))
    stale = mate.get_mla_metadata(ints(5, 3), 8, 1)
    found = mate.flash_mla_with_kvcache(q, pages, table, lengths, 512, *stale)
    assert found[0].isnan().all()
    # The same by FlashAttention's function, whose metadata is room to work in.
    same = mate.flash_attn_with_kvcache(
        q[..., 512:].contiguous(),
        *(pages[..., 512:], pages[..., :512]),
        qv=q[..., :512].contiguous(),
        cache_seqlens=lengths,
        page_table=table,
        scheduler_metadata=(torch.empty(8, dtype=torch.uint8, device="musa"), False),
    )
    assert torch.equal(same, out)


@on_mp31
def test_the_gate(mate: Any) -> None:
    logits, bias = musa(5, 32, dtype=torch.float32), musa(32, dtype=torch.float32)
    weights, ids = mate.moe_fused_gate(logits, bias, 4, 2, 5, 1, 2.5, True, False)
    assert (weights.dtype, ids.dtype, ids.shape) == (torch.float32, torch.int32, (5, 5))
    scores = logits.cpu().sigmoid()
    choice = (scores + bias.cpu()).view(5, 4, 8)
    kept = choice.topk(2).values.sum(-1).topk(2).indices
    gone = torch.ones(5, 4, dtype=torch.bool).scatter(1, kept, False)
    wanted = choice.masked_fill(gone[..., None], -torch.inf).view(5, 32).topk(4).indices
    assert torch.equal(ids.cpu()[:, :4].long(), wanted)
    assert (ids[:, 4] == 32).all()
    of_wanted = scores.gather(1, wanted)
    assert torch.allclose(weights.cpu()[:, :4], of_wanted / of_wanted.sum(1, keepdim=True))
    assert torch.allclose(weights.cpu()[:, 4], torch.tensor(1 / 2.5))
    scaled, _ = mate.moe_fused_gate(logits, bias, 4, 2, 5, 1, 2.5, False, True)
    assert torch.allclose(scaled.cpu()[:, :4], of_wanted * 2.5)
    padded = mate.moe_fused_gate(logits, bias, 4, 2, 5, 1, 2.5, True, False, 2)[1]
    assert (padded[2:] == -1).all()
    assert torch.equal(padded[:2], ids[:2])


@on_mp31
@pytest.mark.parametrize(
    ("experts", "bias", "args", "said"),
    [
        (32, torch.bfloat16, (4, 2, 4, 0, 1.0), "same dtype"),
        (48, torch.float32, (4, 2, 4, 0, 1.0), "not divisible by 32"),
        (64, torch.float32, (3, 2, 4, 0, 1.0), "not divisible by 3 groups"),
        (32, torch.float32, (4, 2, 1, 1, 1.0), "exceed the shared"),
        (32, torch.float32, (4, 2, 4, 0, 0.0), "must not be 0"),
    ],
)
def test_the_gate_s_constraints(
    mate: Any, experts: int, bias: torch.dtype, args: tuple[Any, ...], said: str
) -> None:
    logits = musa(2, experts, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=said):
        mate.moe_fused_gate(logits, musa(experts, dtype=bias), *args, True, False)


@on_mp31
def test_it_knows_no_fake_tensors(mate: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException

    with FakeTensorMode():
        logits, bias = torch.empty(4, 32, device="musa"), torch.empty(32, device="musa")
        with pytest.raises(UnsupportedOperatorException):
            mate.moe_fused_gate(logits, bias, 4, 2, 4, 0, 1.0, True, False)


@on_mp31
def test_it_is_captured(mate: Any) -> None:
    logits, bias = musa(4, 32, dtype=torch.float32), musa(32, dtype=torch.float32)
    captured = torch.musa.MUSAGraph()
    with torch.musa.graph(captured):
        _, ids = mate.moe_fused_gate(logits, bias, 4, 2, 4, 0, 1.0, True, False)
    logits.neg_()
    captured.replay()
    assert torch.equal(ids, mate.moe_fused_gate(logits, bias, 4, 2, 4, 0, 1.0, True, False)[1])
