"""Large rows, and many of them, of the ops that take rows one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from hal.testing.records.draws import Draws
from hal.testing.records.vocab import Maker as Vocab

LONG, ROWS, VOCAB = 5003, 67003, 131075
"""A row longer than a block, and prime, so that every tile has a rest; more rows than the grid of a
GPU has blocks in its second dimension; a vocabulary."""
BF16, INT8 = torch.bfloat16, torch.int8

Given = tuple[str, tuple[tuple[Any, ...], dict[str, Any]]]
"""What is large, and the call."""


def gated() -> Iterator[Given]:
    for shape in [(2, 2 * LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws()(*shape, dtype=BF16),), {})


def pointwise() -> Iterator[Given]:
    for shape in [(2, LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws()(*shape, dtype=BF16),), {})


def two() -> Iterator[Given]:
    for shape in [(2, LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws()(*shape), Draws(1)(*shape), 0.3), {})


def normed() -> Iterator[Given]:
    for shape in [(2, LONG), (ROWS, 2)]:
        draw = Draws()
        yield f"{shape}", ((draw(*shape, dtype=BF16), draw(shape[1], mean=1.0)), {})


def centred() -> Iterator[Given]:
    for name, (args, _) in normed():
        yield name, ((*args, args[1] - 1), {})


def added() -> Iterator[Given]:
    for name, ((x, weight), _) in normed():
        yield name, ((x, Draws(1)(*x.shape), weight), {})


def normed_codes() -> Iterator[Given]:
    name, (args, _) = next(normed())
    yield name, (args, {})
    yield f"{name} in groups", (args, {"group_size": 128, "scale_layout": "tma"})


def added_codes() -> Iterator[Given]:
    name, (args, _) = next(added())
    yield name, (args, {})
    yield f"{name} in groups", (args, {"group_size": 128, "scale_layout": "tma"})


def codes() -> Iterator[Given]:
    for shape in [(2, LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws()(*shape),), {})


def gated_codes() -> Iterator[Given]:
    for shape in [(2, 2 * LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws()(*shape),), {"group_size": 128})


def decoded() -> Iterator[Given]:
    q, scale = Draws().integers(-128, 128, 2, LONG).to(INT8), torch.tensor([[0.3], [2.0]])
    yield f"{LONG} columns", ((q, scale), {})
    q = Draws().integers(-128, 128, ROWS, 2).to(INT8)
    yield f"{ROWS} rows", ((q, scale[0]), {"dtype": BF16})


def packed() -> Iterator[Given]:
    yield f"{2 * LONG} columns", ((Draws().integers(-8, 8, 1, 2 * LONG),), {})


def unpacked() -> Iterator[Given]:
    for shape in [(2, LONG), (ROWS, 2)]:
        yield f"{shape}", ((Draws().integers(0, 256, *shape).to(torch.uint8),), {})


def probabilities() -> Iterator[Given]:
    yield f"{VOCAB} columns", ((Vocab().logits(2, VOCAB),), {"temperature": 0.7})
    yield f"{ROWS} rows", ((Vocab().logits(ROWS, 2),), {"temperature": Vocab()(ROWS).abs()})


def most_likely() -> Iterator[Given]:
    yield f"{VOCAB} columns", ((Vocab().probs(1, VOCAB), 3000), {})
    yield f"{ROWS} rows", ((Vocab().probs(ROWS, 3), Vocab().integers(1, 4, ROWS)), {})


def nucleus() -> Iterator[Given]:
    yield f"{VOCAB} columns", ((Vocab().probs(1, VOCAB), 0.9), {})
    yield f"{ROWS} rows", ((Vocab().probs(ROWS, 3), 0.7), {})


def likely() -> Iterator[Given]:
    yield f"{VOCAB} columns", ((Vocab().probs(1, VOCAB), 0.05), {})
    yield f"{ROWS} rows", ((Vocab().probs(ROWS, 3), 0.3), {})


def drawn() -> Iterator[Given]:
    noise = {"seed": 5, "offset": 3}
    p = Vocab().probs(1, VOCAB)
    yield f"{VOCAB} columns", ((p,), noise | {"indices": torch.zeros(5, dtype=torch.int64)})
    yield f"{VOCAB} columns, limits", ((p,), noise | {"top_k": 4000, "top_p": 0.9})


def masked() -> Iterator[Given]:
    make = Vocab()
    yield f"{VOCAB} columns", ((make.logits(1, VOCAB), make.bits(1, -(-VOCAB // 32))), {})
    yield f"{ROWS} rows", ((make.logits(ROWS, 2), make.bits(ROWS, 1)), {})


def routes() -> Iterator[Given]:
    yield "128 of 1031", ((Draws()(2, 1031), 128), {})
    yield f"{ROWS} rows", ((Draws()(ROWS, 4), 2), {"renormalize": True})


def group_routes() -> Iterator[Given]:
    groups: dict[str, Any] = {"num_groups": 8, "topk_groups": 4}
    yield "64 of 1032", ((Draws()(2, 1032), 64), groups)
    groups = {"num_groups": 2, "topk_groups": 1, "scoring": "sigmoid"}
    yield f"{ROWS} rows", ((Draws()(ROWS, 4), 2), groups)


def aligned() -> Iterator[Given]:
    yield f"{ROWS} rows", ((Draws().integers(0, 8, ROWS, 2).int(), 8, 64), {})
    yield "1031 experts", ((Draws().integers(0, 1031, 500, 8), 1031, 16), {})


def summed() -> Iterator[Given]:
    for shape in [(2, 3, LONG), (ROWS, 2, 2)]:
        yield f"{shape}", ((Draws()(*shape, dtype=BF16),), {})


LARGE: dict[str, Callable[[], Iterator[Given]]] = {
    "silu_and_mul": gated,
    "gelu_and_mul": gated,
    "gelu_tanh_and_mul": gated,
    "swigluoai_and_mul": gated,
    "relu_squared": pointwise,
    "quick_gelu": pointwise,
    "mul_add": two,
    "rms_norm": normed,
    "gemma_rms_norm": normed,
    "layer_norm": centred,
    "fused_add_rms_norm": added,
    "gemma_fused_add_rms_norm": added,
    "rms_norm_quant": normed_codes,
    "fused_add_rms_norm_quant": added_codes,
    "per_token_group_quant": codes,
    "per_token_quant": codes,
    "per_tensor_quant": codes,
    "silu_and_mul_quant": gated_codes,
    "dequantize": decoded,
    "pack_int4": packed,
    "unpack_int4": unpacked,
    "softmax": probabilities,
    "top_k_renorm": most_likely,
    "top_p_renorm": nucleus,
    "min_p_renorm": likely,
    "sample": drawn,
    "apply_token_bitmask_": masked,
    "topk_softmax": routes,
    "topk_sigmoid": routes,
    "grouped_topk": group_routes,
    "moe_align_block_size": aligned,
    "moe_sum": summed,
}
