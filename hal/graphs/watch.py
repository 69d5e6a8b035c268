"""What a function does to its arguments, seen in one run before it is captured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hal.errors import InvalidInput
from hal.graphs.arguments import Argument

__all__ = ["Watch"]


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[i] if i < len(args) else kwargs.get(argument.name)


class Watch(TorchDispatchMode):
    """Refuses, in a block, what would be wrong in a replay.

    Args:
        who: The function that is captured.
        arguments: Its arguments, each with the tensor that it is called with.
        others: Operators that are not captured.
    """

    def __init__(
        self, who: str, arguments: Sequence[tuple[Argument, Any]], others: Sequence[Any] = ()
    ) -> None:
        super().__init__()
        self._who, self._others = who, others
        self._watched = {_storage(v): a for a, v in arguments if isinstance(v, Tensor)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at what an operator of torch or hal is given."""
        kwargs = kwargs or {}
        for argument in self._found((args, kwargs)):
            if argument.kind == "eager" and func not in self._others:
                raise InvalidInput(
                    f"{self._who}: eager names {argument.name}, which {func} takes, and not only "
                    "ops at which it breaks; leave it out of eager, or pass it to them as it is"
                )
        self.check_written(func, list(_written(func, args, kwargs)))
        return func(*args, **kwargs)

    def check_returned(self, values: Any) -> None:
        """Look at what the function returns."""
        for argument in self._found(values):
            if argument.kind == "eager":
                raise InvalidInput(
                    f"{self._who}: eager names {argument.name}, which is returned, and a replay "
                    "would return that of the example; leave it out of what is returned"
                )

    def check_written(self, op: Any, values: Any) -> None:
        """Look at what an operator changes, which may be what a call gives to those between."""
        for argument in self._found(values):
            if argument.kind != "eager":
                raise InvalidInput(
                    f"{self._who}: {op} writes into {argument.name}, and in a replay it would "
                    "write into a copy; close over what is changed, such as a cache, instead of "
                    "passing it, or clone it first"
                )

    def _found(self, values: Any) -> Iterator[Argument]:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor) and _storage(leaf) in self._watched:
                yield self._watched[_storage(leaf)]
