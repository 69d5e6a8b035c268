"""Records of the normalisations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.draws import Draws

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 111, 127, 129, 255, 257, 1408, 3584]


def inputs() -> Iterator[tuple[str, Tensor]]:
    """What any norm may be given: sizes, dtypes, ranks, views and values."""
    draw = Draws()
    for size in SIZES:
        for dtype in (FLOAT, HALF, BF16):
            yield f"3x{size} {dtype}", draw(3, size, dtype=dtype)
    yield "float64", draw(5, 64, dtype=DOUBLE)
    yield "one long row", draw(1, 16384)
    for shape in [(0, 8), (4, 0), (1,), (8,), (65,), (2, 3, 8), (2, 0, 8), (2, 1, 3, 8), (257, 2)]:
        yield f"shape {shape}", draw(*shape)
    yield from views(draw)
    yield from values(draw)


def views(draw: Draws) -> Iterator[tuple[str, Tensor]]:
    yield "transposed", draw(64, 3).t()
    yield "transposed bfloat16", draw(64, 3, dtype=BF16).t()
    yield "tokens and heads swapped", draw(3, 5, 16).transpose(0, 1)
    yield "heads of packed projections", draw(4, 96).view(4, 6, 16)[:, 2:4]
    yield "rows of a wider tensor", draw(4, 96)[:, 16:80]
    yield "rows at an odd stride", draw(4, 67)[:, 1:66]
    yield "every other row", draw(8, 32)[::2]
    yield "every other column", draw(4, 64)[:, ::2]
    yield "expanded", draw(1, 32).expand(4, 32)
    yield "one value expanded", draw(1, 1).expand(4, 32)
    yield "offset by one element", draw(129)[1:].view(2, 64)


def values(draw: Draws) -> Iterator[tuple[str, Tensor]]:
    for value in (0.0, 1.0, 1e4, -6e4, 1e-38, math.inf, -math.inf, math.nan):
        yield f"all {value}", torch.full((2, 64), value)
    for dtype, large in ((HALF, 6e4), (BF16, 1e18), (FLOAT, 1e18), (DOUBLE, 1e100)):
        yield f"{large} {dtype}", draw(3, 64).sign().to(dtype) * large
    for dtype in (BF16, FLOAT):
        yield f"squares beyond float32, {dtype}", (draw(3, 64) * 1e20).to(dtype)
    yield "small against eps", draw(3, 64) * 1e-4
    yield "small float16", (draw(3, 64) * 1e-4).half()
    yield "far from zero", draw(3, 64, dtype=HALF, mean=100.0)
    for value in (math.nan, math.inf, -math.inf):
        one = draw(4, 64)
        one[1, 5] = value
        yield f"one {value}", one
    outlier = draw(4, 127, dtype=BF16)
    outlier[2, 126] = 3e4
    yield "an outlier", outlier


def weight_for(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    draw = Draws()
    return draw(x.shape[-1], dtype=dtype or x.dtype, mean=1.0)


def weighted() -> Iterator[Sample]:
    """Samples of ``(x, weight[, eps])``."""
    draw = Draws()
    for name, x in inputs():
        yield Sample(name, (x, weight_for(x)))
    for x_dtype, weight_dtype in [
        (BF16, FLOAT),
        (HALF, FLOAT),
        (BF16, HALF),
        (FLOAT, BF16),
        (FLOAT, DOUBLE),
    ]:
        x = draw(3, 65, dtype=x_dtype)
        yield Sample(f"{weight_dtype} weight, {x_dtype} x", (x, weight_for(x, weight_dtype)))
    x = draw(3, 32)
    yield Sample("stepped weight", (x, draw(64)[::2]))
    yield Sample("expanded weight", (x, draw(1).expand(32)))
    yield Sample("weight with NaN", (x, torch.where(torch.arange(32) == 7, math.nan, draw(32))))
    yield Sample("weight of zeros", (x, torch.zeros(32)))
    yield Sample("weight of -1", (x, -torch.ones(32)))
    for eps in (0.0, 1e-12, 1e-3, 10.0):
        yield Sample(f"eps {eps}", (x, weight_for(x), eps))
        yield Sample(f"eps {eps} by name", (x.bfloat16(), weight_for(x)), {"eps": eps})


def rms_samples() -> Iterator[Sample]:
    yield from weighted()
    # Between 1 and the next number of bfloat16; with it normed values lie near one, but not if
    # it is rounded to 1.
    between = torch.full((64,), 1 + 2.0**-8)
    x = torch.tensor([1.0, 7.0]).repeat(3, 32).to(BF16)
    yield Sample("a weight that bfloat16 lacks", (x, between))
    for name, x in list(inputs())[-40:]:
        yield Sample(f"no weight, {name}", (x, None))


def fused_samples() -> Iterator[Sample]:
    draw = Draws()
    for sample in weighted():
        x, *rest = sample.args
        residual = draw(*x.shape, dtype=x.dtype)
        yield Sample(sample.name, (x, residual, *rest), sample.kwargs)
    for x_dtype, residual_dtype in [
        (BF16, FLOAT),
        (HALF, FLOAT),
        (FLOAT, BF16),
        (BF16, HALF),
        (BF16, DOUBLE),
    ]:
        x, residual = draw(3, 65, dtype=x_dtype), draw(3, 65, dtype=residual_dtype)
        yield Sample(f"{residual_dtype} residual, {x_dtype} x", (x, residual, weight_for(x)))
    weight = draw(32)
    yield Sample("transposed residual", (draw(4, 32), draw(32, 4).t(), weight))
    yield Sample("both transposed", (draw(32, 4).t(), draw(32, 4).t(), weight))
    yield Sample("residual at another stride", (draw(4, 32), draw(4, 48)[:, 8:40], weight))
    large = torch.full((2, 32), 6e4, dtype=HALF)
    yield Sample("sum beyond float16", (large, large.clone(), weight.half()))
    yield Sample("sum of zero", (large, -large, weight.half()))
    # Half way from 1 to the next number of bfloat16, beside large sums that make up the norm.
    x, residual = (torch.tensor(p).repeat(3, 32).to(BF16) for p in ([2.0**-8, 0.0], [1.0, 8.0]))
    weight = torch.tensor([5.6875, 0.0]).repeat(32).to(BF16)
    yield Sample("sums that bfloat16 lacks", (x, residual, weight))


def layer_samples() -> Iterator[Sample]:
    draw = Draws()
    for sample in weighted():
        x, weight, *rest = sample.args
        yield Sample(
            sample.name, (x, weight, draw(*weight.shape, dtype=weight.dtype), *rest), sample.kwargs
        )
    for name, x in list(inputs())[-40:]:
        yield Sample(f"no weight or bias, {name}", (x, None, None))
    x, vector = draw(3, 65, dtype=BF16), draw(65)
    yield Sample("no bias", (x, vector, None))
    yield Sample("no weight", (x, None, vector))
    yield Sample("dtypes of their own", (x, vector.half(), vector.double()))
    yield Sample("rows far from zero", (draw(3, 257, mean=64.0).half(), None, None))
    yield Sample("constant row", (torch.full((2, 64), 3.0), draw(64), draw(64)))


def weight_refusals(*between: Tensor) -> Iterator[Refusal]:
    """Refusals of ``(x, *between, weight, eps)``, whose x is [4, 8]."""
    x, weight = torch.zeros(4, 8), torch.zeros(8)

    def refuse(message: str, x: Tensor = x, weight: Tensor = weight, **kwargs: float) -> Refusal:
        return Refusal(message, (x, *between, weight), kwargs)

    yield refuse(r"x must be floating point; x is \[4, 8\] int64", x=x.long())
    yield refuse(
        r"x must be floating point of 16 bits or more; x is \[4, 8\] float8_e4m3fn",
        x=x.to(torch.float8_e4m3fn),
    )
    yield refuse(r"x must have at least one dimension; x is \[\] float32", x=torch.zeros(()))
    yield refuse(r"weight must be floating point; weight is \[8\] int32", weight=weight.int())
    yield refuse(r"weight must have shape \[8\]; weight is \[7\] float32", weight=weight[:7])
    yield refuse(r"weight must have shape \[8\]; weight is \[1\] float32", weight=weight[:1])
    yield refuse(r"weight must have shape \[8\]; weight is \[1, 8\] float32", weight=weight[None])
    yield refuse(r"eps must be finite and not negative; eps is -1e-06", eps=-1e-6)
    yield refuse(r"eps must be finite and not negative; eps is inf", eps=math.inf)
    yield refuse(r"eps must be finite and not negative; eps is nan", eps=math.nan)


def fused_refusals() -> Iterator[Refusal]:
    x, weight = torch.zeros(4, 8), torch.zeros(8)
    yield from weight_refusals(x)
    message = r"residual must have shape \[4, 8\]; residual is "
    yield Refusal(message + r"\[4, 7\] float32", (x, x[:, :7], weight))
    yield Refusal(message + r"\[1, 8\] float32", (x, x[:1], weight))
    yield Refusal(message + r"\[32\] float32", (x, x.flatten(), weight))
    yield Refusal(
        r"residual must be floating point; residual is \[4, 8\] int64", (x, x.long(), weight)
    )


def layer_refusals() -> Iterator[Refusal]:
    x, weight = torch.zeros(4, 8), torch.zeros(8)
    for refusal in weight_refusals():
        yield Refusal(refusal.message, (*refusal.args, None), refusal.kwargs)
    yield Refusal(r"bias must have shape \[8\]; bias is \[9\] float32", (x, weight, torch.zeros(9)))
    yield Refusal(r"bias must have shape \[8\]; bias is \[\] float32", (x, None, torch.zeros(())))
    yield Refusal(r"bias must be floating point; bias is \[8\] bool", (x, weight, weight.bool()))


def beyond(root: Tensor, exact: bool) -> Tensor:
    """Roots whose squares float32 cannot hold count as infinite, unless all is ``exact``."""
    return root if exact else root.masked_fill(root > torch.finfo(FLOAT).max ** 0.5, math.inf)


def rms_oracle(
    x: Tensor, weight: Tensor | None, eps: float = 1e-6, exact: bool | None = None
) -> Tensor:
    exact = x.dtype == DOUBLE if exact is None else exact
    x = x.double()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if x.shape[-1]:
        length = beyond(length / math.sqrt(x.shape[-1]), exact)
    normed = x / torch.hypot(length, torch.tensor(math.sqrt(eps), dtype=DOUBLE))
    return normed if weight is None else torch.einsum("...d,d->...d", normed, weight.double())


def fused_oracle(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    total = torch.stack((x.double(), residual.double())).sum(0)
    return rms_oracle(total, weight, eps, DOUBLE in (x.dtype, residual.dtype)), total


def gemma_oracle(x: Tensor, weight: Tensor, eps: float = 1e-6, exact: bool | None = None) -> Tensor:
    normed = rms_oracle(x, None, eps, exact)
    return torch.addcmul(normed, normed, weight.double())


def gemma_fused_oracle(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    _, total = fused_oracle(x, residual, weight)
    return gemma_oracle(total, weight, eps, DOUBLE in (x.dtype, residual.dtype)), total


def layer_oracle(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    count = max(x.shape[-1], 1)
    centred = x.double() - torch.einsum("...d->...", x.double())[..., None] / count
    variance = torch.einsum("...d,...d->...", centred, centred)[..., None] / count
    out = centred / beyond(torch.sqrt(variance + eps), x.dtype == DOUBLE)
    if weight is not None:
        out = torch.einsum("...d,d->...d", out, weight.double())
    return out if bias is None else out + bias.double()


RECORDS = [
    Record("rms_norm", rms_samples, weight_refusals, rms_oracle, rows=("x",)),
    Record(
        "fused_add_rms_norm", fused_samples, fused_refusals, fused_oracle, rows=("x", "residual")
    ),
    Record("gemma_rms_norm", weighted, weight_refusals, gemma_oracle, rows=("x",)),
    Record(
        "gemma_fused_add_rms_norm",
        fused_samples,
        fused_refusals,
        gemma_fused_oracle,
        rows=("x", "residual"),
    ),
    Record("layer_norm", layer_samples, layer_refusals, layer_oracle, rows=("x",)),
]
