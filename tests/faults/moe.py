"""Faults in routing."""

from __future__ import annotations

import torch
from torch import Tensor

from faults.record import INFS, INTS, NANS, OFF, edit, kernel

SOFTMAX, SIGMOID, GROUPED = "topk_softmax", "topk_sigmoid", "grouped_topk"
ALIGN, SUM = "moe_align_block_size", "moe_sum"
ANY = f"{INTS}|{OFF}"
RANKED = "score.argsort(dim=-1, descending=True, stable=True)[..., :k], renormalize)"
SCORED = "score = _softmax(_biased(logits, correction_bias))"
CAPPED = "logits = softcap * torch.tanh(logits / softcap)\n    "
edit(
    SOFTMAX,
    "ties to the highest id",
    f"all 0.0.*{INTS}|{INTS}",
    RANKED,
    RANKED.replace("score.argsort", "(score.shape[-1] - 1 - score.flip(-1).argsort").replace(
        "True)[", "True))["
    ),
)
edit(
    SOFTMAX,
    "cap after the bias",
    f"capped.*({ANY})",
    f"    if softcap:\n        {CAPPED}{SCORED}",
    f"    logits = _biased(logits, correction_bias)\n    if softcap:\n"
    f"        {CAPPED}score = _softmax(logits)",
)
edit(SOFTMAX, "cap ignored", f"capped.*({ANY})", "    if softcap:\n", "    if False:\n")
edit(SOFTMAX, "bias left out", f"biased.*({ANY})", SCORED, "score = _softmax(logits)")
edit(
    SOFTMAX,
    "bias chooses only",
    OFF,
    f"{SCORED}\n    return _taken(score, score.",
    "score, choice = _softmax(logits), _softmax(_biased(logits, correction_bias))\n"
    "    return _taken(score, choice.",
)
edit(
    SOFTMAX,
    "bias added to probabilities",
    ANY,
    SCORED,
    "score = _biased(_softmax(logits), correction_bias)",
)
edit(
    SOFTMAX,
    "NaN where every logit is -inf",
    NANS,
    "logits.softmax(dim=-1).masked_fill(empty, 0)",
    "logits.softmax(dim=-1)",
)
edit(SOFTMAX, "zero sum renormalised to NaN", NANS, "total.masked_fill(total == 0, 1)", "total")
edit(SOFTMAX, "never renormalised", OFF, "    if renormalize:\n", "    if False:\n")
edit(
    SOFTMAX,
    "ids of 64 bits",
    "int64.*declared is .*int32",
    "ids.to(torch.int32, memory_format",
    "ids.to(torch.int64, memory_format",
)
edit(
    SOFTMAX,
    "the best expert k times",
    ANY,
    RANKED,
    RANKED.replace("[..., :k]", "[..., :1].expand(*score.shape[:-1], k)"),
)
edit(
    SOFTMAX,
    "exponentials in half",
    ANY,
    SCORED,
    SCORED.replace("_softmax(", "_softmax(1.0 * ").replace("))", ").half().float())"),
)

edit(
    SIGMOID,
    "weights with the bias",
    OFF,
    "return _taken(score, ids, renormalize)\n\n\ndef grouped",
    "return _taken(choice, ids, renormalize)\n\n\ndef grouped",
)
edit(
    SIGMOID,
    "bias taken off again",
    OFF,
    "return _taken(score, ids, renormalize)\n\n\ndef grouped",
    "return _taken(choice - wide(correction_bias) if correction_bias is not None else score, "
    "ids, renormalize)\n\n\ndef grouped",
)
edit(
    SIGMOID,
    "chosen without the bias",
    ANY,
    "ids = choice.argsort(dim=-1, descending=True, stable=True)[",
    "ids = score.argsort(dim=-1, descending=True, stable=True)[",
)
CHOSEN = "ids = choice.argsort(dim=-1, descending=True, stable=True)["
edit(
    SIGMOID,
    "softmax for sigmoid",
    ANY,
    CHOSEN,
    f"score, choice = _choice(_softmax(wide(gating)), correction_bias)\n    {CHOSEN}",
)
edit(
    SIGMOID,
    "bias before the sigmoid",
    ANY,
    CHOSEN,
    f"score = _biased(wide(gating), correction_bias).sigmoid()\n    choice = score\n    {CHOSEN}",
)

edit(
    GROUPED,
    "group by its best with a bias too",
    ANY,
    "best = 1 if correction_bias is None else 2",
    "best = 1",
)
edit(
    GROUPED,
    "group by its two best without a bias",
    ANY,
    "best = 1 if correction_bias is None else 2",
    "best = 2",
)
TWO = "group = choice.topk(min(best, choice.shape[-1]), dim=-1).values.sum(dim=-1)"
edit(
    GROUPED,
    "equal maxima counted once",
    ANY,
    TWO,
    f"{TWO}\n    if best == 2 and choice.shape[-1] > 1:\n"
    f"        peak = choice.amax(-1, keepdim=True)\n"
    f"        rest = choice.masked_fill(choice == peak, -math.inf).amax(-1)\n"
    f"        group = peak.squeeze(-1) + rest.where(rest > -math.inf, 0)",
)
edit(
    GROUPED,
    "one group too many",
    ANY,
    "stable=True)[..., :topk_groups]",
    "stable=True)[..., : topk_groups + 1]",
)
SHARED = "gating.shape[-1] + torch.arange(num_fused_shared_experts, device=ids.device)"
edit(
    GROUPED,
    "all shared experts have one id",
    f"two shared.*{INTS}",
    SHARED,
    SHARED.replace("+ torch", "+ 0 * torch"),
)
edit(
    GROUPED,
    "shared experts start at 0",
    f"shared.*{INTS}",
    SHARED,
    SHARED.replace("gating.shape[-1] + ", ""),
)
edit(
    GROUPED,
    "shared experts weigh 1",
    f"shared.*({OFF})",
    "1.0 if scale_on_output else 1 / routed_scaling_factor",
    "1.0",
)
edit(
    GROUPED,
    "output not scaled",
    f"scaled.*({OFF})",
    "routed_scaling_factor if scale_on_output else 1)",
    "1)",
)
edit(
    GROUPED,
    "scaled without being asked",
    OFF,
    "routed_scaling_factor if scale_on_output else 1)",
    "routed_scaling_factor)",
)
edit(
    GROUPED,
    "scaled before it is renormalised",
    OFF,
    "weights = score.gather(-1, ids)\n    if",
    "weights, factor = score.gather(-1, ids) * factor, 1\n    if",
)
edit(
    GROUPED,
    "masked experts score 0",
    ANY,
    "ids = ids.gather(-1, ahead)[",
    "ids = choice.masked_fill(~kept, 0).argsort(dim=-1, descending=True, stable=True)[",
)
edit(
    GROUPED,
    "weights with the bias",
    OFF,
    "_taken(score, ids, renormalize, routed",
    "_taken(choice, ids, renormalize, routed",
)
edit(GROUPED, "sigmoid always", ANY, 'if scoring == "sigmoid" else _softmax(logits)', "")
edit(
    GROUPED,
    "NaN passes for a score",
    f"nan.*({NANS}|{ANY})",
    "return scores.masked_fill(broken, math.nan), choice.masked_fill(broken, math.nan)",
    "return scores, choice",
)

edit(
    ALIGN,
    "padding points at the first pair",
    INTS,
    ".where(filled, pairs).flatten()",
    ".where(filled, 0).flatten()",
)
edit(
    ALIGN,
    "pairs of an expert in reverse",
    INTS,
    "topk_ids.flatten().sort(stable=True)",
    "((s := topk_ids.flatten().flip(0).sort(stable=True)).values, pairs - 1 - s.indices)",
)
edit(
    ALIGN,
    "counts the pairs and not their blocks",
    INTS,
    "(ends[-1:] * block_size).int()",
    "(starts[-1:] - starts[:1]).int()",
)
edit(
    ALIGN,
    "an expert without pairs has a block",
    INTS,
    "blocks_of = (starts.diff() + block_size - 1) // block_size",
    "blocks_of = ((starts.diff() + block_size - 1) // block_size).clamp(min=1)",
)
edit(
    ALIGN,
    "blocks rounded down",
    INTS,
    "(starts.diff() + block_size - 1) // block_size",
    "starts.diff() // block_size",
)
edit(
    ALIGN,
    "blocks past the last belong to the first",
    INTS,
    "owner.where(owner < num_experts, -1)",
    "owner.where(owner < num_experts, 0)",
)
edit(
    ALIGN,
    "padding is not written",
    INTS,
    ".where(filled, pairs).flatten()",
    ".where(filled, torch.empty_like(place)).flatten()",
    check="written",
)
edit(SUM, "mean for sum", OFF, "wide(x).sum(dim=-2) * scale", "wide(x).mean(dim=-2) * scale")
edit(
    SUM,
    "rounded before it is scaled",
    f"beyond float16.*{INFS}",
    "wide(x).sum(dim=-2) * scale",
    "wide(wide(x).sum(dim=-2).to(x.dtype)) * scale",
)
edit(SUM, "scale ignored", OFF, "wide(x).sum(dim=-2) * scale", "wide(x).sum(dim=-2)")


@kernel(SUM, "numerics", f"float16.*({OFF})")
def sums_in_the_dtype_of_x(x: Tensor, *, scale: float = 1.0) -> Tensor:
    total = (
        torch.zeros_like(x[..., 0, :]) if x.shape[-2] else x.new_zeros(*x.shape[:-2], x.shape[-1])
    )
    for part in x.unbind(-2):
        total = total + part
    return (total * scale).to(x.dtype).contiguous()
