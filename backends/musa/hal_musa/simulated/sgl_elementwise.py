"""sgl_kernel's norms, activations and merging of attention, with the checks that they have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from hal_musa.simulated.host import check, host, memory, only, write

__all__ = ["KERNELS"]

_HALF = (torch.float16, torch.bfloat16)


def _scaled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _as_read(weight: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    """What a kernel of ``dtype`` reads of a weight whose own dtype it does not look at."""
    raw = host(memory(weight, weight.numel())).view(torch.uint8)
    size = count * dtype.itemsize
    return F.pad(raw[:size], (0, max(0, size - len(raw)))).view(dtype).float()


def _rmsnorm(one: float) -> Callable[..., None]:
    def kernel(output: Tensor, input: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
        only("rmsnorm's input", input.dtype, *_HALF)
        check(input.dim() == 2, "rmsnorm's input has to have two dimensions")
        check(input.stride(-1) == 1, "rmsnorm's input has a contiguous last dimension")
        check(weight.dim() == 1 and len(weight) == input.shape[1], "weight has to be [dim]")
        scale = one + _as_read(weight, input.dtype, input.shape[1])
        write(output, _scaled(host(input).float(), scale, eps))

    return kernel


def _fused_add_rmsnorm(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    """Rows and columns are the first two sizes, from the address on, in vectors of 16 bytes.

    What is left of a row after its vectors is neither read nor written.
    """
    rows, dim = input.shape[0], input.shape[1]
    whole = dim // (16 // input.element_size()) * (16 // input.element_size())
    full = [host(memory(x, rows * dim)) for x in (input, residual)]
    rows = min(len(x) for x in full) // dim if dim else 0
    x, r = (one[: rows * dim].view(rows, dim)[:, :whole] for one in full)
    total = x.float() + r.float()
    norm = total * torch.rsqrt(total.square().sum(-1, keepdim=True) / max(dim, 1) + eps)
    x.copy_(norm * _as_read(weight, input.dtype, whole))
    r.copy_(total)


def _gemma_fused_add_rmsnorm(
    input: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool
) -> None:
    only("gemma_fused_add_rmsnorm's input", input.dtype, *_HALF)
    check(input.dim() == 2 and input.shape == residual.shape, "input and residual are [rows, dim]")
    check(weight.shape == input.shape[1:], "weight has to be [dim]")
    total = host(input).float() + host(residual).float()
    write(input, _scaled(total, 1 + _as_read(weight, input.dtype, input.shape[1]), eps))
    write(residual, total)


def _gated(gate: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def kernel(out: Tensor, input: Tensor) -> None:
        """Strides are not looked at: both are taken as contiguous from their addresses on."""
        width = out.shape[-1]
        vector = 16 // input.element_size()
        if input.numel() and width < vector:
            raise RuntimeError("MUSA error: invalid configuration argument")
        rows = input.numel() // max(1, input.shape[-1])
        found = host(memory(input, input.numel())).view(rows, -1).float()
        result = gate(found[:, :width]) * found[:, width:]
        write(memory(out, out.numel()), result.flatten()[: out.numel()])

    return kernel


def _merge_state(
    v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor, v_merged: Tensor, s_merged: Tensor
) -> None:
    only("v_a", v_a.dtype, torch.float32, *_HALF)
    check(v_a.shape[-1] * v_a.element_size() % 16 == 0, "head_dim has to be of 16 bytes")
    a, b = (host(s).float().masked_fill(host(s) == math.inf, -math.inf) for s in (s_a, s_b))
    top = torch.maximum(a, b)
    # Both of them -inf gives NaN, as inf - inf does.
    left, right = torch.exp(a - top), torch.exp(b - top)
    values = host(v_a).float() * left[..., None] + host(v_b).float() * right[..., None]
    write(v_merged, values / (left + right)[..., None])
    write(s_merged, torch.log(left + right) + top)


KERNELS: dict[str, Callable[..., Any]] = {
    "rmsnorm": _rmsnorm(0.0),
    "gemma_rmsnorm": _rmsnorm(1.0),
    "fused_add_rmsnorm": _fused_add_rmsnorm,
    "gemma_fused_add_rmsnorm": _gemma_fused_add_rmsnorm,
    "silu_and_mul": _gated(F.silu),
    "gelu_and_mul": _gated(F.gelu),
    "gelu_tanh_and_mul": _gated(lambda x: F.gelu(x, approximate="tanh")),
    "merge_state_v2": _merge_state,
}
