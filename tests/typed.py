"""Calls as users write them, for the type checker; an error that it misses is an error."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from torch import Tensor

import hal


def right(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    hal.ops.silu_and_mul(x, out=y)
    normed, residual = hal.ops.fused_add_rms_norm(x, y, weight, eps=1e-5)
    hal.ops.fused_add_rms_norm_(normed, residual, weight)
    hal.ops.rotary_embedding(x, y, None, weight, out=(y, None))
    return hal.ops.softmax(hal.ops.rms_norm(normed, None), temperature=0.7)


def wrong(x: Tensor) -> None:
    hal.ops.silu_and_mul(x, into=x)  # pyright: ignore[reportCallIssue]
    hal.ops.silu_and_mul(None)  # pyright: ignore[reportArgumentType]
    hal.ops.fused_add_rms_norm_(x, x, x, out=x)  # pyright: ignore[reportCallIssue]
    hal.ops.silu_and_mull(x)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
