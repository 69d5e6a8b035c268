"""What FlashInfer (https://github.com/flashinfer-ai/flashinfer, 0.6) has, right and wrong.

It compiles what is called first with nvcc, for seconds, unless the package with its cache of
compiled kernels is there. That is on the host alone, and so may be within a capture.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hal import Device, Kernel
from hal_cuda import rows
from hal_cuda.layout import together
from hal_cuda.libraries import Library, offered, wrong

__all__ = ["LIBRARY", "kernels"]


def _lacks() -> str | None:
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        return None
    from torch.utils.cpp_extension import CUDA_HOME

    there = CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").exists()
    return None if there else "it needs nvcc or its package flashinfer_jit_cache, and has neither"


LIBRARY = Library("flashinfer", "flashinfer", lacks=_lacks)


def _call(path: str, *args: Any, **kwargs: Any) -> Any:
    place, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"flashinfer.{place}"), name)(*args, **kwargs)


def _normed(name: str) -> Callable[..., None]:
    def call(out: Tensor, x: Tensor, weight: Tensor, eps: float, early: bool) -> None:
        _call(f"norm.{name}", x, weight, eps, out=out, enable_pdl=early)

    return call


def _summed(name: str) -> Callable[..., None]:
    def call(x: Tensor, residual: Tensor, weight: Tensor, eps: float, early: bool) -> None:
        _call(f"norm.{name}", x, residual, weight, eps, enable_pdl=early)

    return call


def _gated(name: str) -> Callable[..., None]:
    def call(out: Tensor, x: Tensor) -> None:
        _call(f"activation.{name}", x, out=out, enable_pdl=False)

    return call


_HEADS = (64, 128, 256, 512)
_PAIR = 2 * 16
"""Columns of two neighbouring vectors of a head, of which one begins where cosines become sines."""
_CACHE = 2**31


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    assert key is not None  # The condition says so.
    if not len(positions):
        return query.new_empty(query.shape), key.new_empty(key.shape)
    flat = (together(heads.flatten(1)) for heads in (query, key))
    with rows.on(query):
        turned = _call(
            "rope.apply_rope_with_cos_sin_cache",
            together(positions),
            *flat,
            query.shape[2],
            together(cos_sin_cache),
        )
    return turned[0].view(query.shape), turned[1].view(key.shape)


def rotary_embedding_supports(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> str | None:
    if key is None or not query.shape[1] * key.shape[1] or offsets is not None:
        return "it takes heads of query and key, and no offsets"
    if query.dtype not in rows.HALVES or key.dtype != query.dtype:
        return "it turns heads of one dtype, float16 or bfloat16"
    if query.shape[2] != key.shape[2] or query.shape[2] not in _HEADS:
        return f"it is called with heads of {', '.join(map(str, _HEADS))} columns"
    if cos_sin_cache.dtype != torch.float32 or not cos_sin_cache.is_contiguous():
        return "it takes a cache of float32 that is contiguous"
    if not is_neox:
        return "it reads past the end of a cache for pairs of neighbours"
    if cos_sin_cache.shape[1] % _PAIR or cos_sin_cache.numel() >= _CACHE:
        return f"it takes a cache of a multiple of {_PAIR} columns and below 2**31 elements"
    return None


def _norm(theirs: str) -> dict[str, Any]:
    return {"fn": rows.norm(_normed(theirs)), "supports": rows.norm_supports, "pdl": True}


def _add_norm(theirs: str) -> dict[str, Any]:
    overwrite = rows.add_norm(_summed(theirs))
    fn = rows.added(overwrite)
    return {"fn": fn, "inplace": overwrite, "supports": rows.add_norm_supports, "pdl": True}


def _gate(theirs: str) -> dict[str, Any]:
    return {"fn": rows.gate(_gated(theirs)), "supports": rows.gate_supports}


_RIGHT: Mapping[str, dict[str, Any]] = {
    "silu_and_mul": _gate("silu_and_mul"),
    "gelu_and_mul": _gate("gelu_and_mul"),
    "rms_norm": _norm("rmsnorm"),
    "gemma_rms_norm": _norm("gemma_rmsnorm"),
    "fused_add_rms_norm": _add_norm("fused_add_rmsnorm"),
    "gemma_fused_add_rms_norm": _add_norm("gemma_fused_add_rmsnorm"),
    # Few tokens have one kernel and many another, whose bits need not be the same.
    "rotary_embedding": {
        "fn": rotary_embedding,
        "supports": rotary_embedding_supports,
        "batch_invariant": False,
    },
}
"""By op how it is called."""

_PLANS = "it plans on the host, for lengths that are on the device"
_TIES = "it keeps all that tie with the last one, of which there may be many"

_WRONG: Mapping[str, str] = {
    "gelu_tanh_and_mul": "its tanh has 11 bits, which says nothing of gates below -3",
    "merge_attention_states": "its logs are of base 2, and it is NaN where neither side has keys",
    "mla_decode": _PLANS,
    "paged_attention": _PLANS,
    "sample": "it draws other tokens from the same seed",
    "softmax": "at a temperature of 0 all tokens are as probable, and a row of -inf is NaN",
    "top_k_renorm": _TIES,
    "top_p_renorm": _TIES,
    "varlen_attention": _PLANS,
}
"""By op what its kernel does that the op does not allow."""


def kernels(op: str, device: Device) -> list[Kernel]:
    """What it has for an op on a device."""
    if op not in (*_RIGHT, *_WRONG) or not LIBRARY.there:
        return []
    reason = _WRONG.get(op) or LIBRARY.trouble
    return [wrong(LIBRARY, op, reason) if reason else offered(LIBRARY, op, device, **_RIGHT[op])]
