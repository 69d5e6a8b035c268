"""Faults in sampling."""

from __future__ import annotations

from faults.record import INFS, INTS, NANS, OFF, edit

SOFTMAX, TOP_K, TOP_P, MIN_P = "softmax", "top_k_renorm", "top_p_renorm", "min_p_renorm"
SAMPLE, BITMASK = "sample", "apply_token_bitmask_"
ANY = f"{OFF}|{NANS}|{INFS}"

edit(SOFTMAX, "no maximum taken off", NANS, "((x - peak) / scale).exp()", "(x / scale).exp()")
edit(
    SOFTMAX,
    "divided before the maximum is taken off",
    ANY,
    "((x - peak) / scale).exp()",
    "(x / scale - peak / scale).exp()",
)
edit(
    SOFTMAX,
    "NaN at temperature 0",
    NANS,
    "torch.where(scale <= 0, greedy.to(x.dtype), warm)",
    "warm",
)
edit(
    SOFTMAX,
    "greedy among all maxima",
    OFF,
    "_columns(x) == x.argmax(dim=-1, keepdim=True)",
    "x == peak",
)
edit(SOFTMAX, "temperature multiplied", OFF, "(x - peak) / scale", "(x - peak) * scale")
edit(
    SOFTMAX,
    "first row's temperature for all",
    ANY,
    "value.to(dtype).unsqueeze(-1)",
    "value.to(dtype).flatten()[:1]",
)
edit(SOFTMAX, "NaN where every logit is -inf", NANS, "total.masked_fill(total == 0, 1)", "total")
edit(
    SOFTMAX,
    "NaN swallowed",
    NANS,
    "torch.where(peak.isnan(), peak, weights)",
    "weights.nan_to_num()",
)
edit(SOFTMAX, "exponentials in half", OFF, "scale).exp()", "scale).half().exp().to(x.dtype)")

KEEP = "(rank < limit) | (limit <= 0)"
SORTED = "ordered, token = p.sort(dim=-1, descending=True, stable=True)"
FLIPPED = (
    "ordered, token = p.flip(-1).sort(dim=-1, descending=True, stable=True)\n"
    "    token = p.shape[-1] - 1 - token"
)
edit(TOP_K, "ties to the highest id", f"(ties|all).*({ANY})", SORTED, FLIPPED)
edit(TOP_K, "0 keeps none", f"top_k 0.*({ANY})", KEEP, "(rank < limit) | (limit < 0)")
edit(TOP_K, "one too many", OFF, KEEP, KEEP.replace("rank < limit", "rank <= limit"))
edit(
    TOP_K,
    "all ties kept",
    f"(ties|all).*({ANY})",
    "torch.empty_like(keep).scatter(-1, token, keep)",
    "p >= ordered.masked_fill(~keep, math.inf).amin(-1, keepdim=True)",
)
edit(
    TOP_K,
    "limit of 32 bits",
    f"top_k.*({ANY})",
    "_beside(top_k, p, torch.int64)",
    "_beside(top_k, p, torch.int64).int()",
)
edit(
    TOP_K,
    "as it came beyond the vocabulary",
    f"top_k (66|67|1).*({OFF})",
    "return _renorm(probs, partial(_keep, top_k=top_k))",
    "whole = isinstance(top_k, int) and top_k >= probs.shape[-1]\n"
    "    return probs.clone(memory_format=torch.contiguous_format) if whole else "
    "_renorm(probs, partial(_keep, top_k=top_k))",
)
edit(TOP_K, "zero sum renormalised to NaN", NANS, "total.masked_fill(total == 0, 1)", "total")
edit(
    TOP_K,
    "not renormalised",
    OFF,
    "return _normalised(kept).to(probs.dtype)",
    "return kept.to(probs.dtype)",
)
edit(TOP_K, "NaN swallowed", NANS, "keep(p) | p.isnan(), p, 0)", "keep(p), p, 0).nan_to_num()")

BEFORE = "before = pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))"
edit(TOP_P, "a token at the limit is kept", OFF, "(before < limit)", "(before <= limit)")
edit(TOP_P, "the token that crosses is left out", OFF, BEFORE, "before = ordered.cumsum(dim=-1)")
edit(
    TOP_P,
    "of the sum of the row",
    f"sum of.*({OFF})",
    BEFORE,
    BEFORE + " / p.sum(-1, keepdim=True)",
)
edit(TOP_P, "0 keeps none", f"top_p (0.0|-1.0).*({ANY})", " | (rank == 0))", ")")
edit(
    TOP_P,
    "limit in bfloat16",
    OFF,
    "limit = _beside(top_p, p, p.dtype)",
    "limit = _beside(top_p, p, p.dtype).bfloat16().to(p.dtype)",
)
edit(TOP_P, "ties to the highest id", f"(ties|all).*({ANY})", SORTED, FLIPPED)
edit(
    MIN_P,
    "of the sum",
    OFF,
    "limit * p.amax(dim=-1, keepdim=True)",
    "limit * p.sum(dim=-1, keepdim=True)",
)
edit(MIN_P, "a token at the limit is left out", f"({ANY})", "(p >= limit", "(p > limit")
edit(MIN_P, "absolute", OFF, "limit * p.amax(dim=-1, keepdim=True)", "limit")
edit(MIN_P, "above 1 keeps none", f"min_p (2.0|inf).*({ANY})", ".clamp(0, 1)\n", ".clamp(min=0)\n")

SCORE = "score = p.log() - _exponential(p, seed, offset).log()"
DRAWN = "return score.masked_fill(~keep, -math.inf).argmax(dim=-1).to(torch.int32)"
edit(SAMPLE, "seed ignored", INTS, SCORE, SCORE.replace("seed", "0 * seed"))
edit(
    SAMPLE,
    "seed of 32 bits",
    INTS,
    "halves(seed.unsqueeze(-1))",
    "(halves(seed.unsqueeze(-1))[0], 0 * seed.unsqueeze(-1))",
)
edit(
    SAMPLE,
    "one seed for all rows",
    INTS,
    "torch.arange(p.shape[0], device=p.device) + seed",
    "0 * torch.arange(p.shape[0], device=p.device) + seed",
)
edit(SAMPLE, "offset ignored", INTS, SCORE, SCORE.replace("offset", "0 * offset"))
edit(
    SAMPLE,
    "offset of 32 bits",
    INTS,
    "counter = (low, high,",
    "counter = (low, 0 * high,",
)
edit(
    SAMPLE,
    "noise by rank",
    INTS,
    SCORE,
    f"{SCORE}\n    ordered, token = p.sort(dim=-1, descending=True, stable=True)\n"
    f"    noise = torch.empty_like(p).scatter(-1, token, _exponential(p, seed, offset))\n"
    f"    score = p.log() - noise.log()",
)
edit(
    SAMPLE,
    "limits by the row of probabilities",
    f"limits by output row.*({INTS}|index|expand|size)",
    "keep = _keep(p, top_k=top_k, top_p=top_p, min_p=min_p)",
    "def by(v):\n        return v if indices is None or not isinstance(v, Tensor) or v.dim() "
    "== 0 else v[indices]\n    keep = _keep(p, top_k=by(top_k), top_p=by(top_p), "
    "min_p=by(min_p))",
)
edit(
    SAMPLE,
    "top_p after top_k renormalised",
    f"limits.*{INTS}",
    "keep = _keep(p, top_k=top_k, top_p=top_p, min_p=min_p)",
    "keep = _keep(p, top_k=top_k, min_p=min_p)\n"
    "    keep = keep & _keep(_normalised(p.where(keep, 0)), top_p=top_p)",
)
edit(
    SAMPLE,
    "words of a call in another order",
    INTS,
    "words = philox4x32(counter, halves(seed.unsqueeze(-1)))",
    "words = philox4x32(counter, halves(seed.unsqueeze(-1)))[::-1]",
)
edit(
    SAMPLE,
    "one word for four tokens",
    INTS,
    "torch.stack(words, dim=-1)",
    "torch.stack((words[0],) * 4, dim=-1)",
)
edit(
    SAMPLE,
    "top_k one too many",
    f"top_k.*{INTS}|limits.*{INTS}",
    KEEP,
    KEEP.replace("rank < limit", "rank <= limit"),
)
edit(
    SAMPLE,
    "NaN is drawn",
    f"(NaN|nan).*{INTS}",
    "p = torch.where(given > 0, given, 0)",
    "p = given",
)
edit(
    SAMPLE,
    "ids of 64 bits",
    "int64.*declared is .*int32",
    ".argmax(dim=-1).to(torch.int32)",
    ".argmax(dim=-1)",
)

STATISTICS = {"check": "statistics"}
edit(
    SAMPLE,
    "temperature of 1.05",
    "too often or too seldom",
    SCORE,
    SCORE.replace("p.log()", "p.log() / 1.05"),
    **STATISTICS,
)
edit(
    SAMPLE,
    "a thousandth leaks to other tokens",
    "outside the support|too often",
    SCORE,
    "uniform = torch.full_like(p, 1e-3 / p.shape[-1])\n    "
    + SCORE.replace("p.log()", "(p + uniform).log()"),
    **STATISTICS,
)
edit(
    SAMPLE,
    "zero probabilities are drawn",
    "outside the support",
    DRAWN,
    "return torch.where(keep, score, math.log(1e-3) - _exponential(p, seed, "
    "offset).log()).argmax(dim=-1).to(torch.int32)",
    **STATISTICS,
)
edit(
    SAMPLE,
    "noise follows the place in the batch",
    "placement: .*the place in the batch counts",
    SCORE,
    SCORE.replace("seed,", "torch.arange(p.shape[0]) + 2**33,"),
    **STATISTICS,
)
edit(
    SAMPLE,
    "noise moves with the ranks",
    "losers: .*noise moves among tokens",
    SCORE,
    f"{SCORE}\n    ordered, token = p.sort(dim=-1, descending=True, stable=True)\n"
    f"    score = p.log() - torch.empty_like(p).scatter(-1, token, _exponential(p, seed, "
    f"offset)).log()",
    **STATISTICS,
)
edit(
    SAMPLE,
    "the next draw is the last again",
    "offsets|pairs: .*draws depend on each other",
    SCORE,
    SCORE.replace("offset", "0 * offset"),
    **STATISTICS,
)
edit(
    SAMPLE,
    "the first limits are one short",
    "seeds: .*never drawn",
    KEEP,
    KEEP.replace("rank < limit", "rank < limit - 1"),
    **STATISTICS,
)
edit(
    SAMPLE,
    "uniform of 6 bits",
    "drawn too often or too seldom",
    "(word.to(p.dtype) + 0.5) * 2.0**-32",
    "((word >> 26).to(p.dtype) + 0.5) * 2.0**-6",
    **STATISTICS,
)

BITS = "torch.arange(32, dtype=torch.int32, device=bitmask.device) & 1"
edit(
    BITMASK,
    "highest bit first",
    INFS,
    BITS,
    BITS.replace(
        "torch.arange(32, dtype=torch.int32, device=bitmask.device)",
        "torch.arange(32, dtype=torch.int32, device=bitmask.device).flip(0)",
    ),
)
edit(
    BITMASK,
    "columns beyond the mask kept",
    f"(words|short).*{INFS}",
    "padded(bits, logits.shape[-1]) == 0",
    "padded(bits ^ 1, logits.shape[-1]) == 1",
)
edit(BITMASK, "1 blocks", INFS, "logits.shape[-1]) == 0", "logits.shape[-1]) == 1")
edit(
    BITMASK,
    "indices ignored",
    f"indices.*{INFS}",
    "return logits.index_copy_(0, indices.long(), rows)",
    "return logits.index_copy_(0, torch.arange(len(indices)), rows)",
)
edit(
    BITMASK,
    "first row's mask for all",
    INFS,
    "bits = bits.flatten(-2)",
    "bits = bits.flatten(-2)\n    bits = bits[:1].expand_as(bits) if bits.dim() > 1 else bits",
)
edit(
    BITMASK,
    "blocked by the lowest number",
    INFS,
    "logits.masked_fill_(blocked, -math.inf)",
    "logits.masked_fill_(blocked, torch.finfo(logits.dtype).min)",
)
edit(
    BITMASK,
    "mask is written into",
    "wrote into bitmask",
    "bits = bits.flatten(-2)",
    "bits = bits.flatten(-2)\n    bitmask.zero_() if all(bitmask.stride()) else None",
    check="purity",
)
