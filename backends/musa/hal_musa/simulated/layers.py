"""torch_musa's functions and layers in torch, torch.nn and torch.nn.functional."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

__all__ = ["RoPE", "SwishGLU", "install_layers"]


def swish_glu(input: Tensor) -> Tensor:
    """``silu`` of the first half of the last dimension times the second half."""
    return torch.ops.aten.swish_glu(input)


def rope(
    input: Tensor,
    freq_cis: Tensor,
    rotary_interleaved: bool = False,
    batch_first: bool = False,
    multi_latent_attention: bool = False,
) -> Tensor:
    """Rotate [seq, batch, heads, dim], or [batch, seq, ...], by angles [seq, rotary_dim]."""
    options = (rotary_interleaved, batch_first, multi_latent_attention)
    return torch.ops.aten.rope(input, freq_cis, *options)


class SwishGLU(nn.Module):
    """``F.swish_glu``."""

    def forward(self, input: Tensor) -> Tensor:
        """See ``F.swish_glu``."""
        return swish_glu(input)


class RoPE(nn.Module):
    """``F.rope`` by angles that the layer keeps."""

    freq_cis: Tensor

    def __init__(
        self,
        freq_cis: Tensor,
        rotary_interleaved: bool = False,
        batch_first: bool = False,
        multi_latent_attention: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("freq_cis", freq_cis)
        self.options = (rotary_interleaved, batch_first, multi_latent_attention)

    def forward(self, input: Tensor) -> Tensor:
        """See ``F.rope``."""
        return rope(input, self.freq_cis, *self.options)


def install_layers() -> None:
    """Put them where torch_musa's torch has them."""
    names: tuple[tuple[Any, dict[str, Any]], ...] = (
        (torch, {name: getattr(torch.ops.aten, name) for name in ("swish_glu", "rope")}),
        (torch, {"gated_silu": torch.ops.aten.gated_silu}),
        (F, {"swish_glu": swish_glu, "rope": rope}),
        (nn, {"SwishGLU": SwishGLU, "RoPE": RoPE}),
    )
    for place, found in names:
        for name, value in found.items():
            setattr(place, name, value)
