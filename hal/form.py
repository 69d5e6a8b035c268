"""An op as it is called (``Form``) and what was planned for its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from hal.op import Op
from hal.select import Candidate

__all__ = ["Form", "Plan", "forms"]


@attrs.frozen(eq=False)
class Plan:
    """The kernel for some arguments; ``run`` takes them as the form's function does."""

    chosen: Candidate
    run: Callable[..., Any]


@attrs.define(eq=False)
class Form:
    """An op as it is called: with results returned, or in place.

    Attributes:
        name: The name in ``hal.ops``.
        inplace: Whether the results overwrite arguments.
        overload: The torch operator; set by ``hal.library``.
        computes: Its implementation, with the parameters of its schema; set by ``hal.library``.
        traced: What Dynamo sees instead; set by ``hal.library``.
        through: The call by way of the torch operator; set by ``hal.library``.
        plans: Plans by all that a check or a condition may look at.
        recent: A guard on the latest arguments with their plan, linked to the one before.
        below: The function that the torch operator runs, below autograd; set by ``hal.functions``.
        recent_below: What ``recent`` is, for ``below``.
    """

    op: Op
    name: str
    inplace: bool
    overload: Any = None
    computes: Any = None
    traced: Any = None
    through: Any = None
    plans: dict[tuple[Any, ...], Plan] = attrs.Factory(dict)
    recent: tuple[Any, ...] | None = None
    below: Any = None
    recent_below: tuple[Any, ...] | None = None

    def forget(self) -> None:
        """Drop every plan."""
        self.plans.clear()
        self.recent = self.recent_below = None


def forms(op: Op) -> list[Form]:
    """The functional form, the in-place form, or both."""
    functional = [] if op.mutates else [Form(op, op.name, False)]
    inplace = [Form(op, op.name if op.mutates else f"{op.name}_", True)]
    return functional + (inplace if op.mutates or op.inplace else [])
