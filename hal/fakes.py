"""Fake kernels for operators of others, as long as these have none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._library.fake_impl import FakeImplCtx, set_ctx_getter
from torch._ops import OpOverload
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["fake_if_exists"]

Fake = TypeVar("Fake", bound=Callable[..., Any])

_FAKES: dict[str, Callable[..., Any]] = {}

# With one of these an operator has what stands for a fake kernel, or is never seen itself.
_OWN = ("Meta", "CompositeImplicitAutograd")


def _lacking(op: OpOverload) -> bool:
    """Whether there is a fake here for an operator that has none of its own.

    FakeTensor asks this where ``torch.library.register_fake`` has left it none.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key  # pyright: ignore[reportPrivateUsage]
    return op.name() in _FAKES and not any(has(op.name(), key) for key in _OWN)


def _run(mode: FakeTensorMode, op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Call the fake as ``register_fake`` does: ``torch.library.get_ctx`` is there for it."""
    context = FakeImplCtx(mode, op)
    with set_ctx_getter(lambda: context), mode:
        return _FAKES[op.name()](*args, **kwargs)


def fake_if_exists(name: str) -> Callable[[Fake], Fake]:
    """Give an operator of another library a fake kernel if it exists and has none.

    Whether it does is asked whenever a fake tensor comes to the operator, so the library may be
    imported later; its own fake or meta kernel always wins, and nothing stands in the way of its
    being registered. It serves ``torch.compile`` and export, not tensors on the meta device.

    Args:
        name: The operator, ``"namespace::name"`` or ``"namespace::name.overload"``.

    Returns:
        A decorator for the fake kernel, which is what ``torch.library.register_fake`` takes: it has
        the operator's parameters, and makes empty results.

    Raises:
        ValueError: ``name`` is not an operator's.

    Example:
        >>> @hal.fake_if_exists("acme::gate")
        ... def gate(x):
        ...     return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    """
    if not re.fullmatch(r"\w+::\w+(\.\w+)?", name):
        raise ValueError(f"an operator is named as 'namespace::name', not {name!r}")

    def given(fake: Fake) -> Fake:
        if not _FAKES:
            register_op_impl(_lacking)(_run)
        _FAKES[name] = fake
        return fake

    return given
