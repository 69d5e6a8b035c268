"""How far the results of two kernels for the same call are from each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hal.validate import as_tuple

Judge = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], float]
"""From results, right results and the call's arguments to a distance; 0 is equal."""

LIMIT = 2e-2
"""What is further off is wrong: some roundings of bfloat16, of which each is up to 4e-3."""


def _off(got: Tensor, want: Tensor) -> float:
    """The relative norm of the difference."""
    if want.numel() != got.numel():
        return math.inf
    wide = torch.float64 if want.numel() < 2**26 else torch.float32
    a, b = got.to(wide).reshape(want.shape), want.to(wide)
    same = a == b  # Infinities and zeros, too.
    return float((a - b).masked_fill(same, 0).norm() / b[b.isfinite()].norm().clamp(min=1e-30))


def by_norm(got: Any, want: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The largest relative norm of the difference; a result that is None is not compared."""
    pairs = zip(as_tuple(got), as_tuple(want), strict=False)
    return max(_off(a, b) for a, b in pairs if a is not None and b is not None)


def by_choice(got: Any, want: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Weights, and the logits of what was chosen: equal logits may be chosen in any order."""
    logits = args[0].float()
    if (bias := kwargs.get("correction_bias")) is not None:
        logits = logits.sigmoid() + bias
    chosen = [logits.gather(-1, ids.long()) for _, ids in (got, want)]
    return max(_off(got[0], want[0]), _off(*chosen))


def by_pairs(got: Any, want: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Whether every expert has the same pairs, in any order, in as many blocks: 0 or infinity."""
    ids, _, block = args
    sorted_pairs: list[Tensor] = []
    for pairs, experts, used in (got, want):
        count = int(used.reshape(-1)[0])
        owner = experts[: count // block].long().repeat_interleave(block)
        keys = owner * (ids.numel() + 1) + pairs[:count].long().clamp(max=ids.numel())
        sorted_pairs.append(keys.sort().values)
    return 0.0 if torch.equal(*sorted_pairs) else math.inf


def by_tokens(got: Any, want: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Which part of the tokens differs."""
    return float((got != want).float().mean())


def in_support(got: Any, want: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Which part of the tokens may not be drawn; whether they follow the law is not looked at."""
    import hal

    (probs,), drawn = args, got.reshape(-1, 1).long()
    allowed = probs > 0
    with hal.use("native"):
        if kwargs.get("top_k") is not None:
            allowed &= hal.ops.top_k_renorm(probs, kwargs["top_k"]) > 0
        if kwargs.get("top_p") is not None:
            allowed &= hal.ops.top_p_renorm(probs, kwargs["top_p"]) > 0
        if kwargs.get("min_p") is not None:
            allowed &= hal.ops.min_p_renorm(probs, kwargs["min_p"]) > 0
    return 1 - float(allowed.gather(1, drawn).float().mean())
