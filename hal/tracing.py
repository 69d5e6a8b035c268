"""What ``torch.compile`` knows of a choice: ``op@type@index`` is the reference where that serves.

An exported program keeps the operator.

Dynamo cannot trace a context variable, but it reads an attribute of a module by calling it, takes
the answer for a constant, and guards the compiled code on reading the same again. So the choice is
taken anew, in this thread or task, each time compiled code is entered, and another answer compiles
again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from hal.hardware import Device
from hal.op import OPS
from hal.plugins import REFERENCE
from hal.policy import Policy, current
from hal.probe import device
from hal.select import choose

__all__: list[str] = []


@functools.lru_cache(maxsize=4096)
def _inlined(name: str, where: Device, policy: Policy) -> Any:
    op = OPS[name]
    chosen = choose(op, where, policy).chosen
    if chosen is None or chosen.offered is None or chosen.backend != REFERENCE:
        return None
    return chosen.offered.fn


def __getattr__(name: str) -> Any:
    op, _, where = name.partition("@")
    if not where:
        raise AttributeError(name)
    if torch.compiler.is_exporting():  # Asked in here: to code that it traces, 2.7 says yes always.
        return None
    return _inlined(op, device(where.replace("@None", "").replace("@", ":")), current())
