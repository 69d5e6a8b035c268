"""The arguments of a captured function: which are copied, padded, passed on, or may not change."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from hal.checks import describe
from hal.errors import InvalidInput, InvalidType
from hal.graphs.pads import Fill, Pad, as_pads

__all__ = ["Argument", "Arguments", "prepared"]


class _Int(int):
    """An integer that is known again by its identity, where small ones are shared."""


class _Float(float):
    """The same for a float."""


@attrs.frozen(eq=False)
class Argument:
    """One argument.

    Attributes:
        name: Its name.
        kind: ``padded`` and ``fixed`` tensors are copied to where the graphs read; what is
            ``eager`` is handed to the operators between graphs; what is ``plain`` must not change.
        example: What it was in the example; when it has memory, no more than is read of that.
        pad: How it is padded, where it is.
        extra: How many more steps its dimension has than there are tokens.
        memory: Where the graphs read.
    """

    name: str
    kind: str
    example: Any
    pad: Pad | None = None
    extra: int = 0
    memory: Tensor | None = None

    def shape(self, count: int) -> list[int]:
        """Its shape for some tokens."""
        sizes = list(self.example.shape)
        if self.pad is not None:
            sizes[self.pad.dim] = count + self.extra
        return sizes

    def view(self, bucket: int) -> Tensor:
        """Where the graphs of a bucket read it, which is the same memory for all."""
        assert self.memory is not None
        if self.kind == "fixed":
            return self.memory
        shape = self.shape(bucket)
        return self.memory[: math.prod(shape)].view(shape)

    def fill(self, value: Tensor, bucket: int, count: int) -> None:
        """Copy a call's tensor to where the graphs of a bucket read, and pad it."""
        here = self.view(bucket)
        if self.pad is None:
            if value is not here:
                here.copy_(value)
            return
        dim, used = self.pad.dim, count + self.extra
        here.narrow(dim, 0, used).copy_(value)
        rest = here.narrow(dim, used, here.shape[dim] - used)
        if self.pad.value != "last":
            rest.fill_(self.pad.value)
        elif used:
            rest.copy_(here.narrow(dim, used - 1, 1).expand_as(rest))
        else:
            rest.zero_()

    def clear(self, bucket: int) -> None:
        """Let there be padding only, as far as it can be."""
        if self.pad is not None:
            self.fill(self.example.narrow(self.pad.dim, 0, self.extra), bucket, 0)

    def count(self, value: Tensor) -> int:
        """How many tokens a call's tensor has."""
        assert self.pad is not None
        return value.shape[self.pad.dim] - self.extra

    def check(self, value: Any, count: int, who: str) -> None:
        """Refuse what the graphs were not captured for.

        Raises:
            InvalidInput: It has another shape, dtype, device or value.
        """
        if self.kind == "eager":
            return
        if self.kind == "plain":
            same = value is self.example or value == self.example  # NaN is not equal to itself.
            if type(value) is not type(self.example) or not same:
                raise InvalidInput(
                    f"{who} was captured with {self.name} = {self.example!r}, not {value!r}; "
                    "capture another, or name it in eager if only ops at which it breaks take it"
                )
            return
        if not isinstance(value, Tensor):
            raise InvalidType(f"{who} was captured with a tensor as {self.name}, not {value!r}")
        expected = self.shape(count), self.example.dtype, self.example.device
        if (list(value.shape), value.dtype, value.device) != expected:
            longer = not self.pad and (value.dtype, value.device) == expected[1:]
            hint = "; name it in pad if that dimension counts tokens" if longer else ""
            raise InvalidInput(
                f"{who}: {self.name} is {describe(value)} on {value.device}; it was captured for "
                f"{expected[0]} {str(expected[1]).removeprefix('torch.')} on {expected[2]}" + hint
            )


def _check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidInput(f"{what} names {', '.join(unknown)}; there are {', '.join(known)}")


def _kind(name: str, value: Any, pads: Mapping[str, Pad], eager: Iterable[str]) -> str:
    if name in eager:
        # None, booleans and strings are shared, and would not be known again.
        if isinstance(value, bool) or not isinstance(value, (Tensor, int, float)):
            raise InvalidType(f"eager names {name}, which is {value!r}, neither tensor nor number")
        return "eager"
    if name in pads:
        pads[name].check(name, value)
        return "padded"
    if isinstance(value, Tensor):
        return "fixed"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return "plain"
    raise InvalidType(
        f"{name} is a {type(value).__name__}; what is captured takes tensors and plain values: "
        "pass its tensors as arguments of their own, and close over what does not change"
    )


@attrs.frozen(eq=False)
class Arguments:
    """All arguments of a captured function, in the order of its signature."""

    who: str
    signature: inspect.Signature
    each: tuple[Argument, ...]
    ordered: bool = attrs.field(init=False)
    """Whether each may be given by its place."""

    @ordered.default  # pyright: ignore[reportUntypedFunctionDecorator, reportAttributeAccessIssue]
    def _ordered(self) -> bool:
        parameters = self.signature.parameters.values()
        return all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        example: Sequence[Any],
        pad: Mapping[str, Fill | Pad],
        eager: Sequence[str],
    ) -> Arguments:
        """Those of a function, by an example of its call.

        Raises:
            InvalidInput: A name that is no parameter, or an argument that cannot be captured.
        """
        # A module's own call takes anything.
        called = fn.forward if isinstance(fn, torch.nn.Module) else fn
        signature, who = inspect.signature(called), getattr(fn, "__name__", type(fn).__name__)
        bound = signature.bind(*example)
        bound.apply_defaults()
        values, pads = bound.arguments, as_pads(pad)
        _check_names(pads, values, "pad")
        _check_names(eager, values, "eager")
        if both := sorted(set(pads) & set(eager)):
            raise InvalidInput(f"{who}: eager and pad both name {', '.join(both)}")
        kinds = {name: _kind(name, value, pads, eager) for name, value in values.items()}
        least = [values[name].shape[p.dim] for name, p in pads.items()]
        count = min(least, default=0)
        each = tuple(
            Argument(n, kind, values[n], pads.get(n), values[n].shape[pads[n].dim] - count)
            if kind == "padded"
            else Argument(n, kind, values[n])
            for n, kind in kinds.items()
        )
        return cls(who, signature, each)

    @property
    def padded(self) -> tuple[Argument, ...]:
        """Those with a dimension that counts tokens."""
        return tuple(argument for argument in self.each if argument.pad is not None)

    def call(self, fn: Callable[..., Any], values: Sequence[Any]) -> Any:
        """Call a function with values in this order."""
        named = dict(zip((a.name for a in self.each), values, strict=True))
        bound = inspect.BoundArguments(self.signature, OrderedDict(named))
        return fn(*bound.args, **bound.kwargs)

    @property
    def examples(self) -> list[Any]:
        """What the example gave."""
        return [argument.example for argument in self.each]

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """A call's arguments in order."""
        if not kwargs and len(args) == len(self.each) and self.ordered:
            return args
        try:
            found = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidType(f"{self.who}{self.signature}: {error}") from None
        found.apply_defaults()
        return list(found.arguments.values())

    def count(self, values: Sequence[Any]) -> int:
        """How many tokens a call has; 0 where nothing counts them."""
        for argument, value in zip(self.each, values, strict=True):
            if argument.pad is not None:
                if not isinstance(value, Tensor) or value.dim() != argument.example.dim():
                    argument.check(value, 0, self.who)
                return argument.count(value)
        return 0

    def check(self, values: Sequence[Any], count: int) -> None:
        """Refuse a call that the graphs were not captured for."""
        for argument, value in zip(self.each, values, strict=True):
            argument.check(value, count, self.who)

    def fill(self, values: Sequence[Any], bucket: int, count: int) -> None:
        """Copy a call's tensors to where the graphs of a bucket read them."""
        for argument, value in zip(self.each, values, strict=True):
            if argument.memory is not None:
                argument.fill(value, bucket, count)

    def clear(self, bucket: int) -> None:
        """Let what is padded hold nothing but padding."""
        for argument in self.each:
            argument.clear(bucket)

    def hold(self, value: Any) -> bool:
        """Whether a tensor lies where the graphs read an argument."""
        return isinstance(value, Tensor) and any(
            value.untyped_storage().data_ptr() == a.memory.untyped_storage().data_ptr()
            for a in self.each
            if a.memory is not None
        )

    def inputs(self, bucket: int) -> list[Any]:
        """What the function is called with to be captured."""
        return [
            argument.example if argument.memory is None else argument.view(bucket)
            for argument in self.each
        ]


def _kept(argument: Argument) -> Any:
    """What is needed of an example: what may not be padding, or a value known by its identity."""
    value, pad = argument.example, argument.pad
    if pad is not None:
        return value.narrow(pad.dim, 0, argument.extra).clone()
    if argument.kind != "eager":
        return value
    if isinstance(value, Tensor):
        return value.detach()  # The example may have it twice, or the function close over it.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return _Int(value) if isinstance(value, int) else _Float(value)


def _memory(argument: Argument, most: int) -> Tensor | None:
    if argument.kind == "fixed":
        return argument.example.detach().clone()
    if argument.kind == "padded":
        return argument.example.new_empty(math.prod(argument.shape(most)))
    return None


def _prepared(argument: Argument, most: int) -> Argument:
    memory = _memory(argument, most)
    example = _kept(argument) if memory is None or argument.pad else memory
    return attrs.evolve(argument, example=example, memory=memory)


def prepared(arguments: Arguments, most: int) -> Arguments:
    """The same with memory for up to so many tokens, and with values that are known again."""
    with torch.inference_mode(False), torch.no_grad():
        each = tuple(_prepared(argument, most) for argument in arguments.each)
    return attrs.evolve(arguments, each=each)
