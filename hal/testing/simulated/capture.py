"""A capture on a simulated device: what runs meanwhile is recorded, and undone when it ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._pytree import tree_leaves, tree_map

from hal.functions import FORMS
from hal.testing.simulated.build import extension
from hal.testing.simulated.place import kind

__all__ = ["Node", "Recorder", "launched"]

# They have no part in a replay: memory, and how it is looked at, is the same in each.
_LAYOUT = {
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"),
        *("new_empty_strided", "resize_", "resize_as_", "set_"),
    )
}


_OURS = "hal"
"""The namespace of hal's operators, which are made of others."""


@functools.cache
def _is_layout(op: Any) -> bool:
    """Whether an operator computes nothing: it allocates, or returns a view of an argument."""
    aliases = [r.alias_info for r in op._schema.returns if r.alias_info]
    return op._schema.name in _LAYOUT or any(not alias.is_write for alias in aliases)


def _here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == kind()


def _base(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _unowned(value: Any) -> Any:
    if _here(value):
        return extension().unowned(value)
    # A kernel is launched with what the host's numbers are then; pinned memory it reads itself.
    launched = isinstance(value, Tensor) and not value.is_pinned()
    return value.clone() if launched else value


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of the device in arguments or results."""
    return [leaf for leaf in tree_leaves(values) if _here(leaf)]


def _written(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operator writes into, also of the host."""
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _read_back(
    op: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor]
) -> bool:
    """Whether the host gets what it may not have in a capture, as Triton's interpreter does."""
    hosts = [t for t in _written(op, args, kwargs) if not _here(t)]
    return bool(given and hosts) and not all(t.is_pinned() for t in hosts)


@attrs.frozen(eq=False)
class Node:
    """One operator of a graph; its tensors have no share in their memory.

    Attributes:
        results: What the operator returned: where a replay puts what it returns then.
        serials: Which allocation was at the address of each tensor.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Any]
    serials: dict[int, int]

    def run(self) -> None:
        """Do it again."""
        for address, serial in self.serials.items():
            if extension().serial_at(address) != serial:
                raise RuntimeError(
                    f"{kind()} error: illegal memory access: a replay runs {self.op} on memory "
                    "that was freed after the capture"
                )
        found = tree_leaves(self.op(*self.args, **self.kwargs))
        for kept, new in zip(self.results, found, strict=True):
            if _here(kept) and kept.data_ptr() != new.data_ptr():
                kept.copy_(new)


class Recorder(TorchDispatchMode):
    """Runs what is captured, and remembers what the caller's tensors held before."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._interpreted = False  # Whether the operator under way launches kernels of Triton's.
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, bytes]] = {}
        self._states = [(g, g.get_state()) for g in _generators()]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # What runs on a stream outside of the capture just runs, and so does what is the host's.
        if not extension().takes_part():
            return func(*args, **kwargs)
        if func._can_decompose():  # Below autograd, where hal's kernels run, it comes here whole.
            with self:
                return func.decompose(*args, **kwargs)
        self._remember(func, args, kwargs)
        if func.namespace == _OURS:
            return self._inside(func, args, kwargs)
        results = func(*args, **kwargs)
        given, returned = _tensors((args, kwargs)), _tensors(results)
        self._interpreted |= _read_back(func, args, kwargs, given)
        if given or returned:
            if not _is_layout(func):
                self._record(func, args, kwargs, results)
            bases = {_base(tensor) for tensor in given}
            fresh = {_base(t): _unowned(t) for t in returned if _base(t) not in bases}
            self._made.update(fresh)
        return results

    def _inside(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what an operator of ``hal`` does, which is what a device would be asked to do."""
        outside, self._interpreted, count = self._interpreted, False, len(self.nodes)
        try:
            with self:
                results = FORMS[op._opname].computes(*args, **kwargs)
            if self._interpreted:
                del self.nodes[count:]
                self._record(op, args, kwargs, results)
        finally:
            self._interpreted = outside
        return results

    def _remember(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Generator) and leaf not in [g for g, _ in self._states]:
                self._states.append((leaf, leaf.get_state()))
        self._remember_contents(_written(op, args, kwargs))

    def _remember_contents(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            base = _base(tensor)
            if base not in self._made and base not in self._before:
                self._before[base] = tensor, extension().contents(tensor)

    def launch(self, kernel: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run a kernel that is no operator, which may write into any of its arguments."""
        self._remember_contents(_tensors(args))
        self._record(kernel, args, {}, kernel(*args))

    def _record(self, op: Any, args: Any, kwargs: Any, results: Any) -> None:
        used = [_base(t) for t in _tensors((args, kwargs, results))]
        serials = {base: extension().serial_at(base) for base in used if base}
        leaves = [_unowned(leaf) for leaf in tree_leaves(results)]
        self.nodes.append(
            Node(op, tree_map(_unowned, args), tree_map(_unowned, kwargs), leaves, serials)
        )

    def undo(self) -> None:
        """Leave the caller's tensors as they were, and no result that was computed."""
        for made in self._made.values():
            if extension().serial_at(_base(made)):
                extension().spoil(made)
        for tensor, contents in self._before.values():
            extension().overwrite(tensor, contents)
        for generator, state in reversed(self._states):
            generator.set_state(state)


def _generators() -> list[torch.Generator]:
    return [extension().default_generator(i) for i in range(extension().device_count())]


def launched(kernel: Callable[..., Any]) -> Callable[..., None]:
    """A compiled kernel that reads and writes where its arguments are, as it is called."""
    return functools.partial(_launch, kernel)


def _launch(kernel: Callable[..., Any], *args: Any) -> None:
    """Run a kernel, and have a capture on this thread record it as one call.

    It is no operator, and comes to no mode by itself.
    """
    modes = _get_current_dispatch_mode_stack()
    recorder = next((mode for mode in modes if isinstance(mode, Recorder)), None)
    if recorder is None or not extension().takes_part():
        kernel(*args)
    else:
        recorder.launch(kernel, args)
