"""Faults in products with quantised matrices, alone and with what is fused to them."""

from __future__ import annotations

import torch
from torch import Tensor

from faults.record import NANS, OFF, edit, kernel

BLOCK, SCALED, INT4 = "block_scaled_mm", "scaled_mm", "w4a16_mm"
SUMS = "sums * a_scale[..., i, None] * by_row[..., i]"
edit(
    BLOCK,
    "first block's scale of a for all",
    OFF,
    SUMS,
    SUMS.replace("a_scale[..., i,", "a_scale[..., 0,"),
)
edit(
    BLOCK,
    "first block's scale of b for all",
    OFF,
    SUMS,
    SUMS.replace("by_row[..., i]", "by_row[..., 0]"),
)
edit(
    BLOCK,
    "incomplete block of k left out",
    OFF,
    "range(0, a.shape[-1], block[1])",
    "range(0, a.shape[-1] // block[1] * block[1], block[1])",
)
edit(
    BLOCK,
    "incomplete block of n has the last whole one's scale",
    OFF,
    "device=scale.device) // size)",
    "device=scale.device).clamp(max=max(places // size * size - 1, 0)) // size)",
)
edit(
    BLOCK,
    "blocks of 128 always",
    OFF,
    "block_product(a, b, a_scale, b_scale, block).to",
    "block_product(a, b, a_scale, b_scale, (128, block[1])).to",
)
edit(
    BLOCK,
    "accumulates in bfloat16",
    OFF,
    "total = total + sums *",
    "total = total.bfloat16().float() + sums *",
)


@kernel(BLOCK, "numerics", OFF)
def scales_after_the_whole_sum(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    *,
    block: tuple[int, int] = (128, 128),
    out_dtype: torch.dtype,
) -> Tensor:
    rows = torch.arange(b.shape[-2]) // block[0]
    sums = a.float() @ b.float().mT
    if not sums.numel() or not a_scale.shape[-1]:
        return sums.to(out_dtype)
    return (sums * a_scale.mean(-1, keepdim=True) * b_scale.mean(-1)[rows]).to(out_dtype)


PRODUCT = "_sums(a, b) * a_scale.reshape(each) * b_scale.reshape(-1)"
edit(
    SCALED,
    "bias before the scales",
    OFF,
    f"result = {PRODUCT}\n    if bias is not None:\n        result = result + bias.float()",
    "result = _sums(a, b) + (0 if bias is None else bias.float())\n"
    "    result = result * a_scale.reshape(each) * b_scale.reshape(-1)",
)
edit(
    SCALED,
    "first channel's scale for all",
    OFF,
    PRODUCT,
    PRODUCT.replace("b_scale.reshape(-1)", "b_scale.reshape(-1)[:1]"),
)
edit(
    SCALED,
    "first token's scale for all",
    OFF,
    "each = (1,) if",
    "a_scale = a_scale.reshape(-1)[:1]\n    each = (1,) if",
)
edit(
    SCALED,
    "rounded before the bias",
    OFF,
    "result = result + bias.float()",
    "result = result.to(out_dtype) + bias.float()",
)
edit(SCALED, "bias left out", OFF, "result = result + bias.float()", "pass")
edit(
    SCALED,
    "integers sum in int16",
    OFF,
    "product(a.double(), b.double()).float()",
    "product(a.double(), b.double()).to(torch.int64).to(torch.int16).float()",
)
edit(
    SCALED,
    "inner sums in half",
    OFF,
    "return product(a.float(), b.float())",
    "return (a.to(torch.float16) @ b.to(torch.float16).mT).float()",
)

NIBBLES = "(packed & 0xF, packed >> 4)"
ZERO = "8 if zeros is None else _spread(zeros.to(dtype), -1, columns, size)"
edit(INT4, "even column from the high half", OFF, NIBBLES, "(packed >> 4, packed & 0xF)")
edit(INT4, "offset of 7", OFF, ZERO, ZERO.replace("8", "7", 1))
edit(INT4, "zeros ignored", f"zeros.*({OFF})", ZERO, "8")
edit(INT4, "zeros are one more", f"zeros.*({OFF})", ZERO, f"({ZERO}) + (zeros is not None)")
edit(
    INT4,
    "first group's zero for all",
    f"zeros.*({OFF})",
    "_spread(zeros.to(dtype), -1, columns, size)",
    "zeros.to(dtype)[..., :1]",
)
edit(
    INT4,
    "weights rounded to the dtype of x",
    f"overflow.*{NANS}",
    "product(wide(x), weight).to(x.dtype)",
    "product(wide(x), wide(weight.to(x.dtype))).to(x.dtype)",
)
edit(
    INT4,
    "zero after the scale",
    OFF,
    "(codes - zero) * _spread(scales.to(dtype), -1, columns, size)",
    "codes * _spread(scales.to(dtype), -1, columns, size) - zero",
)


@kernel(INT4, "numerics", f"float16.*({OFF})")
def partial_sums_in_half(
    x: Tensor, qweight: Tensor, scales: Tensor, *, group_size: int, zeros: Tensor | None = None
) -> Tensor:
    group = torch.arange(x.shape[-1]) // group_size
    codes = torch.stack((qweight & 15, qweight >> 4), dim=-1).flatten(-2).double()
    zero = 8 if zeros is None else zeros.double()[:, group]
    weight = ((codes - zero) * scales.double()[:, group]).T
    total = x.new_zeros((*x.shape[:-1], qweight.shape[0]))
    for part in range(0, x.shape[-1], 16):
        columns = slice(part, part + 16)
        total += (x[..., columns].double() @ weight[columns]).to(x.dtype)
    return total


GEMV, MOE_GEMV = "fused_gemv", "fused_moe_gemv"
edit(
    GEMV,
    "first row for all",
    OFF,
    "return _rounded(result, x)\n\n\ndef fused_moe",
    "return _rounded(result if result.dim() < 2 else result[..., :1, :].expand_as(result), "
    "x)\n\n\ndef fused_moe",
)
edit(
    GEMV,
    "up before gate",
    OFF,
    "result = silu_and_mul(result)\n    if norm",
    "result = silu_and_mul(result.roll(result.shape[-1] // 2, -1))\n    if norm",
)
edit(
    GEMV,
    "rounded before the norm",
    f"beyond float16.*{NANS}",
    "rms_norm(result, norm_weight, eps)",
    "rms_norm(wide(_rounded(result, x)), norm_weight, eps)",
)
edit(
    GEMV,
    "rounded before the activation",
    OFF,
    "result = silu_and_mul(result)\n    if norm",
    "result = silu_and_mul(wide(_rounded(result, x)))\n    if norm",
)
edit(
    GEMV,
    "eps as by default",
    OFF,
    "rms_norm(result, norm_weight, eps)",
    "rms_norm(result, norm_weight)",
)
edit(
    GEMV,
    "codes of 8 bits not scaled by x",
    OFF,
    "block_product(x, weight, x_scale, weight_scale)",
    "block_product(x, weight, torch.ones_like(x_scale), weight_scale)",
)
edit(
    GEMV,
    "zero of 7",
    OFF,
    "from_nibbles(weight, weight_scale, max(size, 1), None, wide(x).dtype)",
    "from_nibbles(weight, weight_scale, max(size, 1), 7 * torch.ones_like(weight_scale), "
    "wide(x).dtype)",
)
LAST = "if activation is not None:\n        result = silu_and_mul(result)\n"
ROUTED = (
    "    if topk_weights is not None:\n"
    "        result = result * topk_weights.to(result.dtype).unsqueeze(-1)\n"
)
edit(
    MOE_GEMV,
    "routed weight before the activation",
    OFF,
    f"{LAST}{ROUTED}",
    f"{ROUTED.strip()}\n    {LAST}",
)
edit(
    MOE_GEMV,
    "ids out of range read the first weight",
    OFF,
    "result.where(inside.unsqueeze(-1), 0)",
    "result",
)
edit(
    MOE_GEMV,
    "routed weight twice",
    OFF,
    "topk_weights.to(result.dtype).unsqueeze(-1)",
    "topk_weights.to(result.dtype).unsqueeze(-1).square()",
)
edit(
    MOE_GEMV,
    "first expert for all",
    OFF,
    "expert = topk_ids.where(inside, 0).long()",
    "expert = 0 * topk_ids.where(inside, 0).long()",
)
edit(
    MOE_GEMV,
    "routed weight in the dtype of x",
    OFF,
    "topk_weights.to(result.dtype)",
    "topk_weights.to(x.dtype if x.itemsize > 1 else torch.bfloat16)",
)

EXPERTS = "fused_experts"
WEIGHT = "topk_weights.to(total.dtype).where(chosen, 0).sum(-1, keepdim=True)"
edit(
    EXPERTS,
    "routed weight twice",
    OFF,
    "outer = weight * _linear",
    "outer = weight * weight * _linear",
)
edit(
    EXPERTS,
    "an expert chosen twice counts once",
    OFF,
    WEIGHT,
    WEIGHT.replace("sum(-1, keepdim=True)", "amax(-1, keepdim=True)"),
)
edit(
    EXPERTS,
    "ids out of range taken for the last",
    OFF,
    "chosen = topk_ids == expert",
    "chosen = topk_ids.clamp(0, w13.shape[0] - 1) == expert",
)
edit(EXPERTS, "silu always", f"gelu.*({OFF})", "_GATED[activation](", "silu_and_mul(")
edit(
    EXPERTS,
    "NaN of an expert that is not chosen",
    NANS,
    "outer.where(chosen.any(-1, keepdim=True), 0)",
    "outer",
)
edit(
    EXPERTS,
    "sum in the dtype of x",
    OFF,
    "total = total + outer.where(chosen.any(-1, keepdim=True), 0)",
    "total = wide((total + outer.where(chosen.any(-1, keepdim=True), 0)).to(x.dtype))",
)
edit(
    EXPERTS,
    "rounded between the products",
    OFF,
    "inner = _GATED[activation](_linear(tokens, w13, w13_scale, expert))",
    "inner = wide(_GATED[activation](_linear(tokens, w13, w13_scale, expert)).to(x.dtype))",
)
edit(
    EXPERTS,
    "routed weight inside",
    OFF,
    "_GATED[activation](_linear(tokens, w13, w13_scale, expert))",
    "_GATED[activation](weight * _linear(tokens, w13, w13_scale, expert)) / weight",
)
edit(EXPERTS, "first expert's scale for all", OFF, "x_scale, scale[expert])", "x_scale, scale[0])")
edit(
    MOE_GEMV,
    "rows of ids out of range are not written",
    f"{OFF}|{NANS}",
    "result.where(inside.unsqueeze(-1), 0)",
    "result.where(inside.unsqueeze(-1), torch.empty_like(result))",
    check="written",
)
edit(
    EXPERTS,
    "sum starts from what is there",
    f"{OFF}|{NANS}",
    "total = torch.zeros(x",
    "total = torch.empty(x",
    check="written",
)
