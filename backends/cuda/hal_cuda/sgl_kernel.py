"""What sgl_kernel (https://github.com/sgl-project/sglang, sgl-kernel) has, right and wrong.

Its operators are called by their schemas, which is all that there is of it where only its shared
object was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hal import Device, Kernel
from hal_cuda import rows
from hal_cuda.layout import together
from hal_cuda.libraries import Library, offered, wrong

__all__ = ["LIBRARY", "kernels"]


def _known() -> bool:
    return hasattr(torch.ops.sgl_kernel, "rmsnorm")


LIBRARY = Library("sgl_kernel", "sgl_kernel", known=_known)

_ARGUMENTS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"), ("out", "input")),
    **dict.fromkeys(
        ("rmsnorm", "gemma_rmsnorm"), ("output", "input", "weight", "eps", "enable_pdl")
    ),
    **dict.fromkeys(
        ("fused_add_rmsnorm", "gemma_fused_add_rmsnorm"),
        ("input", "residual", "weight", "eps", "enable_pdl"),
    ),
    "moe_sum_reduce": ("input", "output", "routed_scaling_factor"),
}
"""What its operators are given, as in 0.4.5; other versions had other arguments."""


class _Operator:
    """One of its operators, found when it is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        return getattr(torch.ops.sgl_kernel, self.name)(*args)

    @property
    def trouble(self) -> str | None:
        """Why it cannot be called as it is here."""
        found = getattr(torch.ops.sgl_kernel, self.name, None)
        if found is None:
            return f"this version has no {self.name}"
        names = tuple(argument.name for argument in found.default._schema.arguments)
        wanted = tuple(_ARGUMENTS[self.name])
        return None if names == wanted else f"{self.name} takes {names}, not {wanted}"


_ROWS = 4 * 65535
"""Rows of a grid beyond which moe_sum_reduce sums nothing, with four to a block."""
_CHUNK = 16
"""Columns that it sums at once in bfloat16; it leaves out what is half of that."""


def moe_sum(x: Tensor, *, scale: float = 1.0) -> Tensor:
    out = x.new_zeros((*x.shape[:-2], x.shape[-1]))
    if x.numel():
        whole = together(x.reshape(-1, *x.shape[-2:]))
        with rows.on(x):
            _Operator("moe_sum_reduce")(whole, out.view(-1, x.shape[-1]), scale)
    return out


def moe_sum_supports(x: Tensor, *, scale: float = 1.0) -> str | None:
    if x.dtype not in rows.HALVES:
        return "its sums are called in float16 and bfloat16"
    if x.shape[-1] % _CHUNK:
        return f"it leaves out columns beyond a multiple of {_CHUNK}"
    return f"it sums no more than {_ROWS} tokens" if x.shape[:-2].numel() > _ROWS else None


def _norm(theirs: str) -> dict[str, Any]:
    return {"fn": rows.norm(_Operator(theirs)), "supports": rows.norm_supports, "pdl": True}


def _add_norm(theirs: str) -> dict[str, Any]:
    overwrite = rows.add_norm(_Operator(theirs))
    fn = rows.added(overwrite)
    return {"fn": fn, "inplace": overwrite, "supports": rows.add_norm_supports, "pdl": True}


def _gate(theirs: str) -> dict[str, Any]:
    return {"fn": rows.gate(_Operator(theirs)), "supports": rows.gate_supports}


_RIGHT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "silu_and_mul": ("silu_and_mul", _gate("silu_and_mul")),
    "gelu_and_mul": ("gelu_and_mul", _gate("gelu_and_mul")),
    "rms_norm": ("rmsnorm", _norm("rmsnorm")),
    "gemma_rms_norm": ("gemma_rmsnorm", _norm("gemma_rmsnorm")),
    "fused_add_rms_norm": ("fused_add_rmsnorm", _add_norm("fused_add_rmsnorm")),
    "gemma_fused_add_rms_norm": ("gemma_fused_add_rmsnorm", _add_norm("gemma_fused_add_rmsnorm")),
    "moe_sum": ("moe_sum_reduce", {"fn": moe_sum, "supports": moe_sum_supports}),
}
"""By op its operator, and how that is called."""

_TIES = "it keeps all that tie with the last one, of which there may be many"

_WRONG: Mapping[str, str] = {
    # Up to 1.1e-2 of a result at gates from -4 to -2, on an H100; rounding takes 2e-3 of it.
    "gelu_tanh_and_mul": "its tanh has 11 bits, which says nothing of gates below -3",
    "merge_attention_states": "it is NaN where neither side has keys, or one that has none is NaN",
    "moe_align_block_size": "an expert's pairs come in no order, and ids of -1 have blocks",
    "per_token_group_quant": "it leaves NaN out of a group's scale, which then tells nothing of it",
    "per_token_quant": "of zeros it makes a scale of 0, with codes of 448 in batches of few rows",
    "rotary_embedding": "it takes a cache of the dtype of the heads, and rounds each product to it",
    "sample": "it draws other tokens from the same seed",
    "scaled_mm": "its sums stay in the 14 bits or so of tensor cores from end to end of a row",
    "topk_sigmoid": "its weights are biased scores less the bias, which leaves out digits",
    "topk_softmax": "of a row with NaN it makes weights of -1 and the same expert k times",
    "grouped_topk": "it takes sigmoids in the dtype of the logits, and divides by sums of 0",
    "top_k_renorm": _TIES,
    "top_p_renorm": _TIES,
}
"""By op what its kernel does that the op does not allow."""


def kernels(op: str, device: Device) -> list[Kernel]:
    """What it has for an op on a device."""
    if op not in (*_RIGHT, *_WRONG) or not LIBRARY.there:
        return []
    if op in _WRONG:
        return [wrong(LIBRARY, op, _WRONG[op])]
    theirs, how = _RIGHT[op]
    trouble = LIBRARY.trouble or _Operator(theirs).trouble
    return [wrong(LIBRARY, op, trouble) if trouble else offered(LIBRARY, op, device, **how)]
