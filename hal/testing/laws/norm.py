"""Laws of the normalisations and of the rotary embeddings."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import hal
from hal.testing.laws.law import COLUMNS, ROWS, SEEDS, Law, Values, equal, near

__all__ = ["LAWS"]

SHAPE: dict[str, Any] = {"rows": ROWS, "columns": COLUMNS, "seed": SEEDS}
# A mean over a hundred columns, its root, and the products with it and with a weight.
NORM = 16


def rms_norm_forgets_the_scale(rows: int, columns: int, factor: float, seed: int) -> None:
    values = Values(seed)
    x, weight = values(rows, columns, positive=True), values(columns)
    near(hal.ops.rms_norm(x * factor, weight, 0.0), hal.ops.rms_norm(x, weight, 0.0), NORM)


def rms_norm_is_odd(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    x, weight = values(rows, columns), values(columns)
    equal(hal.ops.rms_norm(-x, weight), -hal.ops.rms_norm(x, weight))


def rms_norm_of_columns_in_another_order(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    x, weight, order = values(rows, columns), values(columns), values.order(columns)
    want = hal.ops.rms_norm(x, weight)[:, order]
    near(hal.ops.rms_norm(x[:, order], weight[order]), want, NORM)


def rms_norm_has_unit_mean_square(rows: int, columns: int, seed: int) -> None:
    x = Values(seed)(rows, columns, positive=True)
    square = hal.ops.rms_norm(x, None, 0.0).double().square().mean(-1)
    near(square.float(), torch.ones_like(square, dtype=torch.float32), NORM)


def fused_add_is_add_and_norm(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    x, residual, weight = values(rows, columns), values(rows, columns), values(columns)
    normed, total = hal.ops.fused_add_rms_norm(x, residual, weight)
    equal(total, x + residual)
    near(normed, hal.ops.rms_norm(x + residual, weight), NORM)


def gemma_counts_from_one(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    x, weight = values(rows, columns), values(columns)
    near(hal.ops.gemma_rms_norm(x, weight), hal.ops.rms_norm(x, 1 + weight), NORM)


def gemma_fused_add_is_add_and_norm(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    x, residual, weight = values(rows, columns), values(rows, columns), values(columns)
    normed, total = hal.ops.gemma_fused_add_rms_norm(x, residual, weight)
    equal(total, x + residual)
    near(normed, hal.ops.gemma_rms_norm(x + residual, weight), NORM)


def layer_norm_forgets_the_mean(rows: int, columns: int, shift: int, seed: int) -> None:
    values = Values(seed)
    x, weight, bias = values.coarse(rows, columns), values(columns), values(columns)
    got = hal.ops.layer_norm(x + shift, weight, bias)
    # The mean is rounded to half a unit of ``shift``, up to 32 values of x; weights are up to 2.
    near(got, hal.ops.layer_norm(x, weight, bias), NORM + 4 * abs(shift), like=got.abs() + 2)


def layer_norm_of_no_mean_is_rms_norm(rows: int, columns: int, seed: int) -> None:
    values = Values(seed)
    half, weight = values(rows, columns, positive=True), values(2 * columns)
    x = torch.cat((half, -half), dim=-1)
    near(hal.ops.layer_norm(x, weight, None), hal.ops.rms_norm(x, weight, 1e-5), NORM)


def table(values: Values, rows: int, width: int) -> Tensor:
    """Cosines and sines of some angles."""
    t = values(rows, width // 2).double()
    return (torch.cat((1 - t * t, 2 * t), dim=1) / (1 + t * t).repeat(1, 2)).float()


def heads(values: Values, tokens: int, pairs: int, rest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in a cache of 8, a query of two heads, and the cache."""
    positions = values.integers(tokens, low=0, high=8)
    return positions, values(tokens, 2, 2 * pairs + rest), table(values, 8, 2 * pairs)


def rotation_and_back(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    positions, query, cache = heads(Values(seed), tokens, pairs, rest)
    back = torch.cat((cache[:, :pairs], -cache[:, pairs:]), dim=1)
    there, _ = hal.ops.rotary_embedding(positions, query, None, cache, is_neox=is_neox)
    again, _ = hal.ops.rotary_embedding(positions, there, None, back, is_neox=is_neox)
    near(again, query, 16)


def rotation_keeps_lengths(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    positions, query, cache = heads(Values(seed), tokens, pairs, rest)
    turned, _ = hal.ops.rotary_embedding(positions, query, None, cache, is_neox=is_neox)
    near(turned.double().norm(dim=-1).float(), query.double().norm(dim=-1).float(), 16)
    equal(turned[..., 2 * pairs :], query[..., 2 * pairs :])


def offsets_shift_positions(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    values = Values(seed)
    positions, query, cache = heads(values, tokens, pairs, rest)
    offsets = values.integers(tokens, low=-4, high=5)
    want, _ = hal.ops.rotary_embedding(positions, query, None, cache, is_neox=is_neox)
    got, _ = hal.ops.rotary_embedding(
        positions - offsets, query, None, cache, is_neox=is_neox, offsets=offsets
    )
    near(got, want, 8)


def layouts_of_pairs(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    positions, query, cache = heads(Values(seed), tokens, pairs, rest)
    # Where the elements of neighbouring pairs are if the halves are pairs.
    order = torch.arange(2 * pairs).view(2, pairs).t().flatten().tolist()
    order += range(2 * pairs, query.shape[-1])
    halves, _ = hal.ops.rotary_embedding(positions, query, None, cache, is_neox=True)
    apart, _ = hal.ops.rotary_embedding(positions, query[..., order], None, cache, is_neox=False)
    near(apart, halves[..., order], 8)
    del is_neox


def keys_turn_as_queries(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    values = Values(seed)
    positions, query, cache = heads(values, tokens, pairs, rest)
    key = values(tokens, 1, query.shape[-1])
    turned, also = hal.ops.rotary_embedding(positions, query, key, cache, is_neox=is_neox)
    both, _ = hal.ops.rotary_embedding(
        positions, torch.cat((query, key), dim=1), None, cache, is_neox=is_neox
    )
    assert also is not None
    near(torch.cat((turned, also), dim=1), both, 8)


def text_has_equal_positions(tokens: int, pairs: int, rest: int, is_neox: bool, seed: int) -> None:
    positions, query, cache = heads(Values(seed), tokens, pairs, rest)
    sections = (pairs // 2, pairs - pairs // 2)
    three = positions.expand(3, tokens)
    got, _ = hal.ops.multimodal_rotary_embedding(
        three, query, None, cache, sections, is_neox=is_neox
    )
    near(got, hal.ops.rotary_embedding(positions, query, None, cache, is_neox=is_neox)[0], 8)


def qk_norm_rope_is_norm_and_rotation(
    tokens: int, pairs: int, rest: int, is_neox: bool, seed: int
) -> None:
    values, eps = Values(seed), 1e-5
    size = 2 * pairs + rest
    positions, _, cache = heads(values, tokens, pairs, rest)
    packed, q_weight, k_weight = values(tokens, 4, size), values(size), values(size)
    got = hal.ops.qk_norm_rope(
        packed.flatten(1), q_weight, k_weight, cache, positions, 2, 1, eps=eps, is_neox=is_neox
    ).view(packed.shape)
    query, key = packed[:, :2].contiguous(), packed[:, 2:3].contiguous()
    normed = hal.ops.rms_norm(query, q_weight, eps), hal.ops.rms_norm(key, k_weight, eps)
    turned, also = hal.ops.rotary_embedding(positions, *normed, cache, is_neox=is_neox)
    assert also is not None
    near(got[:, :3], torch.cat((turned, also), dim=1), NORM)
    equal(got[:, 3], packed[:, 3])


TURN: dict[str, Any] = {
    "tokens": ROWS,
    "pairs": st.integers(1, 33),
    "rest": st.integers(0, 9),
    "is_neox": st.booleans(),
    "seed": SEEDS,
}
FACTORS = st.sampled_from([2.0**-20, 0.1, 0.7, 3.0, 1000.0, 2.0**20])
ROTARY = ("rotary_embedding",)

LAWS = [
    Law(
        "rms_norm forgets the scale",
        ("rms_norm",),
        SHAPE | {"factor": FACTORS},
        rms_norm_forgets_the_scale,
    ),
    Law("rms_norm is odd", ("rms_norm",), SHAPE, rms_norm_is_odd),
    Law(
        "rms_norm moves with its columns",
        ("rms_norm",),
        SHAPE,
        rms_norm_of_columns_in_another_order,
    ),
    Law("rms_norm has a mean square of 1", ("rms_norm",), SHAPE, rms_norm_has_unit_mean_square),
    Law(
        "fused_add_rms_norm adds, then norms",
        ("fused_add_rms_norm", "rms_norm"),
        SHAPE,
        fused_add_is_add_and_norm,
    ),
    Law(
        "gemma_rms_norm is rms_norm with 1 more",
        ("gemma_rms_norm", "rms_norm"),
        SHAPE,
        gemma_counts_from_one,
    ),
    Law(
        "gemma_fused_add_rms_norm adds, then norms",
        ("gemma_fused_add_rms_norm", "gemma_rms_norm"),
        SHAPE,
        gemma_fused_add_is_add_and_norm,
    ),
    Law(
        "layer_norm forgets the mean",
        ("layer_norm",),
        SHAPE | {"shift": st.integers(-32, 32)},
        layer_norm_forgets_the_mean,
    ),
    Law(
        "layer_norm without a mean is rms_norm",
        ("layer_norm", "rms_norm"),
        SHAPE,
        layer_norm_of_no_mean_is_rms_norm,
    ),
    Law("a rotation and its inverse give what was", ROTARY, TURN, rotation_and_back),
    Law("a rotation keeps lengths, and what does not turn", ROTARY, TURN, rotation_keeps_lengths),
    Law("offsets are added to positions", ROTARY, TURN, offsets_shift_positions),
    Law("the layouts of pairs differ by an order", ROTARY, TURN, layouts_of_pairs),
    Law("keys turn as queries do", ROTARY, TURN, keys_turn_as_queries),
    Law(
        "three equal positions turn as one does",
        ("multimodal_rotary_embedding", *ROTARY),
        TURN,
        text_has_equal_positions,
    ),
    Law(
        "qk_norm_rope is rms_norm and rotary_embedding",
        ("qk_norm_rope", "rms_norm", *ROTARY),
        TURN,
        qk_norm_rope_is_norm_and_rotation,
    ),
]
