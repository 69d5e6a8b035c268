"""muDNN's fused activations, norms, rotations and losses, as torch_musa's operators call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from hal_musa.simulated.cards import arch
from hal_musa.simulated.host import check, on_host, only

__all__ = ["KERNELS"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _floats(what: str, x: Tensor) -> None:
    """Refuse what muDNN does not compute: below 22 there is no bfloat16 but an emulated one."""
    only(what, x.dtype, *_FLOATS)
    check(x.dtype != torch.bfloat16 or arch() >= 22, f"{what} of bfloat16 needs MP22")


def _silu_times(x: Tensor) -> Tensor:
    """Half of an odd width is rounded down, and the last column unread: nobody looks at it."""
    half = x.shape[-1] // 2
    return F.silu(x[..., :half]) * x[..., half : 2 * half]


def _derived(compute: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a float32 function of ``inputs``, in their dtypes."""
    with torch.enable_grad():
        leaves = [x.detach().float().requires_grad_() for x in inputs]
        found = torch.autograd.grad(compute(*leaves), leaves, grad.float())
    return tuple(g.to(x.dtype) for g, x in zip(found, inputs, strict=True))


@on_host
def _swiglu(input: Tensor) -> Tensor:
    _floats("SwiGlu's input", input)
    return _silu_times(input.float()).to(input.dtype)


@on_host
def _swiglu_backward(grad: Tensor, input: Tensor) -> Tensor:
    _floats("SwiGlu's input", input)
    return _derived(_silu_times, grad, input)[0]


def _gated_silu(input: Tensor) -> Tensor:
    only("gated_silu's input", input.dtype, torch.float32, torch.float16)
    check(input.dim() > 1, "gated_silu's input has to have more than one dimension")
    check(input.is_contiguous(), "gated_silu's input has to be contiguous")
    return on_host(lambda x: _silu_times(x.float()).to(x.dtype))(input)


def _normed(shape: Sequence[int], eps: float) -> Callable[..., Tensor]:
    dims = tuple(range(-len(shape), 0))

    def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
        return y if weight is None else y * weight

    return norm


def _same_dtype(input: Tensor, weight: Tensor | None) -> None:
    _floats("RMSNorm's input", input)
    check(
        weight is None or weight.dtype == input.dtype,
        "DTypes of input/weight tensors of FusedRMSNormForwardOut must be the same",
    )


@on_host
def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], eps: float, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _same_dtype(input, weight)
    check(tuple(input.shape[-len(normalized_shape) :]) == tuple(normalized_shape), "bad shape")
    dims = tuple(range(-len(normalized_shape), 0))
    inverse = torch.rsqrt(input.float().square().mean(dims) + eps)
    wide = None if weight is None else weight.float()
    return _normed(normalized_shape, eps)(input.float(), wide).to(input.dtype), inverse


@on_host
def _rms_norm_backward(
    grad_out: Tensor,
    invvar: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    eps: float,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _same_dtype(input, weight)
    norm = _normed(normalized_shape, eps)
    if weight is None:
        return _derived(norm, grad_out, input)[0], torch.empty(0)
    grads = _derived(norm, grad_out, input, weight)
    return grads[0], grads[1]


def _turned(x: Tensor, angles: Tensor, batch_first: bool, latent: bool, sign: float) -> Tensor:
    seq, width = angles.shape
    angle = angles.float().reshape((1, seq, 1, width) if batch_first else (seq, 1, 1, width))
    turn, rest = x[..., :width].float(), x[..., width:]
    if latent:  # Pairs that lie side by side are taken apart first.
        turn = torch.cat([turn[..., 0::2], turn[..., 1::2]], -1)
    first, second = turn.chunk(2, -1)
    turn = turn * angle.cos() + sign * torch.cat([-second, first], -1) * angle.sin()
    return torch.cat([turn.to(x.dtype), rest], -1)


def _rope(sign: float) -> Callable[..., Tensor]:
    def kernel(
        input: Tensor,
        freq_cis: Tensor,
        rotary_interleaved: bool,
        batch_first: bool,
        multi_latent_attention: bool = False,
    ) -> Tensor:
        _floats("rope's input", input)
        check(input.dim() == 4, "rope's input has to have four dimensions")
        check(input.stride(-1) == freq_cis.stride(-1) == 1, "rope's last dimension is contiguous")
        if rotary_interleaved or (multi_latent_attention and sign < 0):
            raise NotImplementedError("the simulation of rope has no interleaved form")
        turned = on_host(lambda x, f: _turned(x, f, batch_first, multi_latent_attention, sign))
        return turned(input, freq_cis)

    return kernel


def _entropy_choice(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> int:
    fused = arch() >= 30 and self.dim() == 2 and target.dim() == 1 and not label_smoothing
    return int(fused)


def _loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return F.cross_entropy(
        *(logits, target, None if weight is None else weight.float()),
        ignore_index=ignore_index,
        reduction=("none", "mean", "sum")[reduction],
        label_smoothing=label_smoothing,
    )


@on_host
def _entropy(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    _floats("the loss's input", self)
    rest = (weight, reduction, ignore_index, label_smoothing)
    return _loss(self.float(), target, *rest).to(self.dtype)


@on_host
def _entropy_backward(
    grad: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    rest = (target, weight, reduction, ignore_index, label_smoothing)
    return _derived(lambda x: _loss(x, *rest), grad, self)[0]


KERNELS: dict[str, Callable[..., Any]] = {
    "gated_silu": _gated_silu,
    "_fused_swiglu_forward": _swiglu,
    "_fused_swiglu_backward": _swiglu_backward,
    "_fused_rmsnorm_forward": _rms_norm,
    "_fused_rmsnorm_backward": _rms_norm_backward,
    "_fused_rope_forward": _rope(1.0),
    "_fused_rope_backward": _rope(-1.0),
    "cross_entropy_loss_2d_choice": _entropy_choice,
    "_fused_cross_entropy_loss_2d_forward": _entropy,
    "_fused_cross_entropy_loss_2d_backward": _entropy_backward,
}
