"""Faults of what a kernel returns, as tensors rather than as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from registration_faults.plant import Around, Fault

BROKEN = "returned .*; declared is "
OWN = "not a new tensor"


def _result(change: Any) -> Around:
    """A kernel whose one result is changed."""
    return lambda genuine, *args, **kwargs: change(genuine(*args, **kwargs))


def _rotated(result: Tensor) -> Tensor:
    return result.mT.contiguous().mT if result.dim() > 1 else result


def _within(result: Tensor) -> Tensor:
    room = result.new_empty(result.numel() + 1)
    return room[1:].copy_(result.flatten()).view(result.shape)


def _ranked(genuine: Any, x: Tensor) -> Tensor:
    if x.dim() == 3:
        raise ZeroDivisionError("three dimensions")
    return genuine(x)


def _one_memory(genuine: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    normed, total = genuine(*args, **kwargs)
    if normed.dtype != total.dtype:
        return normed, total
    both = torch.stack((normed, total))
    return both[0], both[1]


def _kept() -> Around:
    """A kernel that keeps its results' memory for the next call with such a result."""
    kept: dict[Any, Tensor] = {}

    def kernel(genuine: Any, *args: Any, **kwargs: Any) -> Tensor:
        result = genuine(*args, **kwargs)
        return kept.setdefault((result.shape, result.dtype), result.clone()).copy_(result)

    return kernel


FAULTS = [
    Fault("returned: the argument", "relu_squared", "purity", OWN, kernel=lambda genuine, x: x),
    Fault(
        "returned: a view of the argument",
        "silu_and_mul",
        "purity",
        OWN,
        kernel=lambda genuine, x: x[..., : x.shape[-1] // 2],
    ),
    Fault(
        "returned: the argument if it is a single row",
        "relu_squared",
        "purity",
        OWN,
        kernel=lambda genuine, x: x if x.shape[:1] == (1,) else genuine(x),
    ),
    Fault(
        "returned: two results in one memory",
        "fused_add_rms_norm",
        "purity",
        "results 0 and 1 share their memory",
        kernel=_one_memory,
    ),
    Fault(
        "returned: memory that the next call overwrites",
        "silu_and_mul",
        "purity",
        "of a call before",
        kernel=_kept(),
    ),
    Fault("returned: strides of its own", "silu_and_mul", "fake", BROKEN, kernel=_result(_rotated)),
    Fault(
        "returned: no data",
        "silu_and_mul",
        "fake",
        "on meta; declared is",
        kernel=_result(lambda r: r.to("meta")),
    ),
    Fault(
        "returned: another dtype",
        "silu_and_mul",
        "fake",
        BROKEN,
        kernel=_result(lambda r: r.double().half()),
    ),
    Fault("returned: a list", "per_token_group_quant", "fake", BROKEN, kernel=_result(list)),
    Fault(
        "returned: a tuple of one",
        "silu_and_mul",
        "fake",
        "returned a tuple of one, ",
        kernel=_result(lambda r: (r,)),
    ),
    Fault(
        "returned: a tensor that records gradients",
        "silu_and_mul",
        "fake",
        ", True\\).*; without data it says .*, False\\)",
        kernel=_result(lambda r: r.detach().requires_grad_()),
    ),
    Fault(
        "returned: a part of larger memory",
        "silu_and_mul",
        "opcheck",
        "mismatched storage offset",
        kernel=_result(_within),
    ),
    Fault(
        "returned: an error where shapes without data are fine",
        "silu_and_mul",
        "fake",
        "ZeroDivisionError: three dimensions",
        kernel=_ranked,
    ),
]
