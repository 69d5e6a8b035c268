"""What Moore Threads' libraries are not asked for, and the reason that is given for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal.hardware import Capability
from hal.offers import offers
from hal.op import OPS
from simulated.vendors import ARCH, vendors

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        yield


def of(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="musa")


def ints(*shape: int) -> Tensor:
    return of(*shape, dtype=torch.int32)


def refused(kernel: str, op: str, *args: Any, **kwargs: Any) -> str:
    """Why a kernel does not take a call."""
    found = hal.explain(op, *args, **kwargs)
    (reason,) = [
        each.reason
        for each in found.candidates
        if str(each) == f"musa:{kernel}"
        or (str(each) == "musa" and each.reason.startswith(f"{kernel}: "))
    ]
    assert not str(found.chosen).startswith(f"musa:{kernel}")
    return reason


CALLS_22: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any], str]] = {
    "float64": ("torch_musa", "silu_and_mul", (of(2, 8, dtype=F64),), {}, "float32, float16"),
    "norm of float64": (
        *("torch_musa", "rms_norm", (of(2, 8, dtype=F64), None)),
        *({}, "float32, float16 and bfloat16"),
    ),
    "wider weight": (
        *("torch_musa", "rms_norm", (of(2, 8), of(8, dtype=F32))),
        *({}, "torch.float32 would be rounded"),
    ),
    "other half": ("torch_musa", "rms_norm", (of(2, 8), of(8, dtype=F16)), {}, "would be rounded"),
    "mul_add of halves": (
        *("sgl_kernel", "mul_add", (of(8), of(8), 0.5)),
        *({}, "rounds the product"),
    ),
    "mul_add of two dtypes": (
        *("sgl_kernel", "mul_add", (of(8, dtype=F32), of(8), 0.5)),
        *({}, "tensors of one dtype"),
    ),
    "rotation of halves": (
        *("sgl_kernel", "rotary_embedding", (ints(2), of(2, 4, 64), of(2, 4, 64), of(9, 64))),
        *({}, "each product to torch.bfloat16"),
    ),
    "rotation without key": (
        *("sgl_kernel", "rotary_embedding", (ints(2), of(2, 4, 64, dtype=F32), None)),
        *({"cos_sin_cache": of(9, 64, dtype=F32)}, "needs a key"),
    ),
    "rotation by a narrow cache": (
        "sgl_kernel",
        "rotary_embedding",
        (ints(2), of(2, 4, 64, dtype=F32), of(2, 4, 64, dtype=F32), of(9, 64)),
        *({}, "one dtype, float32"),
    ),
    "rotation by a wide cache": (
        "sgl_kernel",
        "rotary_embedding",
        (ints(2), of(2, 4, 64, dtype=F32), of(2, 4, 64, dtype=F32), of(9, 96, dtype=F32)[:, :64]),
        *({}, "contiguous cache"),
    ),
    "gemv with a norm": (
        *("sgl_kernel", "fused_gemv", (of(1, 128), of(32, 128))),
        *({"norm_weight": of(32)}, "not safe"),
    ),
    "gemv without a tile": ("sgl_kernel", "fused_gemv", (of(1, 192), of(32, 192)), {}, "has tiles"),
    "gemv with half a tile": (
        *("sgl_kernel", "fused_gemv", (of(1, 128), of(32, 128))),
        *({"activation": "swiglu"}, "has tiles"),
    ),
    "gemv of float32": (
        *("sgl_kernel", "fused_gemv", (of(1, 128, dtype=F32), of(32, 128, dtype=F32))),
        *({}, "float16 and bfloat16"),
    ),
    "nibbles with one scale": (
        *("sgl_kernel", "fused_gemv", (of(1, 128), of(32, 64, dtype=torch.uint8))),
        *({"weight_scale": of(32, 1)}, "for signed"),
    ),
    "nibbles in short groups": (
        *("sgl_kernel", "fused_gemv", (of(1, 128), of(32, 64, dtype=torch.uint8))),
        *({"weight_scale": of(32, 4)}, "groups of 64 and of 128"),
    ),
    "experts' gemv": (
        *("sgl_kernel", "fused_moe_gemv", (of(1, 128), of(2, 32, 128), None, ints(1, 1))),
        *({}, "under another name"),
    ),
    "rows of zeros": ("sgl_kernel", "per_token_quant", (of(2, 8),), {}, "a row of zeros"),
    "softmax routing": ("sgl_kernel", "topk_softmax", (of(2, 8), 2), {}, "before the cap"),
    "sigmoid routing": ("sgl_kernel", "topk_sigmoid", (of(2, 8), 2), {}, "out of range"),
    "experts": (
        *("mate", "fused_experts", (of(2, 8), of(2, 16, 8), of(2, 8, 8), of(2, 1), ints(2, 1))),
        *({}, "2.5e-3 is allowed"),
    ),
}


def ragged(*widths: int, dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    width, value = widths if len(widths) == 2 else widths * 2
    heads = of(4, 2, width, dtype=dtype), of(4, 2, width, dtype=dtype), of(4, 2, value, dtype=dtype)
    return *heads, ints(2), ints(2), 4, 4


def paged(width: int = 128, *, dtype: torch.dtype = BF16, cache: Any = None) -> tuple[Any, ...]:
    pages = of(3, 16, 2, width, dtype=dtype) if cache is None else cache
    return of(2, 4, width, dtype=dtype), pages, pages, ints(2, 2), ints(2), ints(3), 1, 32


SINKS = {"sinks": of(2)}
ATTENTION_22: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "float32": (ragged(64, dtype=F32), {}, "in float16 and bfloat16"),
    "wide": (ragged(256), {}, "up to 128 columns"),
    "odd": (ragged(60), {}, "a multiple of 8"),
    "window": (ragged(64), {"window": (3, -1)}, "no window"),
    "softcap": (ragged(64), {"softcap": 3.0}, "no window, softcap"),
    "sinks": (ragged(64), SINKS, "softcap or sinks"),
    "scale": (ragged(64), {"scale": 0.3}, "MUSA 4.2"),
}

ATTENTION_31: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "float32": ("varlen_attention", ragged(64, dtype=F32), {}, "in float16 and bfloat16"),
    "values of another width": ("varlen_attention", ragged(128, 64), {}, "192 with 128"),
    "very wide": ("varlen_attention", ragged(520), {}, "up to 512"),
    "odd": ("varlen_attention", ragged(60), {}, "a multiple of 8"),
    "sinks": ("varlen_attention", ragged(64), SINKS, "sinks in them is not known"),
    "negative scale": ("varlen_attention", ragged(64), {"scale": -1.0}, "before it scales"),
    "8-bit cache": (
        *("paged_attention", paged(cache=of(3, 16, 2, 128, dtype=E4M3))),
        *({}, "8-bit cache"),
    ),
    "cache by columns": (
        *("paged_attention", paged(cache=of(3, 16, 128, 2).transpose(2, 3))),
        *({}, "multiples of 16 bytes"),
    ),
}


def latents(width: int = 512, page: int = 64, dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    q = of(2, 16, width, dtype=dtype), of(2, 16, 64, dtype=dtype)
    return *q, of(3, page, width + 64, dtype=dtype), ints(2, 1), ints(2)


MLA_31: dict[str, tuple[tuple[Any, ...], float, str]] = {
    "float32": (latents(dtype=F32), 0.1, "in float16 and bfloat16"),
    "narrow": (latents(256), 0.1, "latents of 512"),
    "short pages": (latents(page=16), 0.1, "blocks of 64"),
    "scale of 0": (latents(), 0.0, "before it scales"),
}


def factors(n: int, k: int, dtype: torch.dtype = E4M3) -> tuple[Tensor, ...]:
    return of(4, k, dtype=dtype), of(n, k, dtype=dtype)


def scales(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(of(*shape, dtype=F32) for shape in shapes)


ROWS = scales((4, 1), (32, 1))
BLOCKS = scales((4, 1), (1, 1))
PRODUCTS_31: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any], str]] = {
    "int8": (
        *("torch_musa", "scaled_mm", (*factors(32, 64, INT8), *ROWS)),
        *({"out_dtype": BF16}, "no product of int8"),
    ),
    "e5m2": (
        *("torch_musa", "scaled_mm", (*factors(32, 64, E5M2), *ROWS)),
        *({"out_dtype": BF16}, "known to multiply float8_e4m3fn"),
    ),
    "odd": (
        *("torch_musa", "scaled_mm", (*factors(32, 60), *ROWS)),
        *({"out_dtype": BF16}, "a multiple of 16"),
    ),
    "bias": (
        *("torch_musa", "scaled_mm", (*factors(32, 64), *ROWS)),
        *({"out_dtype": BF16, "bias": of(32)}, "adds a bias"),
    ),
    "float32": (
        *("torch_musa", "scaled_mm", (*factors(32, 64), *ROWS)),
        *({"out_dtype": F32}, "worth in float32"),
    ),
    "other blocks": (
        *("mate", "block_scaled_mm", (*factors(64, 128), *scales((4, 2), (1, 2)))),
        *({"out_dtype": BF16, "block": (64, 64)}, "blocks of 128 x 128"),
    ),
    "blocks of e5m2": (
        *("mate", "block_scaled_mm", (*factors(64, 128, E5M2), *BLOCKS)),
        *({"out_dtype": BF16}, "known to multiply float8_e4m3fn"),
    ),
    "half a block": (
        *("mate", "block_scaled_mm", (*factors(64, 64), *BLOCKS)),
        *({"out_dtype": BF16}, "64 rows and 128 columns"),
    ),
    "float16": (
        *("mate", "block_scaled_mm", (*factors(64, 128), *BLOCKS)),
        *({"out_dtype": F16}, "every version of MATE has bfloat16"),
    ),
    "codes of e5m2": (
        *("sgl_kernel", "fused_gemv", (*factors(32, 128, E5M2),)),
        *({"x_scale": BLOCKS[0], "weight_scale": BLOCKS[1]}, "multiplies float8_e4m3fn"),
    ),
}

QUANT_31: dict[str, tuple[tuple[int, ...], dict[str, Any], str]] = {
    "int8": ((2, 128), {"dtype": INT8}, "cut off, not rounded"),
    "e5m2": ((2, 128), {"dtype": E5M2}, "to float8_e4m3fn"),
    "columns": ((2, 128), {"scale_layout": "column"}, "tells layouts by strides"),
    "powers of two": ((2, 128), {"ue8m0": True}, "not exact"),
    "half a group": ((2, 192), {}, "whole groups"),
}

GATE_31: dict[str, tuple[dict[str, Any], str]] = {
    "softmax": ({"scoring": "softmax"}, "by sigmoid"),
    "no bias": ({"correction_bias": None}, "with a bias"),
    "float64": ({"correction_bias": of(256, dtype=F64)}, "no float64"),
    "groups of 128": ({"num_groups": 2, "topk_groups": 1}, "groups of up to 32"),
}

from_22 = pytest.mark.skipif(ARCH < 22, reason="the library is for mp_22")
from_31 = pytest.mark.skipif(ARCH < 31, reason="the library is for mp_31")
only_22 = pytest.mark.skipif(ARCH != 22, reason="of mp_22 alone")


@from_22
@pytest.mark.parametrize("call", CALLS_22)
def test_what_no_card_is_asked_for(call: str) -> None:
    kernel, op, args, kwargs, reason = CALLS_22[call]
    assert reason in refused(kernel, op, *args, **kwargs)


@from_22
@pytest.mark.parametrize("call", ATTENTION_22)
def test_what_mudnns_attention_is_not_asked_for(call: str) -> None:
    args, kwargs, reason = ATTENTION_22[call]
    with hal.prefer(varlen_attention="musa:torch_musa"):
        assert reason in refused("torch_musa", "varlen_attention", *args, **kwargs)


@from_31
@pytest.mark.parametrize("call", ATTENTION_31)
def test_what_mates_attention_is_not_asked_for(call: str) -> None:
    op, args, kwargs, reason = ATTENTION_31[call]
    assert reason in refused("mate", op, *args, **kwargs)


@from_31
@pytest.mark.parametrize("call", MLA_31)
def test_what_flash_mla_is_not_asked_for(call: str) -> None:
    args, scale, reason = MLA_31[call]
    assert reason in refused("mate", "mla_decode", *args, scale=scale)


@from_31
@pytest.mark.parametrize("call", PRODUCTS_31)
def test_which_products_are_not_asked_for(call: str) -> None:
    kernel, op, args, kwargs, reason = PRODUCTS_31[call]
    assert reason in refused(kernel, op, *args, **kwargs)


@from_31
@pytest.mark.parametrize("call", QUANT_31)
def test_which_quantisation_is_not_asked_for(call: str) -> None:
    shape, kwargs, reason = QUANT_31[call]
    assert reason in refused("sgl_kernel", "per_token_group_quant", of(*shape), **kwargs)


@from_31
@pytest.mark.skipif(hal.supports(Capability.TRITON, "musa"), reason="Triton's comes first")
@pytest.mark.parametrize("call", GATE_31)
def test_which_routing_is_not_asked_for(call: str) -> None:
    more, reason = GATE_31[call]
    options: dict[str, Any] = {"num_groups": 8, "topk_groups": 4, "scoring": "sigmoid"}
    options |= {"correction_bias": of(256, dtype=F32), **more}
    assert reason in refused("mate", "grouped_topk", of(2, 256, dtype=F32), 4, **options)


@from_31
@pytest.mark.skipif(hal.supports(Capability.TRITON, "musa"), reason="Triton's comes first")
@pytest.mark.parametrize(("experts", "groups"), [(48, 2), (192, 3), (2048, 64)])
def test_routing_in_no_lanes_of_a_warp(experts: int, groups: int) -> None:
    bias = of(experts, dtype=F32)
    options = {"num_groups": groups, "topk_groups": 1, "scoring": "sigmoid"}
    call = of(2, experts, dtype=F32), 2
    said = refused("mate", "grouped_topk", *call, **options, correction_bias=bias)
    assert "a multiple of 32 experts in 1, 2, 4 ... 32 groups" in said


@only_22
@pytest.mark.parametrize(
    ("kernel", "op", "args", "kwargs"),
    [
        ("mate", "paged_attention", paged(), {}),
        ("mate", "mla_decode", latents(), {"scale": 0.1}),
        ("mate", "block_scaled_mm", (*factors(64, 128), *BLOCKS), {"out_dtype": BF16}),
        ("torch_musa", "scaled_mm", (*factors(32, 64), *ROWS), {"out_dtype": BF16}),
        ("sgl_kernel", "per_token_group_quant", (of(2, 128),), {}),
    ],
)
def test_what_is_for_another_card(kernel: str, op: str, args: Any, kwargs: Any) -> None:
    assert refused(kernel, op, *args, **kwargs).endswith("from mp_31 on, and this is mp_22")


@only_22
def test_codes_are_for_another_card() -> None:
    scale = {"x_scale": BLOCKS[0], "weight_scale": BLOCKS[1]}
    assert "8-bit floats from mp_31 on" in refused(
        "sgl_kernel", "fused_gemv", *factors(32, 128), **scale
    )


def test_without_its_libraries_nothing_of_them_is_offered() -> None:
    ops = "paged_attention", "mla_decode", "fused_gemv", "topk_softmax", "fused_experts"
    with vendors():
        found = [each for op in ops for each in offers(OPS[op], hal.device("musa"))]
    assert {each.reason for each in found if each.backend == "musa"} == {"offers no kernel here"}


@from_31
def test_another_distribution_of_the_name_is_not_taken_for_mate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys
    import types

    with vendors():
        monkeypatch.setitem(sys.modules, "mate", types.ModuleType("mate"))
        found = hal.explain("paged_attention", *paged())
    assert "musa:mate" not in [str(each) for each in found.candidates]
