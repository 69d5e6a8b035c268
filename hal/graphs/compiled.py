"""A function by way of torch.compile, which is traced once and never anew."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Generator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._ops import OpOverload

from hal.errors import InvalidType
from hal.functions import FORMS
from hal.graphs.arguments import Arguments
from hal.graphs.breaks import capturing
from hal.graphs.stitch import Player, Stitched
from hal.graphs.task import Task

__all__ = ["MISSED", "Compiled"]

MISSED = "missed"
"""What a call returns that does not fit what was compiled, and so did nothing."""


def _overloads(at: Sequence[str], others: Sequence[OpOverload]) -> frozenset[OpOverload]:
    """The torch operators of all forms of hal's, and others."""
    forms = [form for form in FORMS.values() if form.op.name in at]
    own = [getattr(torch.ops.hal, form.name).default for form in forms]
    return frozenset([*own, *others])


def _number(value: Any, name: str, taken: set[int]) -> Tensor:
    """What stands for a number: the size of an empty tensor, which is no constant from 2 on."""
    if not isinstance(value, int):
        raise InvalidType(f"eager names {name}, a float, which torch.compile takes for a constant")
    size = next(size for size in itertools.count(max(2, value)) if size not in taken)
    taken.add(size)
    stand_in = torch.empty(size, 0)
    torch._dynamo.mark_dynamic(stand_in, 0)  # pyright: ignore
    return stand_in


def _stand_ins(arguments: Arguments, bucket: int) -> dict[str, Tensor]:
    """What torch.compile traces in the place of what each call gives anew."""
    # A number is known again by its value, which no number of tokens has.
    taken = {bucket + argument.extra for argument in arguments.padded}
    return {
        a.name: a.example.detach()
        if isinstance(a.example, Tensor)
        else _number(a.example, a.name, taken)
        for a in arguments.each
        if a.kind == "eager"
    }


def _entry(fn: Callable[..., Any], arguments: Arguments, numbers: frozenset[str]) -> Any:
    """What torch.compile is given: it runs compiled, or says that it would not."""
    parameters = arguments.signature.parameters.values()
    count = sum(p.kind is not p.KEYWORD_ONLY for p in parameters)
    names = [argument.name for argument in arguments.each]
    sized = [name in numbers for name in names]

    def entry(*values: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            return MISSED
        given = [v.shape[0] if size else v for v, size in zip(values, sized, strict=True)]
        return fn(*given[:count], **dict(zip(names[count:], given[count:], strict=True)))

    # What was compiled is found by the code object, of which each function here needs its own.
    code = entry.__code__.replace()
    return types.FunctionType(code, entry.__globals__, "entry", None, entry.__closure__)


@attrs.define(eq=False)
class Compiled:
    """A function by way of torch.compile, which traces it once."""

    arguments: Arguments
    at: tuple[str, ...]
    stitched: Stitched
    call: Callable[..., Any]
    inference: bool

    @classmethod
    def of(cls, task: Task, compiler: str) -> Compiled:
        """That of what is captured."""
        arguments, bucket = task.arguments, task.buckets[-1]
        stand_ins = _stand_ins(arguments, bucket)
        numbers = frozenset(
            a.name for a in arguments.each if a.kind == "eager" and isinstance(a.example, int)
        )
        stitched = Stitched(_overloads(task.at, task.others), compiler, stand_ins, numbers)
        entry = _entry(task.fn, arguments, numbers)
        call = torch.compile(entry, backend=stitched, fullgraph=True)
        return cls(arguments, task.at, stitched, call, torch.is_inference_mode_enabled())

    def _values(self, bucket: int) -> list[Any]:
        stand_ins = self.stitched.stand_ins
        pairs = zip(self.arguments.each, self.arguments.inputs(bucket), strict=True)
        return [stand_ins.get(argument.name, value) for argument, value in pairs]

    def trace(self, bucket: int, player: Player) -> None:
        """Have it traced and compiled, for any number of tokens from 2 on."""
        values = self._values(bucket)
        for argument, value in zip(self.arguments.each, values, strict=True):
            if argument.pad is not None:
                torch._dynamo.mark_dynamic(value, argument.pad.dim)  # pyright: ignore
        self.stitched.player = player
        with capturing(self.at, None):
            self.call(*values)

    @contextlib.contextmanager
    def _playing(self, player: Player) -> Generator[None, None, None]:
        """Let parts be run by a player, in the modes in which it was traced."""
        self.stitched.player = player
        try:
            with torch.inference_mode(self.inference), torch.no_grad():
                yield
        finally:
            self.stitched.player = None

    def run(self, bucket: int, player: Player) -> Any:
        """Call what was compiled, or return that it does not fit any more, without a call."""
        with (
            self._playing(player),
            capturing(self.at, None),
            # Last: it holds as soon as it is made, and the block takes it back.
            torch.compiler.set_stance("eager_on_recompile"),
        ):
            return self.call(*self._values(bucket))

    def unguarded(self, flat: Sequence[Any], player: Player) -> Any:
        """Call it with inputs as they were in a call before, whatever Python code would decide."""
        with self._playing(player):
            return self.stitched.run(*flat)
