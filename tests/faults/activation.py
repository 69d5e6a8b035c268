"""Faults in activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu

from faults.record import INFS, NANS, OFF, edit, kernel, reference

SILU = "(silu(gate) * up).to(x.dtype)"
edit("silu_and_mul", "rounds the gate", OFF, SILU, "(silu(gate).to(x.dtype) * up).to(x.dtype)")
edit("silu_and_mul", "gate and up swapped", OFF, SILU, "(gate * silu(up)).to(x.dtype)")
edit(
    "silu_and_mul",
    "NaN for zero",
    NANS,
    SILU,
    "(gate.square() / gate * gate.sigmoid() * up).to(x.dtype)",
)
edit(
    "silu_and_mul",
    "exponential overflows",
    NANS,
    SILU,
    "(gate * gate.exp() / (1 + gate.exp()) * up).to(x.dtype)",
)


@kernel("silu_and_mul", "numerics", OFF)
def silu_in_the_dtype_of_x(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return (gate * gate.sigmoid() * up).contiguous()


@kernel("gelu_and_mul", "numerics", OFF)
def tanh_form(x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    return (gelu(gate, approximate="tanh") * up).to(x.dtype).contiguous()


edit("gelu_tanh_and_mul", "erf form", OFF, 'gelu(gate, approximate="tanh") * up', "gelu(gate) * up")

GATE, UP = "gate = wide(x[..., 0::2])", "up = wide(x[..., 1::2])"
OAI = "swigluoai_and_mul"
edit(
    OAI,
    "halves for pairs",
    OFF,
    GATE + ".clamp(max=limit)\n    " + UP,
    "gate, up = wide(x).chunk(2, -1)\n    gate = gate.clamp(max=limit)\n    up = up",
)
edit(
    OAI,
    "gate clamped below too",
    OFF,
    GATE + ".clamp(max=limit)",
    GATE + ".clamp(-limit, limit)",
)
edit(
    OAI,
    "up clamped above only",
    OFF,
    UP + ".clamp(-limit, limit)",
    UP + ".clamp(max=limit)",
)
edit(OAI, "limit of the gate ignored", OFF, GATE + ".clamp(max=limit)", GATE)
edit(
    OAI,
    "default limit always",
    f"limit 3.5.*({OFF})",
    GATE + ".clamp(max=limit)",
    GATE + ".clamp(max=7)",
)
edit(OAI, "up without its one", OFF, "(up + 1) * gate", "up * gate")
edit(OAI, "alpha ignored", f"alpha.*({OFF})", "(alpha * gate)", "(1.702 * gate)")

RELU = "relu(wide(x)).square()"
edit("relu_squared", "squared before it is cut", OFF, RELU, "relu(wide(x).square())")
edit(
    "relu_squared",
    "NaN swallowed",
    NANS,
    RELU,
    "relu(wide(x).nan_to_num(0, float('inf'))).square()",
)
edit(
    "relu_squared",
    "NaN spreads to other rows",
    NANS,
    RELU,
    "(relu(wide(x)) + 0 * wide(x).where(wide(x).isnan(), 0).sum()).square()",
)
edit(
    "relu_squared",
    "squared in int16 steps",
    OFF,
    RELU,
    "(relu(wide(x)) * 4096).round().div(4096).square()",
)
edit("quick_gelu", "1.7 for 1.702", OFF, "(1.702 * w)", "(1.7 * w)")


@kernel("mul_add", "numerics", f"lacks.*({OFF})")
def scale_in_the_dtype_of_x(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return reference("mul_add")(x, y, x.new_tensor(scale).item())


@kernel("mul_add", "numerics", f"{OFF}|{INFS}")
def product_rounded(x: Tensor, y: Tensor, scale: float) -> Tensor:
    product = reference("mul_add")(x, torch.zeros_like(y), scale)
    return reference("mul_add")(product, y, 1.0)


@kernel("mul_add", "purity", "wrote into y")
def writes_into_y(x: Tensor, y: Tensor, scale: float) -> Tensor:
    result = (x.double() * scale + y.double()).to(x.dtype).contiguous()
    if y.numel() and all(y.stride()):
        y.copy_(result)
    return result


def _first(result: Tensor, count: int) -> Tensor:
    """The result of a kernel that writes ``count`` elements of it and leaves the rest."""
    target = torch.empty_like(result, memory_format=torch.contiguous_format)
    target.view(-1)[:count] = result.reshape(-1)[:count]
    return target


@kernel("mul_add", "written", NANS)
def no_tail_after_vectors_of_8(x: Tensor, y: Tensor, scale: float) -> Tensor:
    result = (x.double() * scale + y.double()).to(x.dtype)
    return _first(result, result.numel() // 8 * 8)


@kernel("relu_squared", "written", f"(nan|{NANS})")
def last_element_left(x: Tensor) -> Tensor:
    return _first(x.double().relu().square().to(x.dtype), x.numel() - 1)


@kernel("quick_gelu", "numerics", f"(every other|wider|transposed).*({OFF})")
def takes_rows_for_contiguous(x: Tensor) -> Tensor:
    flat = x.as_strided((x.numel(),), (1,), x.storage_offset()) if all(x.stride()) else x
    w = flat.double().view(x.shape)
    return (w * (1.702 * w).sigmoid()).to(x.dtype).contiguous()


@kernel("quick_gelu", "written", NANS)
def no_tail_after_vectors_of_16(x: Tensor) -> Tensor:
    result = reference("quick_gelu")(x)
    return _first(result, result.numel() // 16 * 16)


@kernel("silu_and_mul", "written", NANS)
def columns_after_the_last_block_of_128_left(x: Tensor) -> Tensor:
    result = reference("silu_and_mul")(x)
    target = torch.empty_like(result)
    columns = result.shape[-1] // 128 * 128
    target[..., :columns] = result[..., :columns]
    return target


@kernel("silu_and_mul", "numerics", OFF)
def last_row_is_the_one_before(x: Tensor) -> Tensor:
    result = reference("silu_and_mul")(x)
    if x.dim() > 1 and x.shape[0] > 1:
        result[-1] = result[-2]
    return result
