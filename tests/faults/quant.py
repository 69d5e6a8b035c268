"""Faults in quantisation."""

from __future__ import annotations

from faults.record import CODES, INFS, INTS, NANS, OFF, edit

GROUP, TOKEN, TENSOR = "per_token_group_quant", "per_token_quant", "per_tensor_quant"
ANY = f"{CODES}|{OFF}"
FLOORED = "peak.clamp(min=FLOOR)"
SCALE = "scale = scales(peaks(x, group_size), dtype)"
edit(GROUP, "zeros have the scale 0", f"0.0.*({NANS}|{OFF})", FLOORED, "peak")
edit(GROUP, "floor of 1e-5", OFF, FLOORED, "peak.clamp(min=1e-5)")
edit(GROUP, "truncates to integers", f"int8.*{CODES}", "clamped.round()", "clamped.trunc()")
edit(
    GROUP,
    "one scale for a row",
    ANY,
    SCALE,
    "scale = peaks(x, group_size)\n"
    "    scale = scales(scale.amax(-1, keepdim=True).expand_as(scale), dtype) if "
    "scale.numel() else scales(scale, dtype)",
)
edit(
    GROUP,
    "scales of the first row",
    ANY,
    SCALE,
    SCALE + "\n    scale = scale[..., :1, :].expand_as(scale) if scale.dim() > 1 else scale",
)
edit(
    GROUP,
    "padding of the last group counts as 1",
    ANY,
    "padded(x.abs(), groups * group_size)",
    "1 + padded(x.abs() - 1, groups * group_size)",
)
edit(GROUP, "scales above 448 for e5m2", ANY, "torch.finfo(dtype).max if", "448.0 if")
edit(GROUP, "scale in half", OFF, "largest(dtype))).float()", "largest(dtype))).half().float()")
edit(GROUP, "ue8m0 rounded down", ANY, " + (bits & 0x7FFFFF != 0)", "")
edit(
    GROUP,
    "ue8m0 rounded to nearest",
    ANY,
    "(bits & 0x7FFFFF != 0)",
    "(bits & 0x7FFFFF >= 0x400000)",
)
edit(GROUP, "ue8m0 one more for powers of two", ANY, "(bits & 0x7FFFFF != 0)", "1")
edit(
    GROUP,
    "ue8m0 packed from the highest byte",
    INTS,
    "(fours << _shifts(fours)).sum",
    "(fours.flip(-1) << _shifts(fours)).sum",
)
edit(
    GROUP,
    "columns written as rows",
    ANY,
    "new_scale(x, scale.shape[-1], layout, ue8m0).copy_(kept)",
    "new_scale(x, scale.shape[-1], layout, ue8m0).copy_(kept if layout != 'column' or "
    "kept.dim() < 2 else kept.reshape(*kept.shape[:-2], kept.shape[-1], kept.shape[-2]).mT)",
)
edit(
    GROUP,
    "codes at the scale before ue8m0",
    CODES,
    "q = encode(x / spread(scale,",
    "q = encode(x / spread(scales(peaks(x, group_size), dtype),",
)

CLAMP = "scaled.clamp(-largest(dtype), largest(dtype))"
edit(
    TOKEN,
    "int8 reaches -128",
    CODES,
    CLAMP,
    "scaled.clamp(-largest(dtype) - 1, largest(dtype)) - (scaled <= -126.5).float() * (dtype "
    "== torch.int8)",
)
edit(
    TOKEN,
    "first row's scale for all",
    ANY,
    "scale = scales(peaks(x, group_size), dtype)",
    "scale = scales(peaks(x, group_size), dtype)\n"
    "    scale = scale[..., :1, :].expand_as(scale) if scale.dim() > 1 else scale",
)
edit(TOKEN, "absolute maximum without the sign", ANY, "pad(x.abs(), (0, 1))", "pad(x, (0, 1))")
edit(
    TOKEN,
    "last column left out of the maximum",
    ANY,
    "pad(x.abs(), (0, 1))",
    "pad(x.abs()[..., :-1], (0, 1))",
)
STATIC = "encode(wide(x).contiguous() / scale.reshape(()), dtype)"
edit(
    TENSOR,
    "given scale ignored",
    CODES,
    STATIC,
    "quantized(x.flatten(), None, dtype)[0].reshape(x.shape)",
)
edit(TENSOR, "multiplied with the given scale", CODES, STATIC, STATIC.replace("/", "*"))
edit(
    TENSOR,
    "infinity beyond the range",
    f"{INFS}|{NANS}|{CODES}",
    CLAMP,
    "scaled.clamp(-1e38, 1e38)",
)
edit(
    TENSOR,
    "given scale in half",
    CODES,
    "scale.reshape(()), dtype)",
    "scale.reshape(()).half(), dtype)",
)
edit(
    TENSOR,
    "returns the given scale itself",
    "view of its argument|its argument scale|memory of scale",
    "scale.reshape(1).clone(memory_format=torch.contiguous_format)",
    "scale.reshape(1)",
    check="purity",
)

edit(
    TENSOR,
    "halves away from zero",
    CODES,
    STATIC,
    STATIC.replace("wide(x)", "(wide(x) * (1 + 2**-20))"),
)
DEQUANT = "dequantize"
EACH = "q.contiguous().to(exact) * each.to(exact)"
edit(DEQUANT, "divides by the scale", OFF, EACH, EACH.replace("*", "/"))
edit(
    DEQUANT,
    "multiplies in the dtype of the result",
    f"float16.*({OFF}|{NANS}|{INFS})",
    EACH,
    EACH.replace("exact", "dtype"),
)
edit(
    DEQUANT,
    "packed scales from the highest byte",
    f"packed.*({OFF}|{NANS})",
    "(words.contiguous().unsqueeze(-1) >> _shifts(words) & 255)",
    "(words.contiguous().unsqueeze(-1) >> _shifts(words) & 255).flip(-1)",
)
edit(
    DEQUANT,
    "packed exponent 255 is infinite",
    NANS,
    ".masked_fill(exponents == 255, torch.nan)",
    "",
)
edit(
    DEQUANT,
    "first group's scale for all",
    OFF,
    "scale.index_select(-1, torch",
    "scale[..., :1].expand_as(scale).index_select(-1, torch",
)

edit(
    "silu_and_mul_quant",
    "rounded before it is quantised",
    ANY,
    "silu_and_mul(wide(x))",
    "wide(silu_and_mul(x))",
)
edit(
    "rms_norm_quant",
    "rounded before it is quantised",
    ANY,
    "normed = rms_norm(wide(x), weight, eps)",
    "normed = wide(rms_norm(x, weight, eps))",
)
edit(
    "rms_norm_quant",
    "given scale is 1",
    ANY,
    "per_tensor_quant(x, scale, dtype",
    "per_tensor_quant(x, torch.ones_like(scale), dtype",
)
edit(
    "rms_norm_quant",
    "eps as by default",
    ANY,
    "normed = rms_norm(wide(x), weight, eps)",
    "normed = rms_norm(wide(x), weight)",
)
edit(
    "fused_add_rms_norm_quant",
    "norm of the rounded sum",
    ANY,
    "normed = rms_norm(total, weight, eps)",
    "normed = rms_norm(wide(total.to(residual.dtype)), weight, eps)",
)
edit(
    "fused_add_rms_norm_quant",
    "residual as it came",
    OFF,
    "total.to(residual.dtype).contiguous()",
    "residual.clone(memory_format=torch.contiguous_format)",
)

edit(
    "pack_int4",
    "even code in the high half",
    INTS,
    "codes[..., ::2] | codes[..., 1::2] << 4",
    "codes[..., 1::2] | codes[..., ::2] << 4",
)
edit(
    "pack_int4",
    "codes wrap around",
    INTS,
    ".clamp(-offset, 15 - offset)",
    ".clamp(-(2**40), 2**40)",
)
edit("pack_int4", "offset of 8 always", f"offset .*{INTS}|by .*{INTS}", " + offset\n", " + 8\n")
edit(
    "unpack_int4",
    "even code from the high half",
    INTS,
    "(packed & 15, packed >> 4)",
    "(packed >> 4, packed & 15)",
)
edit(
    "unpack_int4",
    "offset of 7",
    INTS,
    "halves.to(torch.int8) - offset",
    "halves.to(torch.int8) - 7",
)
