"""A function as torch.compile traces it, cut at operators into parts that a player runs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Player", "Stitched", "promised"]


class Player(Protocol):
    """What runs the parts of one call, in order."""

    @property
    def given(self) -> dict[str, Any]:
        """What takes the place of the stand-ins."""
        ...

    def start(self, flat: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Begin, with all inputs, and addresses of what pieces read; False to run nothing."""
        ...

    def piece(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run a part that may be captured."""
        ...

    def between(self, index: int, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run an operator at which the graph was cut."""
        ...


def promised(run: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What a call would return, from fake kernels: without data, and the place of each argument.

    Returns:
        The results as they are nested, each a fake tensor, or where it is an argument its index.
    """
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
    with mode:
        found = run(*fakes)
    place = {id(fake): i for i, fake in enumerate(fakes) if isinstance(fake, Tensor)}
    return tree_map_only(Tensor, lambda t: place.get(id(t), t), found)


def _called(node: Node) -> Any:
    """The operator of a node, also of one that makes it functional."""
    from torch._higher_order_ops.auto_functionalize import (
        auto_functionalized,
        auto_functionalized_v2,
    )

    if node.op != "call_function":
        return None
    return (
        node.args[0]
        if node.target in (auto_functionalized, auto_functionalized_v2)
        else (node.target)
    )


def _is_at(target: Any, at: Collection[OpOverload]) -> bool:
    if isinstance(target, OpOverloadPacket):
        return any(overload.overloadpacket is target for overload in at)
    return isinstance(target, OpOverload) and target in at


def _parts(module: GraphModule, at: Collection[OpOverload]) -> dict[Node, int]:
    """The part of each node: odd for operators in ``at``, one each; even for what is around."""
    parts: dict[Node, int] = {}
    last = 0
    for node in module.graph.nodes:
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, Node) and parts.get(source, 0) % 2 and _several(source):
            parts[node] = parts[source]
            continue
        taken = _is_at(_called(node), at)
        if taken or last % 2:
            last += 2 if taken and last % 2 else 1
        parts[node] = last
    return parts


def _several(node: Node) -> bool:
    """Whether it has several values; an element of a tensor has to stay in the tensor's memory."""
    return not isinstance(node.meta.get("example_value"), Tensor)


def _reach(fake: Tensor) -> range | None:
    """From the first to the last element in its memory; None if that goes by a number of tokens."""
    numbers = [*fake.shape, *fake.stride(), fake.storage_offset()]
    if any(isinstance(number, torch.SymInt) for number in numbers):
        return None
    first, steps = fake.storage_offset(), zip(fake.shape, fake.stride(), strict=True)
    return range(first, first + 1 + sum((size - 1) * step for size, step in steps))


def _apart(one: Tensor, other: Tensor) -> bool:
    """Whether what is written to one is not seen in the other."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:  # pyright: ignore
        return True
    a, b = _reach(one), _reach(other)
    return a is not None and b is not None and (a.stop <= b.start or b.stop <= a.start)


def _at_the_start(fake: Any, given: Sequence[Any]) -> Any:
    """An input that begins where its memory does, as the address says with which code is called.

    Of one that begins later, such as a layer of a cache, what is written in place is written as
    much too far, by the code that Inductor makes before torch 2.13.
    """
    if not isinstance(fake, FakeTensor) or not (reach := _reach(fake)) or not reach.start:
        return fake
    others = (each for each in given if isinstance(each, Tensor) and each is not fake)
    if not all(_apart(fake, other) for other in others):
        return fake
    with fake.fake_mode:
        return torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype, device=fake.device)


def _compiled(piece: GraphModule, compiler: str) -> Callable[..., Any]:
    if compiler == "eager":
        return piece
    from torch._guards import TracingContext
    from torch._inductor.compile_fx import compile_fx

    given = [n.meta["example_value"] for n in piece.graph.find_nodes(op="placeholder")]
    fakes = [_at_the_start(fake, given) for fake in given]
    context = TracingContext.get()
    # For a backend Dynamo has a mode of its own (torch 2.7), in which nothing of a piece is.
    before = context.fake_mode
    modes = (fake.fake_mode for fake in fakes if isinstance(fake, FakeTensor))
    context.fake_mode = next(modes, before)
    try:
        return compile_fx(piece, fakes)  # pyright: ignore[reportReturnType]
    finally:
        context.fake_mode = before


def _direct(part: GraphModule) -> Callable[..., Any]:
    """What FX has written for a part, without what stands before it until it is asked for."""
    _ = part.code  # Asking for it has it written.
    return part.forward


def _order(part: GraphModule) -> tuple[int | None, ...]:
    """For each value that an operator's part returns, which of its results it is, if it is one."""
    (output,) = part.graph.find_nodes(op="output")

    def number(leaf: Any) -> int | None:
        if not isinstance(leaf, Node) or leaf.op != "call_function":
            return None
        number = leaf.args[1] if leaf.target is operator.getitem else 0
        return number if isinstance(number, int) else None

    return tuple(map(number, tree_leaves(output.args[0])))


def _hint(node: Node) -> int | None:
    """The number that was given for an input which is one."""
    value = node.meta.get("example_value")
    return value.node.hint if isinstance(value, torch.SymInt) else None


@attrs.define(eq=False)
class Stitched:
    """A backend of torch.compile for one function and one graph of it.

    Attributes:
        at: The operators at which it is cut.
        compiler: What makes code of the pieces: ``eager`` or ``inductor``.
        stand_ins: Tensors by name that are traced in the place of what each call gives; of those
            in ``numbers`` the first size, which is that of no other input, stands for a number.
        numbers: The names of those.
        player: What runs the parts.
        breaks: How many operators there are between pieces; None before it was traced.
        reads: The inputs that pieces take.
        places: The inputs that are stand-ins, by name.
        orders: What each operator between pieces gives on, as the numbers of its results.
    """

    at: frozenset[OpOverload]
    compiler: str
    stand_ins: dict[str, Tensor]
    numbers: frozenset[str]
    player: Player | None = None
    breaks: int | None = None
    reads: tuple[int, ...] = ()
    places: dict[str, int] = attrs.Factory(dict)
    orders: dict[int, tuple[int | None, ...]] = attrs.Factory(dict)
    _stitched: Any = None

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Cut what was traced, and compile its pieces, for any sizes that are not fixed in it."""
        from torch.fx.passes.split_module import split_module

        parts = _parts(module, self.at)
        cut = split_module(module, module, parts.__getitem__, keep_original_order=True)
        self._stitched, self.breaks = cut, 0
        self._find(cut, inputs)
        for name, part in list(cut.named_children()):
            index = int(name.rpartition("_")[2])
            assert isinstance(part, GraphModule)
            run = _direct(part) if index % 2 else _compiled(part, self.compiler)
            self.breaks += index % 2
            self.orders |= {index: _order(part)} if index % 2 else {}
            delattr(cut, name)
            cut.__dict__[name] = functools.partial(self._part, index, run)
        return self.run

    def _find(self, cut: GraphModule, inputs: Sequence[Any]) -> None:
        """Find which inputs pieces read, and which are stand-ins."""
        nodes = list(cut.graph.find_nodes(op="placeholder"))
        pieces = [n for n in cut.graph.nodes if n.op == "call_module" and _index(n) % 2 == 0]
        read = {argument for piece in pieces for argument in piece.args}
        self.reads = tuple(i for i, node in enumerate(nodes) if node in read)
        for name, stand_in in self.stand_ins.items():
            if name in self.numbers:
                found = [i for i, node in enumerate(nodes) if _hint(node) == len(stand_in)]
            else:
                found = [i for i, value in enumerate(inputs) if value is stand_in]
            if found:  # What nothing takes is no input.
                (self.places[name],) = found

    def _part(self, index: int, run: Callable[..., Any], *args: Any) -> Any:
        assert self.player is not None
        return (self.player.between if index % 2 else self.player.piece)(index, run, args)

    def run(self, *flat: Any) -> Any:
        """What is called for the function, with inputs for which its guards have passed."""
        assert self.player is not None
        values = list(flat)
        for name, place in self.places.items():
            values[place] = self.player.given.get(name, values[place])
        read = (values[i] for i in self.reads)
        self.player.start(flat, tuple(v.data_ptr() if isinstance(v, Tensor) else v for v in read))
        return self._stitched.forward(*values)


def _index(node: Node) -> int:
    return int(str(node.target).rpartition("_")[2])
