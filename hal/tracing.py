"""What ``torch.compile`` knows of a choice: ``op@type@index`` is the reference where that serves.

Dynamo cannot trace a context variable, but it reads an attribute of a module by calling it, takes
the answer for a constant, and guards the compiled code on reading the same again. So the choice is
taken anew, in this thread or task, each time compiled code is entered, and another answer compiles
again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._guards import TracingContext

from hal.hardware import Device
from hal.op import OPS
from hal.plugins import REFERENCE, registry
from hal.policy import Policy, current
from hal.probe import device
from hal.repairs import UNDONE
from hal.select import choose

__all__ = ["exporting", "mended"]


@functools.lru_cache(maxsize=4096)
def _inlined(name: str, where: Device, policy: Policy) -> Any:
    if name in policy.broken:  # There is nothing to break at but the operator.
        return None
    op = OPS[name]
    chosen = choose(op, where, policy).chosen
    if chosen is None or chosen.offered is None or chosen.backend != REFERENCE:
        return None
    return chosen.offered.fn


def exporting() -> bool:
    """Whether what Dynamo traces just now is for export.

    ``torch.compiler.is_exporting()`` of torch 2.7 is true in whatever Dynamo traces.
    """
    context = TracingContext.try_get()
    mode = context and context.fake_mode
    return torch.compiler.is_exporting() or (mode is not None and mode.fake_tensor_converter.export)


def mended() -> None:
    """Look again for what Dynamo's graphs need mended, before it generates their code."""
    registry().repair(but=UNDONE)


# What ``torch.compiler.assume_constant_result`` sets, which would import Dynamo: it calls these.
exporting._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
mended._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def __getattr__(name: str) -> Any:
    op, _, where = name.partition("@")
    if not where:
        raise AttributeError(name)
    return _inlined(op, device(where.replace("@None", "").replace("@", ":")), current())
