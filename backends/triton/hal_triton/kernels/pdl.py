"""Programmatic dependent launch: a kernel that starts while the one before it ends."""

from __future__ import annotations

import triton
import triton.language as tl

KNOWN = hasattr(tl.extra.cuda, "gdc_wait")
"""Whether this Triton has it; 3.3 has not."""

if KNOWN:

    @triton.jit
    def await_previous(PDL: tl.constexpr):
        """Wait for the kernels before, and let the next one start to wait for this.

        It comes first in a kernel, before every load and in every program: then nothing is read
        that may yet be written, nothing is written that may yet be read, and a kernel that has
        ended says that all those before it have.
        """
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()

else:

    @triton.jit
    def await_previous(PDL: tl.constexpr):
        """Nothing: no kernel starts before the last one has ended."""
