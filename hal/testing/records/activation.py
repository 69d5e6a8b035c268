"""Records of the activations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws

SIZES = [0, 2, 6, 14, 16, 30, 32, 34, 62, 66, 126, 128, 130, 254, 256, 258, 1408, 2816]


def samples() -> Iterator[Sample]:
    draw = Draws()
    for size in SIZES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            yield Sample(f"3x{size} {dtype}", (draw(3, size, dtype=dtype),))
    yield Sample("float64", (draw(5, 64, dtype=torch.float64),))
    for shape in [(0, 8), (8,), (2, 3, 8), (2, 1, 3, 8), (1, 16384)]:
        yield Sample(f"shape {shape}", (draw(*shape),))
    yield Sample("transposed", (draw(64, 3).t(),))
    yield Sample("rows of a wider tensor", (draw(4, 96)[:, 16:80],))
    yield Sample("every other row", (draw(8, 32)[::2],))
    yield Sample("every other column", (draw(4, 64)[:, ::2],))
    yield Sample("expanded", (draw(1, 32).expand(4, 32),))
    yield Sample("offset by one element", (draw(129)[1:].view(2, 64),))
    for value in (0.0, 1e4, -6e4, 1e-38, math.inf, -math.inf, math.nan):
        yield Sample(f"all {value}", (torch.full((2, 64), value),))
    one_nan = draw(4, 64)
    one_nan[1, 5] = math.nan
    yield Sample("one NaN", (one_nan,))


def refusals() -> Iterator[Refusal]:
    yield Refusal(
        r"x must have an even last dimension; x is \[4, 7\] float32", (torch.zeros(4, 7),)
    )
    yield Refusal(r"x must have an even last dimension; x is \[\] float32", (torch.zeros(()),))
    yield Refusal(
        r"x must be floating point; x is \[4, 8\] int64", (torch.zeros(4, 8, dtype=torch.int64),)
    )


def silu_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    return gate / (1 + torch.exp(-gate)) * up


def gelu_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    return gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))) * up


def gelu_tanh_oracle(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    gate, up = x[..., :half].double(), x[..., half:].double()
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
    return gate * 0.5 * (1 + torch.tanh(inner)) * up


def oai_samples() -> Iterator[Sample]:
    yield from samples()
    x = Draws(1)(4, 64) * 10
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        yield Sample(f"beyond the limit {dtype}", (x.to(dtype),))
    for alpha, limit in [(1.0, 3.5), (-0.5, 7.0), (0.0, 1), (2, 1e-3), (1.702, math.inf)]:
        yield Sample(f"alpha {alpha}, limit {limit}", (x, alpha, limit))
        yield Sample(
            f"alpha {alpha}, limit {limit} by name", (x,), {"alpha": alpha, "limit": limit}
        )


def oai_refusals() -> Iterator[Refusal]:
    yield from refusals()
    x = torch.zeros(2, 4)
    yield Refusal("alpha must be finite; alpha is nan", (x, math.nan))
    yield Refusal("alpha must be finite; alpha is inf", (x, math.inf))
    for limit in (0.0, -1.0, math.nan):
        yield Refusal(f"limit must be above 0; limit is {limit}", (x,), {"limit": limit})


def oai_oracle(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    pairs = x.double().reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    gate, up = pairs.unbind(-1)
    gate = torch.where(gate > limit, limit, gate)
    up = torch.where(up > limit, limit, torch.where(up < -limit, -limit, up))
    return (up + 1) * (gate / (1 + torch.exp(-alpha * gate)))


POINTWISE_SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1407]


def tensors() -> Iterator[tuple[str, Tensor]]:
    """What an op that takes any shape may be given."""
    draw = Draws(2, 2.0)
    for size in POINTWISE_SIZES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            yield f"3x{size} {dtype}", draw(3, size, dtype=dtype)
    yield "float64", draw(5, 33, dtype=torch.float64)
    for shape in [(), (0,), (9,), (0, 8), (2, 3, 7), (2, 1, 3, 7), (2, 0, 3, 7), (1, 16385)]:
        yield f"shape {shape}", draw(*shape)
    yield "transposed", draw(33, 3).t()
    yield "rows of a wider tensor", draw(4, 96)[:, 17:80]
    yield "every other row", draw(8, 33)[::2]
    yield "every other column", draw(4, 65)[:, ::2]
    yield "expanded", draw(1, 33).expand(4, 33)
    yield "offset by one element", draw(130)[1:].view(3, 43)
    for value in (0.0, -0.0, 1e4, -6e4, 1e-38, -1e-38, math.inf, -math.inf, math.nan):
        yield f"all {value}", torch.full((2, 65), value)
    half = torch.tensor([6e4, -6e4, 300.0, -300.0, 6e-8, math.inf, math.nan] * 10)
    yield "extremes of float16", half.half()
    yield "extremes of bfloat16", (half * 1e33).bfloat16()
    one_nan = draw(4, 65)
    one_nan[1, 5] = math.nan
    yield "one NaN", one_nan


def plain_samples() -> Iterator[Sample]:
    for name, x in tensors():
        yield Sample(name, (x,))


def plain_refusals() -> Iterator[Refusal]:
    message = r"x must be floating point; x is \[4, 8\] int64"
    yield Refusal(message, (torch.zeros(4, 8, dtype=torch.int64),))
    message = r"x must be floating point of 16 bits or more; x is \[2\] float8_e4m3fn"
    yield Refusal(message, (torch.zeros(2).to(torch.float8_e4m3fn),))


def relu_squared_oracle(x: Tensor) -> Tensor:
    return torch.where(x.double() < 0, 0.0, x.double() ** 2)


def quick_gelu_oracle(x: Tensor) -> Tensor:
    return x.double() / (1 + torch.exp(-1.702 * x.double()))


def mul_add_samples() -> Iterator[Sample]:
    draw = Draws(3)
    scales = [0.1, -2.5, 0.0, 1, 3.0]
    for i, (name, x) in enumerate(tensors()):
        y = draw(*x.shape, dtype=x.dtype)
        yield Sample(name, (x, y, scales[i % len(scales)]))
    x = draw(5, 33)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        yield Sample(f"x {dtype}", (x.to(dtype), x + 1, 0.3))
        yield Sample(f"y {dtype}", (x, (x + 1).to(dtype), 0.3))
    yield Sample("y transposed", (x, draw(33, 5).t(), 0.3))
    yield Sample("y expanded", (x, x[:1].expand(5, 33), 0.3))
    yield Sample("y of NaN", (x, x * math.nan, 0.0))
    yield Sample("x is y", (x, x, 2.0))
    large = torch.full((2, 65), 6e4).half()
    yield Sample("a product beyond float16", (large, -large, 1.5))
    for dtype in (torch.float16, torch.bfloat16):
        # Half way from 1 to the next number of the dtype, in which it would round to 1.
        scale = 1 + torch.finfo(dtype).eps / 2
        yield Sample(f"a scale that {dtype} lacks", (x.to(dtype), torch.zeros_like(x), scale))
    # What is left is below the last place of float32.
    rest = torch.full((5, 33), 1e-10 - 0.1, dtype=torch.float64)
    yield Sample("y float64 of the opposite", (torch.ones(5, 33), rest, 0.1))


def mul_add_refusals() -> Iterator[Refusal]:
    x = torch.zeros(4, 8)
    yield Refusal(r"x must be floating point; x is \[4, 8\] int64", (x.long(), x, 1.0))
    yield Refusal(r"y must be floating point; y is \[4, 8\] int64", (x, x.long(), 1.0))
    yield Refusal(r"y must have shape \[4, 8\]; y is \[8\] float32", (x, x[0], 1.0))
    yield Refusal(r"y must have shape \[4, 8\]; y is \[1, 8\] float32", (x, x[:1], 1.0))
    for scale in (math.nan, math.inf, -math.inf):
        yield Refusal(f"scale must be finite; scale is {scale}", (x, x, scale))
    yield Refusal("scale must be float, not None", (x, x, None))


def mul_add_oracle(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x.double() * scale + y.double()


RECORDS = [
    Record("silu_and_mul", samples, refusals, silu_oracle, rows=("x",)),
    Record("gelu_and_mul", samples, refusals, gelu_oracle, rows=("x",)),
    Record("gelu_tanh_and_mul", samples, refusals, gelu_tanh_oracle, rows=("x",)),
    Record("swigluoai_and_mul", oai_samples, oai_refusals, oai_oracle, rows=("x",)),
    Record("relu_squared", plain_samples, plain_refusals, relu_squared_oracle, rows=("x",)),
    Record("quick_gelu", plain_samples, plain_refusals, quick_gelu_oracle, rows=("x",)),
    Record("mul_add", mul_add_samples, mul_add_refusals, mul_add_oracle, rows=("x", "y")),
]
