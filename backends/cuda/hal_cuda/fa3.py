"""FlashAttention-3 (https://github.com/Dao-AILab/flash-attention, hopper), by whomever built it.

The second one, the package ``flash_attn``, is not asked for: torch has its kernels, as ``flash``.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from hal import Device, Kernel
from hal_cuda.libraries import Library, offered, wrong

__all__ = ["LIBRARY", "kernels"]

_NAMESPACES = ("flash_attn_3", "_vllm_fa3_C", "sgl_kernel")
"""Where it is registered by its own package, by vLLM and by SGLang."""

_NEUTRAL: Mapping[str, Any] = {
    "attention_chunk": 0,
    "softcap": 0.0,
    "is_rotary_interleaved": False,
    "sm_margin": 0,
    "cp_world_size": 1,
    "cp_rank": 0,
    "window_size_left": -1,
    "window_size_right": -1,
}
"""What is no tensor, not asked for here, and has no default in each of them."""

_ARCH = 90
"""What it is written for."""

_WRONG = {
    "paged_attention": "NaN in a page, also past its sequence, reaches all that is read with it"
}
"""By op what it does that the op does not allow; values in pages are not copied to clean them."""


def _operator() -> Any:
    """The first one that is registered; None if none is."""
    namespaces = (getattr(torch.ops, name) for name in _NAMESPACES)
    return next((each.fwd for each in namespaces if hasattr(each, "fwd")), None)


def _lacks() -> str | None:
    return None if _operator() is not None else "its package registers no operator"


LIBRARY = Library(
    "fa3", "flash_attn_interface", known=lambda: _operator() is not None, lacks=_lacks
)


def _filled(operator: Any, **given: Any) -> dict[str, Any]:
    """Arguments by name, with None or what has no effect for those that have no default."""
    arguments = [each.name for each in operator.default._schema.arguments]
    return {name: given.get(name, _NEUTRAL.get(name)) for name in arguments}


def _unseen() -> contextlib.AbstractContextManager[Any]:
    """No mode sees it: torch cannot hand one a list with tensors left out, as vLLM returns."""
    return _disable_current_modes() if _len_torch_dispatch_stack() else contextlib.nullcontext()


def by_fa3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest: tuple[int, int],
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Out [tokens, heads, head_dim] and the logs of the sums [heads, tokens]."""
    operator = _operator()
    arguments = _filled(
        operator,
        q=q,
        k=k,
        v=v,
        cu_seqlens_q=starts_q,
        cu_seqlens_k=starts_k,
        max_seqlen_q=longest[0],
        max_seqlen_k=longest[1],
        softmax_scale=q.shape[2] ** -0.5 if scale is None else scale,
        is_causal=causal,
        # One part for each sequence: parts would be added in another order, by how many there are.
        num_splits=1,
    )
    with _unseen():
        out, sums, *_ = operator(**arguments)
    return out, sums


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from hal_cuda.attention import surrounded

    starts, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return surrounded(by_fa3, (q, k, v), starts, longest, causal, scale)


def kernels(op: str, device: Device) -> list[Kernel]:
    """What it has for an op on a device."""
    # What goes around it is in Triton.
    around = importlib.util.find_spec("triton") is not None
    known = op in ("varlen_attention", *_WRONG)
    if not (known and device.arch == _ARCH and around and LIBRARY.there):
        return []
    reason = _WRONG.get(op) or LIBRARY.trouble
    if reason:
        return [wrong(LIBRARY, op, reason)]
    from hal_cuda.attention import flash_supports

    how = {"fn": varlen_attention, "supports": flash_supports, "batch_invariant": False}
    return [offered(LIBRARY, op, device, **how)]
