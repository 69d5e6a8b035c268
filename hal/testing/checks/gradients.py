"""Gradients: those of the float64 oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal.testing.checks.check import Effort, accepted, check, each
from hal.testing.compare import assert_close
from hal.testing.outcome import NotApplicable, NotTried
from hal.testing.record import GATES, Sample
from hal.testing.subject import HOST, Subject, results

__all__: list[str] = []

# A gradient rounds what the forward pass has rounded already: on the reference it is off by up to
# 1.1 times the gate of a result.
_ROOM = 2


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1


def _leaves(flat: list[Any]) -> list[Tensor]:
    return [value.detach().requires_grad_() for value in flat if _differentiable(value)]


def _filled(flat: list[Any], leaves: list[Tensor]) -> list[Any]:
    rest = iter(leaves)
    return [next(rest) if _differentiable(value) else value for value in flat]


def _vjp(returned: Any, leaves: list[Tensor], seeds: list[Tensor]) -> list[Tensor]:
    found = [r for r in results(returned) if r.requires_grad]
    weights = [s.to(r.device, r.dtype) for s, r in zip(seeds, found, strict=True)]
    # Without allow_unused its type has no None.
    given: Any = torch.autograd.grad(found, leaves, weights, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, given, strict=True)]


def _seeds(subject: Subject, sample: Sample) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [result.shape for result in results(subject.run(subject.flat(sample)))]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _as_oracle(subject: Subject, sample: Sample) -> None:
    seeds, flat = _seeds(subject, sample), subject.flat(sample)
    leaves = _leaves(flat)
    returned = subject.run(_filled(flat, leaves))
    got = _vjp(returned, leaves, seeds)
    host = subject.op.flatten(sample.args, sample.kwargs)
    wide = _leaves([v.double() if _differentiable(v) else v for v in host])
    # Seeds are rounded to the results' dtype on one side, so on the other too.
    rounded = [s.to(r.dtype).double() for s, r in zip(seeds, results(returned), strict=True)]
    want = _vjp(subject.op.call(subject.record.oracle, _filled(host, wide)), wide, rounded)
    # A wide argument beside a narrow one has a gradient of what was rounded to the narrow dtype.
    gate = _ROOM * max(GATES[value.dtype] for value in (*leaves, *results(returned)))
    for value, expected in zip(got, want, strict=True):
        assert_close(value.to(HOST), expected, gate)


def _moderate(sample: Sample) -> bool:
    """Whether no value is extreme, and no row so short that it loses its gradient to cancellation.

    The norm of one element is its sign, and what float32 leaves of its gradient is rounding. What
    is below the normal numbers some devices take for zero.
    """
    given = [v for v in (*sample.args, *sample.kwargs.values()) if _differentiable(v)]
    return all(v.ndim and v.numel() and v.shape[-1] >= 8 and _ordinary(v.abs()) for v in given)


def _ordinary(sizes: Tensor) -> bool:
    return bool((((sizes > 1e-30) & (sizes < 1e3)) | (sizes == 0)).all())


@check("gradients")
def gradients(subject: Subject, effort: Effort) -> int:
    """The vector-Jacobian product is that of the float64 oracle."""
    if not subject.op.grad:
        raise NotApplicable("the op has no gradients")
    smooth = [sample for sample in accepted(subject) if _moderate(sample)][:: effort.every]
    if not smooth:
        raise NotTried("the kernel takes no sample of moderate values")
    return each(smooth, lambda sample: _as_oracle(subject, sample), lambda sample: sample.name)
