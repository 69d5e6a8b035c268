"""Faults in normalisations."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from faults.record import NANS, OFF, edit, kernel

ROOT = "x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)"
WEIGHTED = "normed if weight is None else normed * wide(weight), x.dtype"
WIDE = "normed = _over_root(wide(x), eps)\n    return"
RMS = "rms_norm"

edit(RMS, "eps outside the root", OFF, ROOT, "x / (x.square().mean(-1, keepdim=True).sqrt() + eps)")
edit(RMS, "eps added twice", OFF, ROOT, ROOT.replace("+ eps", "+ 2 * eps"))
edit(RMS, "eps left out", f"{OFF}|{NANS}", ROOT, ROOT.replace("+ eps", ""))
edit(RMS, "sum for mean", OFF, ROOT, ROOT.replace("mean", "sum"))
edit(RMS, "squares in the dtype of x", "float16", WIDE, WIDE.replace("wide(x)", "x"))
edit(
    RMS,
    "rounded before the weight",
    OFF,
    WEIGHTED,
    WEIGHTED.replace("normed *", "normed.to(x.dtype) *"),
)
edit(
    RMS, "first weight for all columns", OFF, WEIGHTED, WEIGHTED.replace("(weight)", "(weight)[:1]")
)
edit(
    RMS,
    "weight in the dtype of x",
    OFF,
    WEIGHTED,
    WEIGHTED.replace("(weight)", "(weight.to(x.dtype))"),
)
edit(RMS, "first row for all rows", OFF, ROOT, ROOT.replace("+ eps)", "+ eps).flatten()[:1]"))
edit(RMS, "NaN swallowed", NANS, WIDE, "normed = _over_root(wide(x).nan_to_num(), eps)\n    return")


def _lanes(x: Tensor, width: int) -> Tensor:
    """Rows as a kernel loads them by ``width`` elements without a mask; zeros past the memory."""
    held = x.untyped_storage().nbytes() // x.itemsize
    memory = pad(x.as_strided((held,), (1,), 0), (0, width))
    columns = -(-x.shape[-1] // width) * width
    return memory.as_strided((*x.shape[:-1], columns), x.stride(), x.storage_offset())


@kernel(RMS, "numerics", OFF)
def lanes_past_the_row_count(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    squares = _lanes(x, 8).double().square().sum(-1, keepdim=True) if x.numel() else 0.0
    normed = x.double() / (squares / max(x.shape[-1], 1) + eps) ** 0.5
    return (normed if weight is None else normed * weight.double()).to(x.dtype).contiguous()


@kernel(RMS, "numerics", OFF)
def last_odd_element_is_not_summed(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    even = x[..., : x.shape[-1] // 2 * 2].double()
    squares = even.square().sum(-1, keepdim=True) / max(x.shape[-1], 1)
    normed = x.double() / (squares + eps).sqrt()
    return (normed if weight is None else normed * weight.double()).to(x.dtype).contiguous()


FUSED = "normed = _over_root(total, eps) * wide(weight)"
ADD = "fused_add_rms_norm"
edit(
    ADD,
    "norm of the rounded sum",
    OFF,
    FUSED,
    FUSED.replace("total", "wide(total.to(residual.dtype))"),
)
edit(
    ADD,
    "residual as it came",
    OFF,
    "_rounded(total, residual.dtype)",
    "residual.clone(memory_format=torch.contiguous_format)",
)
edit(
    ADD,
    "residual added after the norm",
    OFF,
    FUSED,
    "normed = _over_root(wide(x), eps) * wide(weight)",
)
edit(
    ADD,
    "residual is the norm",
    OFF,
    "_rounded(total, residual.dtype)",
    "_rounded(normed, residual.dtype)",
)
ONE_MORE = "return 1 + (weight.double() if exact else wide(weight))"
for op in "gemma_rms_norm", "gemma_fused_add_rms_norm":
    edit(op, "weight without its one", OFF, ONE_MORE, ONE_MORE.replace("1 + ", ""))
    edit(op, "one added in the weight's dtype", OFF, ONE_MORE, "return 1 + weight")

LAYER = "layer_norm"
CENTRE = "centred = wide(x) - wide(x).mean(-1, keepdim=True)"
edit(
    LAYER,
    "mean not taken off",
    OFF,
    CENTRE + "\n",
    "centred = wide(x)\n    return _rounded((_over_root(centred, eps) if weight is None else "
    "_over_root(centred, eps) * wide(weight)) + (0 if bias is None else wide(bias)), "
    "x.dtype)\n",
)
edit(
    LAYER,
    "mean in the dtype of x",
    OFF,
    CENTRE,
    "centred = wide(x) - wide(x.mean(-1, keepdim=True))\n"
    "    return _rounded((_over_root(centred, eps) if weight is None else "
    "_over_root(centred, eps) * wide(weight)) + (0 if bias is None else wide(bias)), x.dtype)",
)
edit(
    LAYER,
    "variance as a difference of squares",
    OFF,
    "normed = _over_root(centred, eps)\n    scaled",
    "normed = centred * torch.rsqrt(wide(x).square().mean(-1, keepdim=True) - "
    "wide(x).mean(-1, keepdim=True).square() + eps)\n    scaled",
)
edit(
    LAYER,
    "unbiased variance",
    OFF,
    "normed = _over_root(centred, eps)\n    scaled",
    "normed = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / max(x.shape[-1] "
    "- 1, 1) + eps)\n    scaled",
)
edit(
    LAYER,
    "bias before the weight",
    OFF,
    "scaled if bias is None else scaled + wide(bias)",
    "scaled if bias is None else (normed + wide(bias)) * (1 if weight is None else wide(weight))",
)
edit(LAYER, "bias left out", OFF, "scaled if bias is None else scaled + wide(bias)", "scaled")

QK = "qk_norm_rope"
SOME = r"^(?!.*(float64|257|129)).*(3|5|bfloat16)"
edit(
    QK,
    "keys with the queries' weight",
    OFF,
    "rms_norm(wide(k), k_weight, eps)",
    "rms_norm(wide(k), q_weight, eps)",
    only=SOME,
)
edit(
    QK,
    "values normed too",
    OFF,
    "torch.cat((turned.to(v.dtype), v), dim=1)",
    "torch.cat((turned.to(v.dtype), rms_norm(v, None, eps)), dim=1)",
    only=SOME,
)
edit(
    QK,
    "rounded between norm and rotation",
    OFF,
    "torch.cat(normed, dim=1), None",
    "torch.cat(normed, dim=1).to(qkv.dtype), None",
    only=SOME,
)
edit(
    QK,
    "keys not turned",
    OFF,
    "torch.cat((turned.to(v.dtype), v), dim=1)",
    "torch.cat((turned[:, :num_q_heads].to(v.dtype), normed[1].to(v.dtype), v), dim=1)",
    only=SOME,
)
