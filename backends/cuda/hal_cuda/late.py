"""A kernel that ends late, by which ``hal check`` sees whether the next one waits for it."""

# pyright: basic, reportAttributeAccessIssue=false
# ruff: noqa: N803  # Constants of a kernel are in capitals.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["copy"]


def copy(to: Tensor, source: Tensor) -> None:
    """Copy bytes after 100 us, within which the next kernel may start."""
    _copy[(1,)](to, source, to.numel(), BLOCK=4096, num_warps=8)  # pyright: ignore


@triton.jit
def _copy(to, source, count, BLOCK: tl.constexpr):
    tl.extra.cuda.gdc_launch_dependents()
    began = tl.extra.cuda.globaltimer()
    while tl.extra.cuda.globaltimer() - began < 100_000:
        pass
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(to + at, tl.load(source + at, mask=at < count), mask=at < count)
