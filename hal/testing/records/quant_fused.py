"""Records of the ops that quantise what another op has computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hal.testing.record import Codes, Record, Refusal, Sample
from hal.testing.records import quant
from hal.testing.records.draws import Draws
from hal.testing.records.quant import CODES, DTYPES, E4M3, views

SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 255, 257, 704]
SHAPES = [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 40), (2, 0, 8), (1, 8192)]
STATIC = torch.tensor([0.0271])


def variants() -> Iterator[dict[str, Any]]:
    """How to quantise, in all ways that the three ops share."""
    yield {}
    for dtype in CODES:
        yield {"dtype": dtype}
        yield {"dtype": dtype, "scale": STATIC}
        yield {"dtype": dtype, "group_size": 32, "ue8m0": True}
    yield {"scale": STATIC.reshape(())}
    yield {"ue8m0": True}
    for layout in ("row", "column", "tma"):
        for ue8m0 in (False, True):
            yield {"group_size": 16, "scale_layout": layout, "ue8m0": ue8m0}
            yield {"scale_layout": layout, "ue8m0": ue8m0}
    yield from ({"group_size": size} for size in (64, 128))


def described(kwargs: dict[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in kwargs.items()) or "defaults"


def samples(seed: int, arguments: Callable[[Tensor], tuple[Any, ...]]) -> Iterator[Sample]:
    """Samples of an op whose tensors ``arguments`` makes from [..., d]."""
    make = Draws(seed)
    for size in SIZES:
        kwargs: dict[str, Any] = {"group_size": 16} if size % 2 else {}
        yield Sample(f"3x{size}", arguments(make(3, size)), kwargs)
    for kwargs in variants():
        yield Sample(described(kwargs), arguments(make(5, 136)), kwargs)
    packed = {"dtype": torch.int8, "scale_layout": "tma", "ue8m0": True}
    yield Sample("no columns, packed", arguments(make(5, 0)), packed)
    for dtype in DTYPES:
        yield Sample(f"{dtype}", arguments(make(5, 72).to(dtype)), {"group_size": 16})
        yield Sample(f"{dtype} static", arguments(make(5, 72).to(dtype)), {"scale": STATIC})
    for shape in SHAPES:
        yield Sample(f"shape {shape}", arguments(make(*shape)), {"group_size": 16})
    for name, x in views(make):
        yield Sample(name, arguments(x))
        yield Sample(f"{name}, static", arguments(x), {"scale": STATIC})
    for value in (0.0, 1e-12, 1e4, -6e4, math.inf, math.nan):
        yield Sample(f"all {value}", arguments(torch.full((2, 64), value)), {"group_size": 32})
        for dtype in (E4M3, torch.int8):
            x = make(4, 64)
            x[1, 5] = value
            yield Sample(f"one {value} to {dtype}", arguments(x), {"dtype": dtype})


def refusals(arguments: tuple[Any, ...]) -> Iterator[Refusal]:
    """What the ops refuse about the quantisation, and about ``x``, the first argument."""
    yield from quant.common_refusals(arguments[1:])
    message = "group_size must be 16, 32, 64 or 128; group_size is 48"
    yield Refusal(message, arguments, {"group_size": 48})
    message = "scale_layout must be row, column or tma; scale_layout is 'col'"
    yield Refusal(message, arguments, {"scale_layout": "col"})
    message = r"scale must have one element; scale is \[2\] float32"
    yield Refusal(message, arguments, {"scale": torch.ones(2)})
    message = r"scale must be float32; scale is \[1\] float64"
    yield Refusal(message, arguments, {"scale": torch.ones(1).double()})
    for name, value in {"group_size": 16, "scale_layout": "tma", "ue8m0": True}.items():
        message = f"{name} does not go with a scale; {name} is {value!r}"
        yield Refusal(message, arguments, {"scale": torch.ones(1), name: value})
    yield Refusal("dtype must be .*; dtype is torch.int32", arguments, {"dtype": torch.int32})
    kwargs = {"scale": torch.ones(1), "dtype": torch.int32}
    yield Refusal("dtype must be .*; dtype is torch.int32", arguments, kwargs)


def gated(x: Tensor) -> tuple[Tensor]:
    """``x`` beside another of its size, keeping an unusual layout of the rows."""
    return (
        torch.cat((x, x.flip(-1)), dim=-1) if x.is_contiguous() else x[..., : x.shape[-1] // 2 * 2],
    )


def silu_samples() -> Iterator[Sample]:
    yield from samples(1, gated)
    large = torch.full((2, 32), 400.0, dtype=torch.float16)
    yield Sample("products beyond float16", (large,))
    yield Sample("products beyond float16, ue8m0", (large,), {"ue8m0": True, "group_size": 16})


def silu_refusals() -> Iterator[Refusal]:
    yield from refusals((torch.zeros(4, 64),))
    message = r"x must have an even last dimension; x is \[4, 7\] float32"
    yield Refusal(message, (torch.zeros(4, 7),))
    yield Refusal(r"x must have an even .*; x is \[\] float32", (torch.tensor(0.0),))


def norm_samples() -> Iterator[Sample]:
    yield from samples(2, lambda x: (x, torch.linspace(0.5, 1.5, x.shape[-1]), 1e-5))
    make = Draws(4)
    yield Sample("no weight", (make(3, 40), None))
    weight = torch.linspace(0.5, 2, 40)
    for dtype in DTYPES:
        args = make(3, 40).bfloat16(), weight.to(dtype)
        yield Sample(f"weight {dtype}", args, {"group_size": 16})
    for eps in (0.0, 1e-3, 10.0):
        kwargs = {"eps": eps, "scale": STATIC}
        yield Sample(f"eps {eps}", (make(3, 40), weight, eps), {"group_size": 16})
        yield Sample(f"eps {eps} by name", (make(3, 40), weight), kwargs)


def norm_refusals() -> Iterator[Refusal]:
    x, weight = torch.zeros(4, 64), torch.ones(64)
    yield from refusals((x, weight))
    message = r"weight must have shape \[64\]; weight is \[63\] float32"
    yield Refusal(message, (x, weight[1:]))
    yield Refusal(r"weight must be floating point; weight is \[64\] int64", (x, weight.long()))
    yield Refusal("eps must be finite and not negative; eps is -1.0", (x, weight, -1.0))
    message = r"x must have at least one dimension; x is \[\] float32"
    yield Refusal(message, (torch.tensor(0.0), weight))


def added(x: Tensor) -> tuple[Any, ...]:
    return x, x.flip(0) * 0.5 + 0.25, torch.linspace(0.5, 1.5, x.shape[-1]), 1e-5


def add_samples() -> Iterator[Sample]:
    yield from samples(3, added)
    make = Draws(5)
    weight = torch.linspace(0.5, 2, 40)
    for dtype in DTYPES:
        args = make(3, 40).bfloat16(), make(3, 40).to(dtype), weight
        yield Sample(f"residual {dtype}", args, {"group_size": 16})
        args = make(3, 40).bfloat16(), make(3, 40), weight.to(dtype)
        yield Sample(f"weight {dtype}", args, {"group_size": 16})
    for eps in (0.0, 1e-3, 10.0):
        args = make(3, 40), make(3, 40), weight
        yield Sample(f"eps {eps}", (*args, eps), {"group_size": 16})
        yield Sample(f"eps {eps} by name", args, {"eps": eps, "scale": STATIC})
    x = make(3, 40)
    yield Sample("x float64", (x.double(), make(3, 40).bfloat16(), weight))
    yield Sample("transposed residual", (x, make(40, 3).t(), weight))
    large = torch.full((2, 40), 6e4, dtype=torch.float16)
    yield Sample("sums beyond float16", (large, large, weight))


def add_refusals() -> Iterator[Refusal]:
    x, weight = torch.zeros(4, 64), torch.ones(64)
    yield from refusals((x, x, weight))
    message = r"residual must have shape \[4, 64\]; residual is \[3, 64\] float32"
    yield Refusal(message, (x, x[1:], weight))
    message = r"residual must be floating point; residual is \[4, 64\] int64"
    yield Refusal(message, (x, x.long(), weight))
    yield Refusal(r"weight must have shape \[64\]; weight is \[63\]", (x, x, weight[1:]))
    yield Refusal("eps must be finite and not negative; eps is inf", (x, x, weight, math.inf))
    yield Refusal("weight must be Tensor, not None of type NoneType", (x, x, None))


def either(
    x: Tensor,
    scale: Tensor | None = None,
    group_size: int | None = None,
    dtype: torch.dtype = E4M3,
    scale_layout: str = "row",
    ue8m0: bool = False,
) -> tuple[Codes, Tensor]:
    """Quantise float64 ``x``."""
    if scale is not None:
        return quant.tensor_oracle(x, scale, dtype=dtype)
    kwargs: dict[str, Any] = {"dtype": dtype, "scale_layout": scale_layout, "ue8m0": ue8m0}
    if group_size is None and x.shape[-1] == 0:  # A row without elements has the scale of zeros.
        _, scale = quant.group_oracle(x.new_zeros(*x.shape[:-1], 1), 1, **kwargs)
        return Codes(x.double()), scale
    return quant.group_oracle(x, x.shape[-1] if group_size is None else group_size, **kwargs)


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    result = x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) if x.numel() else x
    return result if weight is None else result * weight.double()


def silu_oracle(x: Tensor, **kwargs: Any) -> tuple[Codes, Tensor]:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    return either(gate / (1 + torch.exp(-gate)) * up, **kwargs)


def norm_oracle(
    x: Tensor, weight: Tensor | None, eps: float = 1e-6, **kwargs: Any
) -> tuple[Codes, Tensor]:
    return either(normed(x.double(), weight, eps), **kwargs)


def add_oracle(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, **kwargs: Any
) -> tuple[Codes, Tensor, Tensor]:
    total = x.double() + residual.double()
    return (*either(normed(total, weight, eps), **kwargs), total)


RECORDS = [
    Record("silu_and_mul_quant", silu_samples, silu_refusals, silu_oracle, rows=("x",)),
    Record("rms_norm_quant", norm_samples, norm_refusals, norm_oracle, rows=("x",)),
    Record(
        "fused_add_rms_norm_quant", add_samples, add_refusals, add_oracle, rows=("x", "residual")
    ),
]
