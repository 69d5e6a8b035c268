"""``hal.fake_if_exists``: when another library's operator is given a fake kernel, and when not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.library import Library, opcheck, register_fake

import hal

GATE = "gate(Tensor x) -> Tensor"
names = (f"hal_test_fakes_{i}" for i in itertools.count())


@pytest.fixture
def namespace() -> str:
    """A namespace of operators that no other test has."""
    return next(names)


@pytest.fixture
def library(namespace: str) -> Iterator[Library]:
    """A library in it, without operators, and with an end."""
    made = Library(namespace, "DEF")
    yield made
    made._destroy()


def gate(x: Any) -> Any:
    return x[..., : x.shape[-1] // 2] * 2


def halved(x: Any) -> Any:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def define(library: Library, schema: str = GATE, kernel: Callable[..., Any] = gate) -> Any:
    """Define an operator that has a kernel and no fake."""
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, kernel, "CPU")
    found = getattr(torch.ops, library.ns)
    packet, _, overload = name.partition(".")
    return getattr(getattr(found, packet), overload or "default")


def faked(op: Any, *sizes: int, mode: FakeTensorMode | None = None) -> torch.Tensor:
    """What an operator makes of a fake tensor."""
    with mode or FakeTensorMode():
        return op(torch.empty(sizes))


def compiles(op: Any, dynamic: bool) -> None:
    """Its result in compiled code is that of its kernel, for sizes that differ."""
    torch.compiler.reset()
    function = torch.compile(
        lambda x: op(x) + 1, backend="aot_eager", dynamic=dynamic, fullgraph=True
    )
    for tokens in (3, 5):
        x = torch.randn(tokens, 8)
        assert function(x).equal(gate(x) + 1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles(library: Library, dynamic: bool) -> None:
    op = define(library)
    with pytest.raises(UnsupportedOperatorException):
        faked(op, 3, 8)
    assert hal.fake_if_exists(f"{library.ns}::gate")(halved) is halved
    compiles(op, dynamic)
    opcheck(op, (torch.randn(3, 8),))


def test_an_operator_of_torch_that_only_a_vendor_has() -> None:
    """Torch tries the kernel of such a one on zeros, but for sizes that vary."""
    library = Library("aten", "FRAGMENT")
    try:
        op = define(library, "_hal_test_gate(Tensor x) -> Tensor")
        with pytest.raises(torch._dynamo.exc.Unsupported, match="_hal_test_gate"):
            compiles(op, dynamic=True)
        hal.fake_if_exists("aten::_hal_test_gate")(halved)
        compiles(op, dynamic=True)
        compiles(op, dynamic=False)
    finally:
        library._destroy()


def test_an_operator_that_appears_later(library: Library) -> None:
    hal.fake_if_exists(f"{library.ns}::gate")(halved)
    op = define(library)
    assert faked(op, 3, 8).shape == (3, 4)
    compiles(op, dynamic=True)


def test_one_that_never_appears(namespace: str) -> None:
    hal.fake_if_exists(f"{namespace}::gate")(halved)
    assert not hasattr(getattr(torch.ops, namespace), "gate")
    assert faked(torch.relu, 3, 8).shape == (3, 8)


def other(x: Any) -> Any:
    return x.new_empty(7)


@pytest.mark.parametrize("before", [True, False])
def test_the_vendors_own_fake_wins(library: Library, before: bool) -> None:
    op, name = define(library), f"{library.ns}::gate"
    if before:
        register_fake(name, other, lib=library)
    hal.fake_if_exists(name)(halved)
    if not before:
        assert faked(op, 3, 8).shape == (3, 4)
        register_fake(name, other, lib=library)
    assert faked(op, 3, 8).shape == (7,)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("key", ["Meta", "CompositeImplicitAutograd"])
def test_the_vendors_own_kernel_wins(library: Library, before: bool, key: str) -> None:
    library.define(GATE)
    op, name = getattr(torch.ops, library.ns).gate.default, f"{library.ns}::gate"
    if before:
        library.impl("gate", other, key)
    hal.fake_if_exists(name)(halved)
    if not before:
        assert faked(op, 3, 8).shape == (3, 4)
        library.impl("gate", other, key)
    assert faked(op, 3, 8).shape == (7,)


def test_torchs_own_operators_are_left_alone() -> None:
    hal.fake_if_exists("aten::relu")(other)
    hal.fake_if_exists("aten::add.Tensor")(other)
    assert faked(lambda x: torch.relu(x) + x, 3, 8).shape == (3, 8)


def test_an_overload(library: Library) -> None:
    plain, wide = define(library), define(library, "gate.wide(Tensor x, int by) -> Tensor", other)
    hal.fake_if_exists(f"{library.ns}::gate.wide")(lambda x, by: x.new_empty(by))
    assert faked(lambda x: wide(x, 5), 3, 8).shape == (5,)
    with pytest.raises(UnsupportedOperatorException):
        faked(plain, 3, 8)


def test_the_last_of_two_serves(library: Library) -> None:
    op = define(library)
    hal.fake_if_exists(f"{library.ns}::gate")(other)
    hal.fake_if_exists(f"{library.ns}::gate")(halved)
    assert faked(op, 3, 8).shape == (3, 4)


def test_sizes_that_depend_on_the_data(library: Library) -> None:
    op = define(library, "chosen(Tensor x) -> Tensor", lambda x: x[x > 0])

    @hal.fake_if_exists(f"{library.ns}::chosen")
    def chosen(x: Any) -> Any:
        return x.new_empty(torch.library.get_ctx().new_dynamic_size())

    result = faked(op, 3, 8, mode=FakeTensorMode(shape_env=ShapeEnv()))
    assert isinstance(result.shape[0], torch.SymInt)


def test_one_that_writes(library: Library) -> None:
    def fill(x: torch.Tensor, by: float) -> None:
        x.fill_(by)

    op = define(library, "fill(Tensor(a!) x, float by) -> ()", fill)
    hal.fake_if_exists(f"{library.ns}::fill")(lambda x, by: None)
    torch.compiler.reset()

    def filled(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        op(y, 2.0)
        return y

    found = torch.compile(filled, backend="aot_eager", fullgraph=True)(torch.zeros(3))
    assert found.equal(torch.full((3,), 2.0))


def test_what_it_raises_is_raised(library: Library) -> None:
    op = define(library)

    @hal.fake_if_exists(f"{library.ns}::gate")
    def refusing(x: Any) -> Any:
        raise ValueError(f"no gate of {x.shape[-1]}")

    with pytest.raises(ValueError, match="no gate of 8"):
        faked(op, 3, 8)


@pytest.mark.parametrize(
    "name", ["gate", "acme.gate", "acme::", "::gate", "acme::gate.", "a::b::c"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="an operator is named as 'namespace::name', not"):
        hal.fake_if_exists(name)
