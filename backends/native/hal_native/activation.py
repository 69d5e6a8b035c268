"""Gated activations in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import gelu, silu

from hal_native.arithmetic import wide

if TYPE_CHECKING:
    from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (silu(gate) * up).to(x.dtype).contiguous()


def gelu_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (gelu(gate) * up).to(x.dtype).contiguous()


def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (gelu(gate, approximate="tanh") * up).to(x.dtype).contiguous()
