"""sgl_kernel's quantisation: four recipes for the same numbers, equal to one FP8 step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from hal_musa.simulated.cards import CARDS
from hal_musa.simulated.host import check, host, only, write

__all__ = ["KERNELS"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_RANGES = ((-448.0, 448.0), (-128.0, 127.0))


def _codes(out: Tensor, values: Tensor, low: float, high: float, *, truncated: bool) -> None:
    """Clamp and convert: int8 is truncated by the first form and rounded by the second."""
    values = values.clamp(low, high)
    if out.dtype == torch.int8 and not truncated:
        values = values.round()
    write(out, values.reshape(out.shape))


def _exponents(scale: Tensor) -> Tensor:
    """ceil(log2) of positive floats, from their bits."""
    bits = scale.view(torch.int32)
    return (bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0).int()


def _packed(exponents: Tensor, out: Tensor) -> None:
    """A byte an exponent, four in an int32 that is written row by row; [..., rows, groups]."""
    groups = exponents.shape[-1]
    padded = F.pad((exponents + 127).clamp(0, 255), (0, -groups % 4)).to(torch.uint8)
    words = padded.contiguous().view(torch.int32)
    write(out, words.reshape(out.shape))


def _groups(input: Tensor, group: int) -> Tensor:
    check(input.shape[-1] % group == 0, "input's last dimension is not a multiple of group_size")
    return host(input).float().unflatten(-1, (-1, group))


def _first(
    input: Tensor,
    output_q: Tensor,
    output_s: Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool,
) -> None:
    only("input", input.dtype, *_FLOATS)
    check(input.is_contiguous() and output_q.is_contiguous(), "input has to be contiguous")
    groups = _groups(input, group_size)
    scale = groups.abs().amax(-1).clamp_min(eps) / fp8_max
    if scale_ue8m0:
        check(output_s.stride(0) < output_s.stride(1), "ue8m0 scales have to be column-major")
        exponents = _exponents(scale.clamp_min(1e-10))
        scale = torch.exp2(exponents.float())
        _packed(exponents, output_s)
    else:
        write(output_s, scale.reshape(output_s.shape))
    _codes(output_q, groups / scale[..., None], fp8_min, fp8_max, truncated=True)


def _silu_times(x: Tensor) -> Tensor:
    """Silu is rounded to the input's dtype before it is multiplied, and the product again."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate.float()).to(x.dtype) * up


def _second(
    input: Tensor,
    output_q: Tensor,
    output_s: Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool,
    fuse_silu_and_mul: bool,
    masked_m: Tensor | None,
) -> None:
    """Fusing is for power-of-two scales; for others it quantises the first columns, unfused."""
    only("input", input.dtype, torch.float16, torch.bfloat16)
    check(input.is_contiguous(), "input has to be contiguous")
    check(input.numel() > 0, "input must not be empty")
    check(abs(eps - 1e-10) < 1e-13, "eps has to be 1e-10")
    check((fp8_min, fp8_max) in _RANGES, "the range has to be that of e4m3 or of int8")
    check(masked_m is None or (fuse_silu_and_mul and scale_ue8m0), "masked_m is of the fused form")
    if masked_m is not None:
        raise NotImplementedError("the simulation of sgl_kernel masks no rows")
    here = host(input)
    if fuse_silu_and_mul:
        here = _silu_times(here) if scale_ue8m0 else here[..., : here.shape[-1] // 2]
    groups = _groups(here, group_size)
    largest = groups.abs().amax(-1).clamp_min(1e-10)
    if scale_ue8m0:
        exponents = _exponents(largest * (1.0 / fp8_max))
        inverse = torch.exp2(-exponents.float())
        _packed(exponents, output_s)
    else:
        inverse = fp8_max / largest  # Not the inverse of the scale that is written.
        write(output_s, (largest * (1.0 / fp8_max)).reshape(output_s.shape))
    _codes(output_q, groups * inverse[..., None], fp8_min, fp8_max, truncated=False)


def _per_token(input: Tensor, output_q: Tensor, output_s: Tensor) -> None:
    """Without a floor: of few rows, one of zeros is 0 times infinity, which is clamped to 448."""
    only("input", input.dtype, *_FLOATS)
    check(input.dim() == 2 and input.is_contiguous(), "input has to be [rows, dim], contiguous")
    check(input.shape[1] % 4 == 0, "input's last dimension has to be a multiple of 4")
    here = host(input).float()
    scale = here.abs().amax(-1, keepdim=True) / 448
    few = len(here) < 16 * CARDS["S5000"].multiprocessors
    codes = here * (1 / scale)
    codes = torch.where(codes.isnan() & (scale == 0), 448.0 if few else 0.0, codes)
    _codes(output_q, codes, -448, 448, truncated=False)
    write(output_s, scale.reshape(output_s.shape))


KERNELS: dict[str, Callable[..., Any]] = {
    "sgl_per_token_group_quant_8bit": _first,
    "sgl_per_token_group_quant_8bit_v2": _second,
    "sgl_per_token_quant_fp8": _per_token,
}
