"""What an operator is (``Op``, made by ``op``) and what a backend offers for it (``Kernel``)."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import attrs
import torch
from torch import Tensor

from hal.errors import InvalidInput, InvalidType

__all__ = ["OPS", "Kernel", "Op", "Parameter", "members", "op", "prepared"]

Contract = TypeVar("Contract", bound=Callable[..., Any])


@attrs.frozen
class Parameter:
    """A parameter of an op; ``types`` are what it accepts, such as ``Tensor`` and ``NoneType``."""

    name: str
    types: tuple[Any, ...]
    default: Any
    keyword_only: bool

    @property
    def tensor(self) -> bool:
        """Whether it can be a tensor."""
        return Tensor in self.types

    @property
    def sequence(self) -> bool:
        """Whether it is a sequence of integers."""
        return Sequence in self.types

    @property
    def union(self) -> bool:
        """Whether it is a tensor or a plain value, which torch's schemas have to keep apart."""
        return self.tensor and bool(set(self.types) - {Tensor, type(None)})


@attrs.frozen(eq=False, repr=False)
class Op:
    """A declared operator.

    Attributes:
        name: The name in ``hal.ops``; it ends in an underscore when the op has no other form.
        contract: The declaration: it checks its arguments and returns empty results.
        signature: The parameters that a kernel of this op must have; ``out`` is not one of them.
        parameters: The same with their annotations resolved.
        results: The annotations of the results of a tuple; None if the result is one tensor.
        inplace: The parameters that the results overwrite in the form ``name_``, result by result.
        mutates: The parameters that an op without a functional form writes into and returns.
        grad: Whether gradients are defined, as the vector-Jacobian product of the reference.
        positional: How many parameters are passed by position.
        keywords: The names of the others.
    """

    name: str
    contract: Callable[..., Any]
    signature: inspect.Signature
    parameters: tuple[Parameter, ...]
    results: tuple[Any, ...] | None
    inplace: tuple[str, ...] = ()
    mutates: tuple[str, ...] = ()
    grad: bool = False
    positional: int = attrs.field(init=False)
    keywords: tuple[str, ...] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Count what is passed by position and name the rest."""
        names = [parameter.name for parameter in self.parameters if parameter.keyword_only]
        object.__setattr__(self, "keywords", tuple(names))
        object.__setattr__(self, "positional", len(self.parameters) - len(names))

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}"

    @property
    def overwritten(self) -> tuple[int, ...]:
        """The positions of the parameters that the in-place form writes, result by result."""
        names = [parameter.name for parameter in self.parameters]
        return tuple(names.index(name) for name in self.inplace or self.mutates)

    def call(self, function: Callable[..., Any], flat: Sequence[Any]) -> Any:
        """Call ``function`` with this op's arguments, given flat in the order of the signature."""
        if not self.keywords:
            return function(*flat)
        named = zip(self.keywords, flat[self.positional :], strict=True)
        return function(*flat[: self.positional], **dict(named))

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """A call's arguments in the order of the signature, with defaults.

        Raises:
            InvalidType: Arguments that do not fit the signature.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidType(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        return list(bound.arguments.values())


OPS: dict[str, Op] = {}
"""Every declared op by name, in the order of declaration."""


_callable = attrs.validators.optional(attrs.validators.is_callable())
_flag = attrs.validators.instance_of(bool)


def _reason(kernel: Kernel, attribute: attrs.Attribute[Any], value: object) -> None:
    """Require a text or a function that gives one."""
    if not callable(value) and not (isinstance(value, str) and value):
        raise ValueError(f"{attribute.name} must be a reason or a function, not {value!r}")


@attrs.frozen(kw_only=True, eq=False)
class Kernel:
    """One implementation of an op that a backend offers for a device.

    Args:
        fn: A callable with exactly the signature of the op; returns new contiguous tensors,
            which hal checks when it plans a call. It writes into no argument; that is not checked.
            What takes a while to decide goes into a ``hal.prepared`` function.
        name: Whose code runs: ``torch``, ``triton``, ``flashinfer`` ...; unique within a backend
            and op.
        supports: Called with the op's arguments before a choice; None if they can be served, else
            the reason why not. It sees shapes, dtypes and strides, and reads neither data nor
            environment.
        refused: Why it serves no call here, for ``hal.explain``; given where a library has a kernel
            that is wrong, or is for other devices. Nothing of the kernel is called then.
        on_request: Why it serves none but who names it, as ``backend:kernel``; given where it is
            right, but another is quicker or it was not measured. What ``supports`` answers is
            ability, this is a wish, and the name of the backend alone does not override it. If it
            depends on the arguments, a function of them as ``supports`` is: None where it is to be
            chosen as any other.
        inplace: The in-place form, for ops that have one: writes its results into its arguments.
            Without it hal copies the results of ``fn``.
        graph_safe: May be captured into a device graph and replayed with new data.
        deterministic: The same input gives the same bits.
        batch_invariant: The bits of a row do not depend on the other rows.
        pdl: Takes part in programmatic dependent launch.

    Example:
        >>> hal.Kernel(fn=torch.nn.functional.silu, name="torch", deterministic=True).name
        'torch'
    """

    fn: Callable[..., Any] = attrs.field(validator=attrs.validators.is_callable())
    name: str = attrs.field(validator=attrs.validators.matches_re(r"[A-Za-z0-9_.+-]+"))
    supports: Callable[..., str | None] | None = attrs.field(default=None, validator=_callable)
    refused: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.min_len(1))
    )
    on_request: str | Callable[..., str | None] | None = attrs.field(
        default=None, validator=attrs.validators.optional(_reason)
    )
    inplace: Callable[..., Any] | None = attrs.field(default=None, validator=_callable)
    graph_safe: bool = attrs.field(default=False, validator=_flag)
    deterministic: bool = attrs.field(default=False, validator=_flag)
    batch_invariant: bool = attrs.field(default=False, validator=_flag)
    pdl: bool = attrs.field(default=False, validator=_flag)

    @property
    def conditional(self) -> bool:
        """Whether the arguments decide if it serves."""
        return self.supports is not None or callable(self.on_request)


class prepared:  # noqa: N801  # A decorator.
    """A kernel in two parts, of which the first is done once for all calls that are alike.

    The decorated function has the signature of the op. It looks at dtypes, shapes, strides, devices
    and plain values, and returns a function of the same parameters. hal calls the former when it
    plans a call, and the latter then and for every later call that is like it in all of that; it
    may differ in the data and in where they begin.

    Example:
        >>> @hal.prepared
        ... def double(x):
        ...     factor = torch.full((), 2.0)  # Say, the choice of a configuration.
        ...     return lambda x: x * factor
        >>> double(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, prepare: Callable[..., Callable[..., Any]]) -> None:
        self.prepare = prepare
        functools.update_wrapper(self, prepare)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Both parts for one call."""
        return self.prepare(*args, **kwargs)(*args, **kwargs)


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, the annotation itself otherwise."""
    union = typing.get_origin(annotation) in (typing.Union, type(int | str))
    members = typing.get_args(annotation) if union else (annotation,)
    return tuple(Sequence if typing.get_origin(m) is Sequence else m for m in members)


def _resolved(contract: Callable[..., Any]) -> tuple[tuple[Parameter, ...], tuple[Any, ...] | None]:
    """Parameters and results of a declaration, whose module imports its types for checkers only."""
    hints = typing.get_type_hints(
        contract, localns={"Tensor": Tensor, "torch": torch, "Sequence": Sequence}
    )
    parameters = tuple(
        Parameter(p.name, members(hints[p.name]), p.default, p.kind is p.KEYWORD_ONLY)
        for p in inspect.signature(contract).parameters.values()
    )
    several = typing.get_origin(hints["return"]) is tuple
    return parameters, typing.get_args(hints["return"]) if several else None


def _named(contract: Callable[..., Any]) -> Callable[..., Any]:
    """Let the errors of a declaration open with the op's name."""

    @functools.wraps(contract)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return contract(*args, **kwargs)
        except InvalidInput as error:
            kind, text = type(error), f"{contract.__name__}: {error.args[0]}"
        # Dynamo of torch 2.7 cannot trace ``from None``, which would do the same. An exception in
        # a variable of its own frame would keep the arguments.
        raise kind(text)

    return named


@overload
def op(contract: Contract, /) -> Contract: ...
@overload
def op(
    *, inplace: tuple[str, ...] = (), mutates: tuple[str, ...] = (), grad: bool = False
) -> Callable[[Contract], Contract]: ...
def op(contract: Any = None, /, **traits: Any) -> Any:
    """Declare an operator: its signature, its page, its argument checks and its fake kernel in one.

    Args:
        contract: A function whose body checks the arguments and returns results as empty tensors
            (or the tensors that it names in ``mutates``). It must also run on symbolic shapes.
        traits: ``inplace``, ``mutates`` and ``grad`` of ``Op``.
    """
    if contract is None:
        return functools.partial(op, **traits)
    named = _named(contract)
    signature = inspect.signature(contract)
    OPS[contract.__name__] = Op(contract.__name__, named, signature, *_resolved(contract), **traits)
    return named
