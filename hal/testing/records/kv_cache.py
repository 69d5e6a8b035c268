"""Records of the ops that write a paged key-value cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hal.testing.parts import cut, spans
from hal.testing.record import GATES, Part, Record, Refusal, Sample
from hal.testing.records.draws import Draws
from hal.testing.records.ties import odd_ties

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALVES = (torch.float16, torch.bfloat16)
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65, 127, 128, 129, 192, 256]
TOKENS = [0, 1, 2, 3, 7, 8, 16, 17, 31, 33, 63, 65]


class Maker(Draws):
    """Draws the arguments of a store."""

    def store(
        self,
        tokens: int = 9,
        blocks: tuple[int, int] = (6, 4),
        heads: int = 2,
        head_dim: int = 16,
        value_head_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None,
        index: torch.dtype = torch.int64,
    ) -> list[Any]:
        """Arguments that put tokens into random slots, slot 0 among them, and skip every third."""
        sizes = head_dim, head_dim if value_head_dim is None else value_head_dim
        rows = [self(tokens, heads, size, dtype=dtype) for size in sizes]
        caches = [self(*blocks, heads, size).to(cache_dtype or dtype) for size in sizes]
        slots = torch.randperm(blocks[0] * blocks[1], generator=self.generator)[:tokens].to(index)
        slots = torch.where(slots == slots[:1], 0, torch.where(slots == 0, slots[:1], slots))
        slots[1::3] = -1
        return [*rows, *caches, slots]


def layout_samples(maker: Maker) -> Iterator[Sample]:
    k, v, k_cache, v_cache, slots = maker.store()
    halves = torch.stack((k_cache, v_cache))
    yield Sample("two halves of one tensor", (k, v, halves[0], halves[1], slots))
    beside = torch.cat((k_cache, v_cache), dim=-1)
    yield Sample("halves of each row", (k, v, beside[..., :16], beside[..., 16:], slots))
    within = torch.stack((k_cache, v_cache), dim=1)
    yield Sample("halves of each block", (k, v, within[:, 0], within[:, 1], slots))
    swapped = [c.transpose(1, 2).contiguous().transpose(1, 2) for c in (k_cache, v_cache)]
    yield Sample("heads before the block size", (k, v, *swapped, slots))
    wider = torch.cat((k, v), dim=-1)
    args = (wider[..., :16], wider[..., 16:], k_cache, v_cache, slots)
    yield Sample("rows of a wider tensor", args)
    args = (k[:1].expand(k.shape), v[:1].expand(v.shape), k_cache, v_cache, slots)
    yield Sample("expanded rows", args)
    args = (k, v, k_cache, v_cache, torch.stack((slots, slots), dim=-1)[:, 0])
    yield Sample("every other slot", args)


def slot_samples(maker: Maker) -> Iterator[Sample]:
    k, v, k_cache, v_cache, slots = maker.store()
    mixed = torch.tensor([-1, 5, -1, 0, -1, -1, 23, 2, -1])
    for name, given in [
        ("slot 0 last", slots.flip(0)),
        ("slot 0 amid skipped ones", mixed),
        ("slot 0 amid skipped ones, int32", mixed.int()),
        ("only slot 0", torch.where(mixed == 0, 0, -1)),
        ("nothing but the last slot", torch.where(mixed == 23, 23, -1)),
        ("all skipped", torch.full_like(slots, -1)),
        ("none skipped", torch.arange(9)),
        ("other negative slots", torch.where(mixed < 0, -(2**31) - mixed, mixed)),
    ]:
        yield Sample(name, (k, v, k_cache, v_cache, given))
    args = (k, v, k_cache[:0], v_cache[:0], torch.full_like(slots, -1))
    yield Sample("a cache without blocks", args)
    for name, dtype in [("float32", torch.float32), ("e4m3fn", E4M3)]:
        args = maker.store(cache_dtype=dtype)
        args[4] = torch.full((9,), -1, dtype=torch.int32)
        yield Sample(f"all skipped, {name}", tuple(args))


def eight_bit_samples(maker: Maker) -> Iterator[Sample]:
    for cache_dtype in (E4M3, E5M2):
        for dtype in (torch.float32, torch.float64, *HALVES):
            args = tuple(maker.store(dtype=dtype, cache_dtype=cache_dtype))
            yield Sample(f"{dtype} in {cache_dtype}", args)
            yield Sample(
                f"{dtype} in {cache_dtype}, numbers", args, {"k_scale": 0.25, "v_scale": 3.7}
            )
            one = {"k_scale": torch.tensor(0.3), "v_scale": torch.tensor([[2.5]])}
            yield Sample(f"{dtype} in {cache_dtype}, one element", args, one)
            heads = {"k_scale": torch.tensor([0.3, 1.5]), "v_scale": torch.tensor([2.5, 0.7])}
            yield Sample(f"{dtype} in {cache_dtype}, for each head", args, heads)
        k, v, *rest = maker.store(cache_dtype=cache_dtype)
        for value in (0.0, 1e4, -6e4, 3e38, 1e-38, math.inf, -math.inf, math.nan):
            yield Sample(f"{value} in {cache_dtype}", (k * 0 + value, v * 0 - value, *rest))
        ties = torch.arange(k.numel()).view(k.shape) / 16 - 9
        yield Sample(f"ties in {cache_dtype}", (ties, ties * 2**-9, *rest))
        odd = odd_ties(cache_dtype)[24:88:7].view(1, 10, 128)
        scales = {"k_scale": odd[0, :, 0].double(), "v_scale": odd[0, :, 0]}
        scales = {name: s / torch.finfo(cache_dtype).max for name, s in scales.items()}
        args = maker.store(1, heads=10, head_dim=128, cache_dtype=cache_dtype)
        yield Sample(f"ties of odd scales in {cache_dtype}", (odd, -odd, *args[2:]), scales)
        scales = {"k_scale": torch.tensor([0.25, 2.0]), "v_scale": torch.tensor([1.5, 0.5])}
        for dtype in HALVES:
            given = {name: s.to(dtype) for name, s in scales.items()}
            yield Sample(f"{dtype} scales in {cache_dtype}", (k, v, *rest), given)
        yield Sample(f"k_scale alone in {cache_dtype}", (k, v, *rest), {"k_scale": 0.5})
        yield Sample(f"v_scale alone in {cache_dtype}", (k, v, *rest), {"v_scale": 0.5})
        for limit in (448.0, 464.0, 480.0, 57344.0, 61440.0, 65536.0):
            near = limit + torch.linspace(-limit / 16, limit / 16, 32).expand(
                k[:, :, 0].numel(), 32
            )
            near = near[:, :16].reshape(k.shape)
            yield Sample(f"around {limit} in {cache_dtype}", (near, -near, *rest))


def samples() -> Iterator[Sample]:
    maker = Maker()
    for size in SIZES:
        for dtype in (torch.float32, *HALVES):
            yield Sample(f"head_dim {size} {dtype}", tuple(maker.store(head_dim=size, dtype=dtype)))
    for tokens in TOKENS:
        args = maker.store(tokens, blocks=(5, 16), index=torch.int32)
        yield Sample(f"{tokens} tokens", tuple(args))
    for blocks in [(24, 1), (12, 2), (8, 3), (1, 33), (2, 128)]:
        yield Sample(f"blocks {blocks}", tuple(maker.store(blocks=blocks)))
    for heads in (0, 1, 3, 8):
        yield Sample(f"{heads} heads", tuple(maker.store(heads=heads)))
    yield Sample("another size of values", tuple(maker.store(head_dim=24, value_head_dim=16)))
    yield Sample("values of size 0", tuple(maker.store(value_head_dim=0)))
    yield Sample("float64", tuple(maker.store(dtype=torch.float64)))
    yield from layout_samples(maker)
    yield from slot_samples(maker)
    yield from eight_bit_samples(maker)
    k, v, *rest = maker.store()
    k[0, 1, 2], v[3] = math.nan, math.inf
    yield Sample("NaN and inf kept", (k, v, *rest))


def refusals() -> Iterator[Refusal]:
    k, v, k_cache, v_cache, slots = Maker().store()
    message = r"k must be floating point; k is \[9, 2, 16\] int8"
    yield Refusal(message, (k.to(torch.int8), v, k_cache, v_cache, slots))
    message = r"v must be float32; v is \[9, 2, 16\] float16"
    yield Refusal(message, (k, v.half(), k_cache, v_cache, slots))
    message = r"k must be \[tokens, kv_heads, head_dim\]; k is \[9, 32\] float32"
    yield Refusal(message, (k.flatten(1), v, k_cache, v_cache, slots))
    message = (
        r"v_cache must be \[blocks, block_size, kv_heads, head_dim\]; v_cache is \[24, 2, 16\]"
    )
    yield Refusal(message, (k, v, k_cache, v_cache.flatten(0, 1), slots))
    message = r"k_cache must be float32 or float8_e4m3fn or float8_e5m2; k_cache is .* float16"
    yield Refusal(message, (k, v, k_cache.half(), v_cache.half(), slots))
    message = r"v_cache must have the dtype, blocks, block size and heads of k_cache; v_cache is "
    yield Refusal(message, (k, v, k_cache, v_cache[:, 1:], slots))
    yield Refusal(message, (k, v, k_cache.to(E4M3), v_cache.to(E5M2), slots))
    message = r"k_cache, its last two; k is \[9, 2, 16\] float32, k_cache is .* 2, 8\] float32"
    yield Refusal(message, (k, v, k_cache[..., :8], v_cache, slots))
    message = r"v must have shape \[9, 2, 16\]; v is \[8, 2, 16\] float32"
    yield Refusal(message, (k, v[1:], k_cache, v_cache, slots))
    message = r"slot_mapping must have shape \[9\]; slot_mapping is \[8\] int64"
    yield Refusal(message, (k, v, k_cache, v_cache, slots[1:]))
    message = r"slot_mapping must be int32 or int64; slot_mapping is \[9\] float32"
    yield Refusal(message, (k, v, k_cache, v_cache, slots.float()))
    message = r"v_scale goes with an 8-bit cache; k_cache is \[6, 4, 2, 16\] float32"
    yield Refusal(message, (k, v, k_cache, v_cache, slots), {"v_scale": torch.ones(2)})
    args = (k, v, k_cache.to(E4M3), v_cache.to(E4M3), slots)
    for scale in (0.0, -1.0, math.inf, math.nan):
        message = rf"k_scale must be positive and finite; k_scale is {scale}"
        yield Refusal(message, args, {"k_scale": scale})
    message = (
        r"v_scale must have one element or one for each of 2 kv_heads; v_scale is \[3\] float32"
    )
    yield Refusal(message, args, {"v_scale": torch.ones(3)})
    message = r"k_scale must be floating point; k_scale is \[2\] int64"
    yield Refusal(message, args, {"k_scale": torch.ones(2, dtype=torch.int64)})


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest numbers of an 8-bit float, ties to even, by its step at the size of ``x``."""
    mantissa, smallest, limit = (3, -6, 448.0) if dtype == E4M3 else (2, -14, 57344.0)
    x = np.clip(x, -limit, limit)
    exponent = np.frexp(x)[1] - 1
    step = np.exp2(np.maximum(exponent, smallest) - float(mantissa))
    return np.rint(x / step) * step


def factors_of(scale: Any) -> np.ndarray:
    """One factor, or one for each head, of a cache."""
    scale = scale.double() if isinstance(scale, Tensor) else scale
    return np.ones(1) if scale is None else np.asarray(scale, dtype=np.float64).reshape(-1)


def stored(rows: Tensor, cache: Tensor, slots: list[int], scale: Any) -> Tensor:
    new, result = rows.double().numpy(), cache.double().numpy().copy()
    factor = factors_of(scale)
    with np.errstate(all="ignore"):
        for row, slot in zip(new, slots, strict=True):
            if slot >= 0:
                value = row if cache.dtype == rows.dtype else row / factor[:, None]
                value = value if cache.dtype == rows.dtype else rounded(value, cache.dtype)
                result[divmod(slot, cache.shape[1])] = value
    return torch.from_numpy(result)


def oracle(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Any = None,
    v_scale: Any = None,
) -> tuple[Tensor, Tensor]:
    slots = slot_mapping.tolist()
    return stored(k, k_cache, slots, k_scale), stored(v, v_cache, slots, v_scale)


# A store copies bits or rounds once, and the oracle rounds to the same numbers: nothing may differ.
EXACT = {**dict.fromkeys(GATES, 0.0), E4M3: 0.0, E5M2: 0.0}


def block_parts(given: dict[str, Any]) -> Iterator[Part]:
    """The results are caches, so rows are their blocks; what goes to other blocks is skipped."""
    slots, size = given["slot_mapping"], given["k_cache"].shape[1]
    for rows in spans(len(given["k_cache"])):
        first = rows.start * size
        inside = (slots >= first) & (slots < rows.stop * size)
        part = cut(given, ["k_cache", "v_cache"], rows)
        part["slot_mapping"] = torch.where(inside, slots - first, -1)
        yield Part(part, (rows, rows))


RECORDS = [
    Record(
        "store_kv_cache_",
        samples,
        refusals,
        oracle,
        gates=EXACT,
        parts=block_parts,
        far=("k", "v", "k_cache", "v_cache"),
    )
]
