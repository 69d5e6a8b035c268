"""Laws of the quantisers, and of the ops that quantise what another has computed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
DTYPES = st.sampled_from([E4M3, E5M2, INT8])
GROUPS = st.sampled_from([16, 32, 64, 128])
SHAPE: dict[str, Any] = {
    "rows": ROWS,
    "columns": st.integers(1, 200),
    "dtype": DTYPES,
    "seed": SEEDS,
}
# Half the distance of two codes: of their size, and of the smallest ones in units of the scale.
HALF_STEP = {E4M3: (2.0**-4, 2.0**-10), E5M2: (2.0**-3, 2.0**-17), INT8: (0.0, 0.5)}


def _same_codes(got: Tensor, want: Tensor) -> None:
    equal(got.float(), want.float())


def _within(got: Tensor, want: Tensor, scale: Tensor, dtype: torch.dtype, steps: float) -> None:
    """Require dequantised ``got`` to be so many half steps from ``want``, and a few roundings."""
    of_size, of_scale = HALF_STEP[dtype]
    bound = steps * (want.abs() * of_size).maximum(scale * of_scale) * (1 + 2.0**-20)
    assert bool(((got - want).abs() <= bound + scale * 2.0**-18).all())


def power_of_two(
    rows: int, columns: int, dtype: torch.dtype, group: int, power: int, seed: int
) -> None:
    x = Values(seed)(rows, columns)
    q, scale = hal.ops.per_token_group_quant(x, group, dtype=dtype)
    more, larger = hal.ops.per_token_group_quant(x * 2.0**power, group, dtype=dtype)
    _same_codes(more, q)
    # The scale of zeros is a constant.
    seen = scale > 1e-9
    equal(larger[seen], scale[seen] * 2.0**power)


def round_trip(rows: int, columns: int, dtype: torch.dtype, group: int, seed: int) -> None:
    x = Values(seed)(rows, columns)
    q, scale = hal.ops.per_token_group_quant(x, group, dtype=dtype)
    back = hal.ops.dequantize(q, scale, group)
    _within(back, x, scale.repeat_interleave(group, -1)[:, :columns], dtype, 1)


def layouts_agree(rows: int, columns: int, dtype: torch.dtype, group: int, seed: int) -> None:
    x = Values(seed)(rows, columns)
    q, scale = hal.ops.per_token_group_quant(x, group, dtype=dtype)
    for layout in ("column", "tma"):
        also, moved = hal.ops.per_token_group_quant(x, group, dtype=dtype, scale_layout=layout)
        _same_codes(also, q)
        equal(moved, scale)


def padding_is_zero(rows: int, columns: int, group: int, ue8m0: bool, seed: int) -> None:
    x = Values(seed)(rows, columns)
    _, scale = hal.ops.per_token_group_quant(x, group, scale_layout="tma", ue8m0=ue8m0)
    room = -(-rows // 4) * 4
    whole = scale.as_strided((scale.shape[1], room), (room, 1))
    equal(whole[:, rows:], torch.zeros_like(whole[:, rows:]))


def ue8m0_rounds_up(rows: int, columns: int, dtype: torch.dtype, group: int, seed: int) -> None:
    x = Values(seed)(rows, columns)
    _, scale = hal.ops.per_token_group_quant(x, group, dtype=dtype)
    q, rounded = hal.ops.per_token_group_quant(x, group, dtype=dtype, ue8m0=True)
    assert bool((rounded.frexp().mantissa == 0.5).all())
    assert bool(((rounded >= scale) & (rounded < 2 * scale)).all())
    packed = hal.ops.per_token_group_quant(x, group, dtype=dtype, ue8m0=True, scale_layout="tma")
    equal(hal.ops.dequantize(*packed, group), hal.ops.dequantize(q, rounded, group))


def token_is_one_group(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    x = Values(seed)(rows, min(columns, 128))
    q, scale = hal.ops.per_token_quant(x, dtype=dtype)
    also, grouped = hal.ops.per_token_group_quant(x, 128, dtype=dtype)
    _same_codes(also, q)
    equal(grouped, scale)


def tensor_with_its_own_scale(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    x = Values(seed)(rows, columns)
    q, scale = hal.ops.per_tensor_quant(x, dtype=dtype)
    also, kept = hal.ops.per_tensor_quant(x, scale, dtype=dtype)
    _same_codes(also, q)
    equal(kept, scale)
    flat, one = hal.ops.per_token_quant(x.view(1, -1), dtype=dtype)
    _same_codes(flat.view(x.shape), q)
    equal(one.view(1), scale)


def dequantize_multiplies(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    values = Values(seed)
    q, scale = values.coarse(rows, columns).to(dtype), values(rows, 1, positive=True)
    back = hal.ops.dequantize(q, scale)
    near(back, q.float() * scale, 2)
    equal(hal.ops.dequantize(q, scale * 4), back * 4)


def _fused(got: tuple[Tensor, Tensor], result: Tensor, dtype: torch.dtype) -> None:
    """Require what a fused op has quantised to be ``result``, but for a code that is halfway."""
    q, scale = got
    near(scale, hal.ops.per_token_quant(result, dtype=dtype)[1], 16)
    _within(hal.ops.dequantize(q, scale), result, scale, dtype, 1 + 2.0**-10)


def silu_then_quant(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    x = Values(seed)(rows, 2 * columns)
    _fused(hal.ops.silu_and_mul_quant(x, dtype=dtype), hal.ops.silu_and_mul(x), dtype)


def norm_then_quant(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    values = Values(seed)
    x, weight = values(rows, columns), values(columns)
    _fused(hal.ops.rms_norm_quant(x, weight, dtype=dtype), hal.ops.rms_norm(x, weight), dtype)


def add_norm_then_quant(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    values = Values(seed)
    x, residual, weight = values(rows, columns), values(rows, columns), values(columns)
    q, scale, total = hal.ops.fused_add_rms_norm_quant(x, residual, weight, dtype=dtype)
    equal(total, x + residual)
    _fused((q, scale), hal.ops.rms_norm(total, weight), dtype)


def pack_and_unpack(rows: int, columns: int, offset: int, seed: int) -> None:
    values = Values(seed)
    codes = values.integers(rows, 2 * columns, low=-offset, high=16 - offset).to(INT8)
    packed = hal.ops.pack_int4(codes, offset=offset)
    equal(hal.ops.unpack_int4(packed, offset=offset), codes)
    both = values.integers(rows, columns, low=0, high=256).to(torch.uint8)
    equal(hal.ops.pack_int4(hal.ops.unpack_int4(both, offset=offset), offset=offset), both)


GROUPED = SHAPE | {"group": GROUPS}
NIBBLES = {key: SHAPE[key] for key in ("rows", "columns", "seed")} | {"offset": st.integers(0, 15)}
GROUP, TOKEN = "per_token_group_quant", "per_token_quant"

LAWS = [
    Law(
        "a power of two times x has the codes of x",
        (GROUP,),
        GROUPED | {"power": st.integers(-8, 8)},
        power_of_two,
    ),
    Law("x is within half a step of its codes", (GROUP, "dequantize"), GROUPED, round_trip),
    Law("the layout of the scales changes no number", (GROUP,), GROUPED, layouts_agree),
    Law(
        "the padding of the tma layout is zero",
        (GROUP,),
        {key: GROUPED[key] for key in ("rows", "columns", "group", "seed")}
        | {"ue8m0": st.booleans()},
        padding_is_zero,
    ),
    Law("ue8m0 rounds up to a power of two", (GROUP, "dequantize"), GROUPED, ue8m0_rounds_up),
    Law("per_token_quant has one group", (TOKEN, GROUP), SHAPE, token_is_one_group),
    Law(
        "a tensor quantised with its own scale stays",
        ("per_tensor_quant", TOKEN),
        SHAPE,
        tensor_with_its_own_scale,
    ),
    Law("dequantize is a product", ("dequantize",), SHAPE, dequantize_multiplies),
    Law(
        "silu_and_mul_quant is silu_and_mul, quantised",
        ("silu_and_mul_quant", "silu_and_mul", TOKEN, "dequantize"),
        SHAPE,
        silu_then_quant,
    ),
    Law(
        "rms_norm_quant is rms_norm, quantised",
        ("rms_norm_quant", "rms_norm", TOKEN, "dequantize"),
        SHAPE,
        norm_then_quant,
    ),
    Law(
        "fused_add_rms_norm_quant is a sum, normed and quantised",
        ("fused_add_rms_norm_quant", "rms_norm", TOKEN, "dequantize"),
        SHAPE,
        add_norm_then_quant,
    ),
    Law(
        "pack_int4 and unpack_int4 undo each other",
        ("pack_int4", "unpack_int4"),
        NIBBLES,
        pack_and_unpack,
    ),
]
