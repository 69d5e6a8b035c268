"""Record of the experts of a mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.record import Record, Refusal, Sample
from hal.testing.records.factors import BF16, E4M3, E5M2, F16, F32, Maker, flat_rows, numbers
from hal.testing.records.ties import odd_ties

# Bits of the mantissa, exponent of the smallest normal number, largest number.
FORMATS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57344.0)}


class Experts(Maker):
    """Draws the arguments of a mixture."""

    def routing(self, *rows: int, experts: int, topk: int) -> tuple[Tensor, Tensor]:
        ids = self.integers(0, experts, *rows, topk)
        return torch.rand((*rows, topk), generator=self.generator), ids.int()

    def mixture(
        self,
        *rows: int,
        hidden: int = 32,
        inter: int = 24,
        experts: int = 4,
        topk: int = 2,
        dtype: torch.dtype = F32,
    ) -> list[Tensor]:
        w13 = self(experts, 2 * inter, hidden) / max(hidden, 1) ** 0.5
        w2 = self(experts, hidden, inter) / max(inter, 1) ** 0.5
        x = self(*rows, hidden, dtype=dtype)
        routing = self.routing(*rows, experts=experts, topk=topk)
        return [x, w13.to(dtype), w2.to(dtype), *routing]

    def eight(
        self, *rows: int, code: torch.dtype = E4M3, **sizes: Any
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """A mixture with 8-bit weights, and their scales."""
        args = self.mixture(*rows, **sizes)
        scales: dict[str, Any] = {}
        for i, name in ((1, "w13_scale"), (2, "w2_scale")):
            experts, n, k = args[i].shape
            blocks = (experts, math.ceil(n / 128), math.ceil(k / 128))
            scales[name] = self.scale(*blocks) * 4 / max(k, 1) ** 0.5
            args[i] = self.codes(experts, n, k, dtype=code)
        return args, scales


def samples() -> Iterator[Sample]:
    make = Experts(11)
    sizes = [(1, 1), (2, 3), (7, 2), (8, 16), (15, 31), (32, 33), (64, 17), (129, 63), (257, 128)]
    for i, (hidden, inter) in enumerate(sizes):
        for dtype in (F32, F16, BF16):
            args = make.mixture(1 + i, hidden=hidden, inter=inter, dtype=dtype)
            yield Sample(f"{hidden} by {inter} {dtype}", tuple(args))
    for activation in ("silu", "gelu", "gelu_tanh"):
        for dtype in (BF16, torch.float64):
            args = make.mixture(5, dtype=dtype)
            yield Sample(f"{activation} {dtype}", tuple(args), {"activation": activation})
    for rows in [(), (0,), (1,), (2, 3), (2, 1, 3)]:
        yield Sample(f"rows {rows}", tuple(make.mixture(*rows)))
    for experts, topk in [(1, 1), (3, 1), (8, 8), (16, 4), (2, 0)]:
        args = make.mixture(6, experts=experts, topk=topk)
        yield Sample(f"{topk} of {experts} experts", tuple(args))
    for dtype in (F16, BF16):
        # A sum that is rounded at each expert shows with many of them.
        args = make.mixture(6, experts=16, topk=16, dtype=dtype)
        yield Sample(f"16 of 16 experts {dtype}", tuple(args))
    yield Sample("nothing inside", tuple(make.mixture(3, inter=0)))
    yield Sample("nothing hidden", tuple(make.mixture(3, hidden=0)))
    yield from routings(make)
    yield from layouts(make)
    yield from values(make)
    yield from eight_bit(make)
    yield from exactly(make)


def routings(make: Experts) -> Iterator[Sample]:
    x, w13, w2, weights, _ = make.mixture(4, topk=3)
    ids = [[0, 1, 2], [-1, 3, 4], [2, 2, 2], [-1, -(2**31), 2**31 - 1]]
    for dtype in (torch.int32, torch.int64):
        chosen = torch.tensor(ids, dtype=dtype)
        yield Sample(f"ids out of range {dtype}", (x, w13, w2, weights, chosen))
    for value in (0.0, -1.0, math.inf, math.nan):
        some = torch.where(torch.arange(3) == 1, value, weights)
        yield Sample(f"one weight {value}", (x, w13, w2, some, chosen))
    for dtype in (BF16, torch.float64):
        yield Sample(f"weights {dtype}", (x, w13, w2, weights.to(dtype), chosen))


def layouts(make: Experts) -> Iterator[Sample]:
    x, w13, w2, weights, ids = make.mixture(4)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, w13, w2)]
    yield Sample("column by column", (*turned, weights.t().contiguous().t(), ids))
    wide = make(4, 70)[:, 3:35]
    yield Sample("rows of a wider tensor", (wide, w13, w2, weights, ids))
    yield Sample("every other row", (make(8, 32)[::2], w13, w2, weights, ids))
    one = (x[:1].expand(4, 32), w13[:1].expand(4, 48, 32), w2[:1].expand(4, 32, 24))
    yield Sample("expanded", (*one, weights[:, :1].expand(4, 2), ids))
    swapped = make.mixture(2, 3)
    yield Sample("leading dimensions swapped", tuple(
        t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() == 3 and i not in (1, 2) else t
        for i, t in enumerate(swapped)
    ))  # fmt: skip


def values(make: Experts) -> Iterator[Sample]:
    args = make.mixture(4)
    for value in (0.0, 1e-38, 1e4, math.nan):
        x = torch.where(torch.arange(4)[:, None] == 1, value, args[0])
        yield Sample(f"one token {value}", (x, *args[1:]))
    for i, name in ((0, "x"), (1, "w13"), (2, "w2")):
        broken = list(args)
        broken[i] = args[i].clone()
        broken[i].view(-1)[5] = math.nan
        yield Sample(f"one NaN in {name}", tuple(broken))


def eight_bit(make: Experts) -> Iterator[Sample]:
    for hidden, inter in [(1, 1), (7, 5), (64, 32), (128, 64), (129, 65), (200, 130), (256, 128)]:
        args, scales = make.eight(5, hidden=hidden, inter=inter, dtype=BF16)
        yield Sample(f"8 bits, {hidden} by {inter}", tuple(args), scales)
    for dtype, code in [(F16, E4M3), (F32, E4M3), (BF16, E5M2), (F32, E5M2)]:
        # No h of these lies so near to the midpoint of two codes that float32 may take either;
        # one code in the next one is 2e-3 of the result, which only bfloat16 forgives.
        args, scales = make.eight(6, code=code, dtype=dtype, hidden=66, inter=40)
        yield Sample(f"{dtype} by {code}", tuple(args), scales)
    for rows in [(), (0,), (2, 3)]:
        args, scales = make.eight(*rows, dtype=BF16)
        yield Sample(f"8 bits, rows {rows}", tuple(args), scales)
    args, scales = make.eight(4, hidden=130, inter=66, dtype=BF16)
    for value in (0.0, 1e-12, 1e4, math.inf, math.nan):
        x = torch.where(torch.arange(4)[:, None] == 1, torch.tensor(value).to(BF16), args[0])
        yield Sample(f"8 bits, one token {value}", (x, *args[1:]), scales)
    gelu = scales | {"activation": "gelu"}
    yield Sample("8 bits, gelu", tuple(args), gelu)
    turned = {n: s.transpose(1, 2).contiguous().transpose(1, 2) for n, s in scales.items()}
    yield Sample("8 bits, scales column by column", tuple(args), turned)


def exactly(make: Experts) -> Iterator[Sample]:
    """What a rounding in between would show."""
    for dtype in (F16, BF16):
        # Beside the first result each of the others is half of the dtype's last place.
        small = torch.full((3, 64), torch.finfo(dtype).eps / 2)
        weights, ids = torch.cat((torch.ones(3, 1), small), dim=1), torch.arange(65).repeat(3, 1)
        ones = [torch.ones(shape, dtype=dtype) for shape in [(3, 1), (65, 2, 1), (65, 1, 1)]]
        yield Sample(f"many small results {dtype}", (*ones, weights, ids), {})
    for code in (E4M3, E5M2):
        # Quotients halfway between two codes, which a product with the inverse misses.
        args, scales = make.eight(50, hidden=128, inter=2, code=code, dtype=F32)
        args[0] = odd_ties(code)[:50]
        yield Sample(f"ties in {code}", tuple(args), scales)
    x, w13, w2, weights, ids = make.mixture(4, dtype=torch.float64)
    yield Sample("float64 by float32 weights", (x, w13, w2, weights.float(), ids))
    yield Sample("float16 weights", (x, w13, w2, weights.half(), ids))


def refusals() -> Iterator[Refusal]:
    make = Experts(0)
    x, w13, w2, weights, ids = make.mixture(4)
    message = r"x must be floating point of 16 bits or more; x is .* float8"
    yield Refusal(message, (x.to(E4M3), w13, w2, weights, ids))
    message = r"w13 must be float32; w13 is \[4, 48, 32\] bfloat16"
    yield Refusal(message, (x, w13.to(BF16), w2, weights, ids))
    message = r"w2 must be float32; w2 is .* bfloat16"
    yield Refusal(message, (x, w13, w2.to(BF16), weights, ids))
    message = r"w13 must be \[experts, 2 \* inter, hidden\]; w13 is \[4, 47, 32\]"
    yield Refusal(message, (x, w13[:, 1:], w2, weights, ids))
    yield Refusal(r"w13 must be .*; w13 is \[48, 32\]", (x, w13[0], w2, weights, ids))
    yield Refusal(r"x must be \[\.\.\., hidden\]; x is \[\]", (x[0, 0], w13, w2, weights, ids))
    message = r"x must have as many columns as w13; x is \[4, 31\] float32, w13 is \[4, 48, 32\]"
    yield Refusal(message, (x[:, 1:], w13, w2, weights, ids))
    message = r"w2 must have shape \[4, 32, 24\]; w2 is \[3, 32, 24\] float32"
    yield Refusal(message, (x, w13, w2[1:], weights, ids))
    message = r"topk_ids must be int32 or int64; topk_ids is \[4, 2\] float32"
    yield Refusal(message, (x, w13, w2, weights, weights))
    message = r"topk_weights must be floating point; topk_weights is \[4, 2\] int32"
    yield Refusal(message, (x, w13, w2, ids, ids))
    message = r"topk_weights must have shape \[4, 2\]; topk_weights is \[4, 1\] float32"
    yield Refusal(message, (x, w13, w2, weights[:, :1], ids))
    message = r"topk_ids must be \[4, 'topk'\]; topk_ids is \[3, 2\] int32"
    yield Refusal(message, (x, w13, w2, weights[1:], ids[1:]))
    yield Refusal("topk_ids must be .*; topk_ids is", (x, w13, w2, weights[0, 0], ids[0, 0]))
    message = "activation must be 'silu', 'gelu' or 'gelu_tanh'; activation is 'relu'"
    yield Refusal(message, (x, w13, w2, weights, ids), {"activation": "relu"})
    message = r"w13_scale goes with an 8-bit w13; w13 is \[4, 48, 32\] float32"
    yield Refusal(message, (x, w13, w2, weights, ids), {"w13_scale": torch.ones(4, 1, 1)})
    args, scales = make.eight(4)
    message = r"an 8-bit w2 needs w2_scale; w2 is \[4, 32, 24\] float8_e4m3fn"
    yield Refusal(message, tuple(args), scales | {"w2_scale": None})
    message = r"w13_scale must have shape \[4, 1, 1\]; w13_scale is \[4\] float32"
    yield Refusal(message, tuple(args), scales | {"w13_scale": torch.ones(4)})
    message = "w2_scale must be float32; w2_scale is .* bfloat16"
    yield Refusal(message, tuple(args), scales | {"w2_scale": torch.ones(4, 1, 1).to(BF16)})
    message = "w2 must be float8_e4m3fn; w2 is .* float32"
    yield Refusal(message, (args[0], args[1], w2, *args[3:]), scales)
    message = "x must have 16 or 32 bits with 8-bit weights; x is .* float64"
    yield Refusal(message, (args[0].double(), *args[1:]), scales)


def coded(vector: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The values of a vector's codes, each group of 128 with the scale of its largest."""
    bits, smallest, limit = FORMATS[dtype]
    result = np.zeros(len(vector))
    for start in range(0, len(vector), 128):
        group = vector[start : start + 128].astype(np.float32)
        scale = np.maximum(np.abs(group).max(), np.float32(1e-10)) / np.float32(limit)
        with np.errstate(invalid="ignore"):
            quotient = np.clip(group / scale, -limit, limit).astype(np.float64)
        exponent = np.maximum(np.frexp(quotient)[1] - 1, smallest)
        step = 2.0 ** (exponent - bits)
        with np.errstate(invalid="ignore"):
            result[start : start + 128] = np.rint(quotient / step) * step * np.float64(scale)
    return result


def linear(vector: np.ndarray, weight: Tensor, scale: Tensor | None) -> np.ndarray:
    matrix = numbers(weight).copy()
    if scale is not None:
        vector = coded(vector, weight.dtype)
        for i, row in enumerate(numbers(scale)):
            for j, factor in enumerate(row):
                matrix[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128] *= factor
    return (matrix * vector).sum(axis=1)


def activated(gate: float, activation: str) -> float:
    if activation == "silu":
        return 0.0 if gate < -700 else gate / (1 + math.exp(-gate))
    if activation == "gelu":
        return gate * 0.5 * math.erfc(-gate / math.sqrt(2))
    return gate / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))


def oracle(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    w13_scale: Any = None,
    w2_scale: Any = None,
    activation: str = "silu",
) -> Tensor:
    rows = flat_rows(x)
    result = np.zeros(rows.shape)
    weights, ids = flat_rows(topk_weights), topk_ids.reshape(len(rows), topk_ids.shape[-1])
    for token, chosen in enumerate(ids.tolist()):
        for weight, e in zip(weights[token], chosen, strict=True):
            if not 0 <= e < len(w13):
                continue
            scales = [None if s is None else s[e] for s in (w13_scale, w2_scale)]
            inner = linear(rows[token], w13[e], scales[0])
            half = len(inner) // 2
            gates = np.array([activated(gate, activation) for gate in inner[:half]])
            result[token] += weight * linear(gates * inner[half:], w2[e], scales[1])
    return torch.from_numpy(result).reshape(x.shape)


RECORDS = [
    Record(
        "fused_experts",
        samples,
        refusals,
        oracle,
        rows=("x", "topk_weights", "topk_ids"),
        far=("x", "w13", "w2"),
    )
]
