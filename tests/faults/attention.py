"""Faults in attention."""

from __future__ import annotations

from faults.record import INFS, NANS, OFF, edit

VARLEN, PAGED, MERGE, MLA = (
    "varlen_attention",
    "paged_attention",
    "merge_attention_states",
    "mla_decode",
)
DISTANCE = "distance = key - (query[:, None] + keys - queries[:, None, None])"
edit(
    VARLEN,
    "causal from the top left",
    OFF,
    DISTANCE,
    "distance = key - (query[:, None] + 0 * keys)",
)
edit(
    VARLEN,
    "causal sees one key more",
    OFF,
    "window[0], 0 if causal else",
    "window[0], 1 if causal else",
)
edit(VARLEN, "left window one short", f"window.*({OFF})", "distance >= -left", "distance > -left")
edit(
    VARLEN, "left window one long", f"window.*({OFF})", "distance >= -left", "distance >= -left - 1"
)
edit(
    VARLEN,
    "right window ignored",
    f"window.*({OFF})",
    "0 if causal else window[1]",
    "0 if causal else -1",
)
edit(VARLEN, "window of 0 taken for none", f"window.*({OFF})", "if left >= 0:", "if left > 0:")
CAP = "    if softcap > 0:\n        scores = softcap * torch.tanh(scores / softcap)\n"
MASK = "    scores = scores.masked_fill(~seen[:, None, None], -math.inf)\n"
edit(VARLEN, "cap after the mask", f"{OFF}|{INFS}", CAP + MASK, MASK + CAP)
edit(
    VARLEN,
    "cap before the scale",
    f"softcap.*({OFF})",
    "scores = scores * (q.shape[3] ** -0.5 if scale is None else scale)\n" + CAP,
    CAP.lstrip() + "    scores = scores * (q.shape[3] ** -0.5 if scale is None else scale)\n",
)
edit(VARLEN, "cap ignored", f"(softcap|option).*({OFF})", "if softcap > 0:", "if False:")
SINKS = "sinks = q.new_full((heads,), -math.inf) if sinks is None else sinks.to(q.dtype)"
edit(
    VARLEN,
    "sinks ignored",
    f"(sink|option).*({OFF})",
    SINKS,
    "sinks = q.new_full((heads,), -math.inf)",
)
edit(VARLEN, "a sink of 0 where there is none", OFF, SINKS, SINKS.replace("-math.inf", "0"))
edit(
    VARLEN,
    "sinks not in lse",
    f"(sink|option).*({OFF}|{INFS})",
    "return weights[..., :-1], (peak + total.log()).squeeze(-1)",
    "return weights[..., :-1], (scores[..., :-1].logsumexp(-1))",
)
edit(
    VARLEN,
    "first head's sink for all",
    f"(sink|option).*({OFF})",
    "sinks.to(q.dtype)",
    "sinks.to(q.dtype)[:1].expand(heads)",
)
SCALED = "q.shape[3] ** -0.5 if scale is None else scale"
edit(
    VARLEN,
    "scale of the values' dimension",
    f"of values.*({OFF})",
    SCALED,
    SCALED.replace("q.shape", "v.shape"),
)
edit(VARLEN, "given scale ignored", f"scale.*({OFF})", SCALED, "q.shape[3] ** -0.5")
edit(
    VARLEN,
    "heads shared in turn",
    OFF,
    "heads, kv_heads = q.shape[2], k.shape[2]",
    "heads = kv_heads = q.shape[2]\n"
    "    k, v = (t.repeat(1, 1, heads // t.shape[2], 1) for t in (k, v))",
)
LSE = "(peak + total.log()).squeeze(-1)"
edit(VARLEN, "lse in base 2", OFF, LSE, "((peak + total.log()) / math.log(2)).squeeze(-1)")
edit(VARLEN, "lse without the maximum", OFF, LSE, "total.log().squeeze(-1)")
edit(
    VARLEN,
    "a row that sees nothing is NaN",
    NANS,
    "peak = peak.masked_fill(peak == -math.inf, 0)",
    "pass",
)
edit(VARLEN, "lse of 0 for a row that sees nothing", INFS, LSE, f"{LSE}.nan_to_num(neginf=0)")
edit(
    VARLEN,
    "no maximum taken off",
    f"1e4.*({INFS}|{NANS})",
    "weights = torch.exp(scores - peak)",
    "peak = 0 * peak\n    weights = torch.exp(scores - peak)",
)
edit(
    VARLEN,
    "weights in half",
    OFF,
    "return _weigh(weights, v, seen)",
    "return _weigh(weights.half().to(weights.dtype), v, seen)",
)
edit(
    VARLEN,
    "scores in bfloat16",
    OFF,
    "scores = scores * (",
    "scores = scores.bfloat16().to(scores.dtype) * (",
)
edit(
    VARLEN,
    "hidden NaN shows",
    NANS,
    "return torch.where(down, total - math.inf, total)",
    'return torch.einsum("bhgqk,bkhd->bqhgd", weights, v)',
)
edit(
    VARLEN,
    "tokens past the last sequence left as they were",
    f"padding.*{NANS}",
    "return torch.where(inside, padded[sequence, place], fill)",
    "return padded[sequence, place]",
)
edit(
    VARLEN,
    "last key of odd lengths left out",
    OFF,
    "seen = key < keys",
    "seen = key < keys - keys % 2 * (keys > 1)",
)

edit(
    VARLEN,
    "without keys the result is not written",
    f"{OFF}|{NANS}",
    "return q.new_zeros((*q.shape[:2]",
    "return q.new_empty((*q.shape[:2]",
    check="written",
    only="padding alone",
)

LENGTHS = "return _ragged(\n        q, k, v, seq_lens,"
edit(
    PAGED,
    "last page read to its end",
    NANS,
    LENGTHS,
    LENGTHS.replace(
        "seq_lens", "((seq_lens + block_size - 1) // block_size * block_size).clamp(max=longest)"
    ),
)
edit(
    PAGED,
    "incomplete page left out",
    f"{OFF}|{INFS}",
    LENGTHS,
    LENGTHS.replace("seq_lens", "seq_lens // block_size * block_size"),
)
edit(PAGED, "scale of k forgotten", OFF, "k, v = k * per_head(k_scale, k), v", "k, v = k, v")
edit(PAGED, "scale of v forgotten", OFF, "v * per_head(v_scale, v)", "v")
edit(
    PAGED,
    "values with the keys' scale",
    OFF,
    "v * per_head(v_scale, v)",
    "v * per_head(k_scale, v)",
)
edit(
    PAGED,
    "first head's scale for all",
    OFF,
    "v * per_head(v_scale, v)",
    "v * per_head(v_scale, v)[:1]",
)
edit(
    PAGED,
    "first sequence's pages for all",
    f"{OFF}|index|{NANS}",
    "block_table[:, place // size]",
    "block_table[:1, place // size].expand(block_table.shape[0], -1)",
)
edit(
    PAGED,
    "table taken for contiguous",
    f"{OFF}|{NANS}|index|out of bounds",
    "block = block_table[:, place",
    "block = block_table.as_strided(block_table.shape, (block_table.shape[1], 1))[:, place",
)
edit(
    PAGED,
    "pages of 16 rows always",
    f"{OFF}|{NANS}",
    "bits(cache)[block.long(), place % size]",
    "bits(cache)[block.long(), place % min(size, 16)]",
)
edit(
    PAGED,
    "rows in a page in reverse",
    f"{OFF}|{NANS}",
    "place % size].view",
    "size - 1 - place % size].view",
)

WEIGHTS = "weights, merged = _softmax(lse.movedim(0, -1), lse.new_full((), -math.inf))"
edit(
    MERGE,
    "lse taken for base 2",
    OFF,
    WEIGHTS,
    "weights, merged = _softmax(lse.movedim(0, -1) * math.log(2), lse.new_full((), "
    "-math.inf))\n    merged = merged / math.log(2)",
)
edit(MERGE, "NaN where both sides are empty", NANS, "total.masked_fill(total == 0, 1)", "total")
edit(
    MERGE,
    "infinity taken for a sum",
    f"{INFS}|{NANS}",
    ".nan_to_num(math.nan, -math.inf, -math.inf)",
    "",
)
edit(
    MERGE,
    "weights of the sides swapped",
    OFF,
    "(weights.movedim(-1, 0)",
    "(weights.movedim(-1, 0).flip(0)",
)
edit(
    MERGE,
    "lse of the larger side",
    OFF,
    "return merged_out.to(out_a.dtype), merged",
    "return merged_out.to(out_a.dtype), lse.amax(0)",
)
edit(
    MERGE,
    "weights not normalised",
    OFF,
    "weights = weights / total.masked_fill(total == 0, 1)",
    "pass",
)
edit(
    MERGE,
    "NaN of an empty side",
    NANS,
    "out = out.masked_fill((lse == -math.inf).unsqueeze(-1), 0)",
    "pass",
)

edit(
    MLA,
    "values from the end of the row",
    OFF,
    "k_cache[..., :latent_dim]",
    "k_cache[..., -latent_dim:]",
)
edit(
    MLA,
    "rotated part ignored",
    OFF,
    "q = torch.cat((q_nope, q_rope), dim=-1)",
    "q = torch.cat((q_nope, 0 * q_rope), dim=-1)",
)
edit(MLA, "scale of its own", OFF, "longest, scale=scale", "longest, scale=q.shape[-1] ** -0.5")
edit(
    MLA,
    "one key too few",
    f"{OFF}|{INFS}",
    "v_cache, block_table, seq_lens, starts",
    "v_cache, block_table, (seq_lens - 1).clamp(min=0), starts",
)
