"""Faults in decisions that a sample made for them shows, and hardly any other."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from faults.record import CODES, FAULTS, INTS, OFF, Fault, edit, offered, reference
from hal.op import OPS

ANY = f"{INTS}|{OFF}"

edit(
    "grouped_topk",
    "scaled only where it is renormalised",
    f"renormalize False.*scaled True.*({OFF})",
    "routed_scaling_factor if scale_on_output else 1)",
    "routed_scaling_factor if scale_on_output and renormalize else 1)",
)
BIAS = "gating.double() if bias is not None and bias.dtype == torch.float64 else wide(gating)"
for op in ("topk_softmax", "topk_sigmoid", "grouped_topk"):
    edit(op, "float64 read as float32", f"close calls of float64.*{INTS}", BIAS, "gating.float()")
    edit(
        op,
        "a float64 bias read as float32",
        f"close calls of a float64 bias.*{INTS}",
        "scores if bias is None else scores + wide(bias)",
        "scores if bias is None else scores + bias.float()",
    )
edit(
    "topk_softmax",
    "capped in the dtype of the logits",
    f"float16 capped.*({ANY})",
    "logits = softcap * torch.tanh(logits / softcap)",
    "logits = wide(softcap * torch.tanh(gating / softcap))",
)

WIDE = "    p = wide(probs).contiguous()\n"
NARROW = "    p = probs.float().contiguous()\n"
for op in ("top_k_renorm", "top_p_renorm", "min_p_renorm"):
    edit(
        op, "float64 read as float32", f"a close call of float64.*{OFF}", WIDE, NARROW, only="close"
    )
edit(
    "softmax",
    "float64 read as float32",
    f"a close call of float64.*{OFF}",
    "x = wide(logits).contiguous()",
    "x = wide(logits.float().to(logits.dtype)).contiguous()",
    only="close",
)
edit(
    "sample",
    "float64 read as float32",
    f"a close call of float64.*{INTS}",
    "given = wide(probs if indices is None else probs.index_select(0, indices))",
    "given = (probs if indices is None else probs.index_select(0, indices)).float()",
    only="close",
)
for op, complaint in [
    ("sample", f"top_p .* beyond a mass of 1.*{INTS}"),
    ("top_p_renorm", f"top_p 1.* sum of 96.*{OFF}"),
]:
    edit(
        op,
        "a limit of 1 drops what is behind a mass of 1",
        complaint,
        " | (limit >= 1) | (rank == 0)",
        " | (rank == 0)",
        only="96|beyond",
    )
edit(
    "sample",
    "no tail behind a mass of 1",
    f"a tail behind a mass of 1.*{INTS}",
    "| (limit >= 1) | (rank == 0)",
    "| ((limit >= 1) & (before < 1)) | (limit > 1) | (rank == 0)",
    only="tail",
)
edit(
    "sample",
    "a uniform number of 1 is never drawn",
    f"a uniform number that rounds to 1.*{INTS}",
    "uniform.clamp(max=below_one)",
    "uniform",
    only="rounds to 1",
)
edit(
    "sample",
    "limits of each row in 32 bits",
    f"top_k of each beyond 32 bits.*{INTS}",
    "limit = _beside(top_k, p, torch.int64)",
    "limit = _beside(top_k, p, torch.int64)\n"
    "        limit = limit.int() if limit.numel() > 1 else limit",
)

edit(
    "scaled_mm",
    "int8 summed in float32",
    f"int8 sums beyond float32.*({OFF})",
    "product(a.double(), b.double()).float()",
    # One after the other: how a library orders its sum depends on the machine.
    "sum(a.float()[..., i, None] * b.float()[:, i] for i in range(a.shape[-1]))",
    only="int8 sums beyond float32",
)
edit(
    "fused_experts",
    "summed in the dtype of x",
    f"many small results.*({OFF})",
    "        total = total + outer.where(chosen.any(-1, keepdim=True), 0)\n",
    "        total = total + outer.where(chosen.any(-1, keepdim=True), 0)\n"
    "        total = wide(total.to(x.dtype))\n",
    only="many small",
)
edit(
    "mul_add",
    "added in float32 whatever y",
    f"y float64 of the opposite.*({OFF})",
    "(a.to(torch.promote_types(a.dtype, b.dtype)) * scale + b)",
    "(a * scale + b)",
)

QUOTIENT = "q = encode(x / spread(scale, x, group_size), dtype)"
INVERSE = "q = encode(x * (1 / spread(scale, x, group_size)), dtype)"
for op in ("per_token_group_quant", "per_token_quant", "per_tensor_quant"):
    edit(op, "times the inverse of its scale", f"ties of .*{CODES}", QUOTIENT, INVERSE)
edit(
    "per_tensor_quant",
    "times the inverse of a given scale",
    f"ties by .*{CODES}",
    "wide(x).contiguous() / scale.reshape(())",
    "wide(x).contiguous() * (1 / scale.reshape(()))",
)
edit(
    "per_token_group_quant",
    "scale by an inverse",
    f"ties of odd scales.*{CODES}",
    "/ torch.full_like(peak, largest(dtype))).float()",
    "* (1 / torch.full_like(peak, largest(dtype)))).float()",
)
edit(
    "store_kv_cache_",
    "times the inverse of the scale",
    f"ties of odd scales.*({OFF})",
    "encode(wide(x) / per_head(scale, wide(x)), dtype)",
    "encode(wide(x) * (1 / per_head(scale, wide(x))), dtype)",
    only="ties",
)
edit(
    "store_kv_cache_",
    "the scale of the keys for values without one",
    f"k_scale alone.*({OFF})",
    "cached(v, v_cache.dtype, v_scale)",
    "cached(v, v_cache.dtype, k_scale if v_scale is None else v_scale)",
)
edit(
    "fused_experts",
    "codes by an inverse",
    f"ties in .*({OFF})",
    "codes, x_scale = quantized(x, BLOCK, weight.dtype)",
    "_, x_scale = quantized(x, BLOCK, weight.dtype)\n"
    "    each = x_scale.repeat_interleave(BLOCK, -1)[..., : x.shape[-1]]\n"
    "    codes = (x * (1 / each)).to(weight.dtype)",
    only="ties",
)
edit(
    "w4a16_mm",
    "zeros of float64 read as float32",
    f"float64, zeros.*({OFF})",
    "_spread(zeros.to(dtype)",
    "_spread(zeros.float().to(dtype)",
)
edit(
    "rotary_embedding",
    "positions and offsets added in 32 bits",
    "offsets whose sum is beyond: ",
    "positions.long() + offsets",
    "(positions.int() + offsets.int()).long()",
)
edit(
    "rotary_embedding",
    "positions clamped to 32 bits",
    "brought back: ",
    "positions.long() + offsets",
    "positions.long().clamp(max=2**31 - 1) + offsets",
)
SQUARES = "torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)"
for op in ("rms_norm", "gemma_rms_norm", "fused_add_rms_norm", "layer_norm", "qk_norm_rope"):
    edit(
        op,
        "squares that never overflow",
        f"(squares beyond float32|1e.20 in).*({OFF})",
        SQUARES,
        SQUARES.replace("x.", "x.double().").replace("+ eps)", "+ eps).to(x.dtype)"),
    )


def _on(op: str, options: dict[str, Any]) -> set[str]:
    """The options that differ from their defaults."""
    given = {p.name: p.default for p in OPS[op].parameters if p.keyword_only}
    return {n for n, v in options.items() if isinstance(v, Tensor) or v != given[n]}


def _without(op: str, dropped: str, given: str, unless: str) -> Any:
    """The reference, which leaves an option out where another is given but not a third."""

    def fn(*args: Any, **options: Any) -> Any:
        on = _on(op, options)
        if given in on and unless not in on:
            options.pop(dropped)
        return reference(op)(*args, **options)

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return offered(fn)


OPTIONS = [
    ("varlen_attention", "softcap", "window", "sinks"),
    ("varlen_attention", "window", "softcap", "scale"),
    ("varlen_attention", "causal", "softcap", "window"),
    ("varlen_attention", "sinks", "softcap", "scale"),
    ("paged_attention", "softcap", "window", "sinks"),
    ("paged_attention", "scale", "sinks", "softcap"),
    ("paged_attention", "window", "v_scale", "causal"),
    ("paged_attention", "window", "k_scale", "causal"),
    ("paged_attention", "softcap", "k_scale", "cu_seqlens_q"),
    ("paged_attention", "k_scale", "k_scale", "v_scale"),
    ("paged_attention", "v_scale", "v_scale", "k_scale"),
]
for op, dropped, given, unless in OPTIONS:
    made = functools.partial(_without, op, dropped, given, unless)
    name = f"no {dropped} where {given} is given without {unless}"
    FAULTS.append(Fault(op, name, "numerics", OFF, made))


def _as_dtype_of(op: str, name: str, other: str) -> Any:
    """The reference, which reads the memory of an argument as if it had another's dtype."""

    def fn(*args: Any, **kwargs: Any) -> Any:
        bound = OPS[op].signature.bind(*args, **kwargs)
        x, dtype = bound.arguments[name], bound.arguments[other].dtype
        if x.itemsize == dtype.itemsize:
            bound.arguments[name] = x.view(dtype)
        elif x.itemsize > dtype.itemsize and x.numel():
            read = x.contiguous().view(dtype).flatten()[: x.numel()]
            bound.arguments[name] = read.view(x.shape).sort(dim=-1).values
        return reference(op)(*bound.args, **bound.kwargs)

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return offered(fn)


DTYPES = [
    ("varlen_attention", "cu_seqlens_k", "cu_seqlens_q", "argument 4 alone int64"),
    ("varlen_attention", "cu_seqlens_q", "cu_seqlens_k", "argument 3 alone int64"),
    ("paged_attention", "seq_lens", "block_table", "argument 4 alone int64"),
    ("paged_attention", "cu_seqlens_q", "block_table", "argument 5 alone int64"),
    ("mla_decode", "seq_lens", "block_table", "argument 4 alone int64"),
    ("fused_gemv", "x", "weight", "float8_e.* by torch.float8_e"),
    ("fused_moe_gemv", "x", "weight", "float8_e.* by torch.float8_e"),
]
for op, name, other, sample in DTYPES:
    made = functools.partial(_as_dtype_of, op, name, other)
    title = f"{name} read in the dtype of {other}"
    FAULTS.append(Fault(op, title, "numerics", sample, made, "alone int64|by torch.float8"))
