"""Shapes of torch_musa's operators without a fake kernel; ``_fused_rmsnorm_*`` have their own."""

from __future__ import annotations

import torch
from torch import Tensor

import hal


def _as_it_is(input: Tensor) -> Tensor:  # The operators call it so.
    return torch.empty_like(input, memory_format=torch.contiguous_format)


@hal.fake_if_exists("aten::_fused_swiglu_forward")
def _swiglu(input: Tensor) -> Tensor:
    return input.new_empty((*input.shape[:-1], input.shape[-1] // 2))


@hal.fake_if_exists("aten::_fused_swiglu_backward")
def _swiglu_backward(grad: Tensor, input: Tensor) -> Tensor:
    return _as_it_is(input)


@hal.fake_if_exists("aten::_fused_rope_forward")
def _rope(
    input: Tensor,
    freq_cis: Tensor,
    rotary_interleaved: bool,
    batch_first: bool,
    multi_latent_attention: bool = False,
) -> Tensor:
    return _as_it_is(input)


@hal.fake_if_exists("aten::_fused_rope_backward")
def _rope_backward(
    grad: Tensor,
    freq_cis: Tensor,
    rotary_interleaved: bool,
    batch_first: bool,
    multi_latent_attention: bool = False,
) -> Tensor:
    return _as_it_is(grad)
