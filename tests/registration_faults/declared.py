"""Faults of declarations, which are the fake kernels too: what they say of the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from registration_faults.plant import Around, Fault

AGAINST = "returned .*; declared is "


def _silu(make: Callable[[Tensor, tuple[Any, ...]], Tensor]) -> Around:
    """A declaration of a gate that makes its result from the input and the right shape."""

    def contract(genuine: Any, x: Tensor) -> Tensor:
        return make(x, tuple(genuine(x).shape))

    return contract


def _fault(
    name: str, check: str, complaint: str, make: Callable[[Tensor, tuple[Any, ...]], Tensor]
) -> Fault:
    return Fault(name, "silu_and_mul", check, complaint, contract=_silu(make))


def _backwards(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides that let the first dimension run fastest."""
    return tuple(math.prod(shape[:i]) for i in range(len(shape)))


def _as_input(x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    if x.is_contiguous():
        return x.new_empty(shape)
    return x.new_empty_strided(shape, _backwards(shape))


def _offset(x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    return x.new_empty(math.prod(shape) + 1)[1:].view(shape)


def _rows(x: Tensor, shape: tuple[Any, ...], count: Any) -> Tensor:
    """The right result for matrices of ``count`` rows; other tensors are left alone."""
    return x.new_empty((count, shape[1]) if len(shape) == 2 else shape)


def _hinted(size: Any) -> int:
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _when(x: Tensor, shape: tuple[Any, ...], wrong: bool) -> Tensor:
    return x.new_empty((*shape[:-1], shape[-1] + 1) if wrong else shape)


def _only_real(genuine: Any, x: Tensor) -> Tensor:
    if isinstance(x, FakeTensor) and x.dim() == 3:
        raise NotImplementedError("no shapes of three dimensions")
    return genuine(x)


SHAPES = [
    _fault("another shape", "fake", AGAINST, lambda x, s: x.new_empty(x.shape)),
    _fault("another rank", "fake", AGAINST, lambda x, s: x.new_empty((1, *s))),
    _fault("another dtype", "fake", AGAINST, lambda x, s: x.new_empty(s, dtype=torch.float64)),
    _fault(
        "another device",
        "fake",
        "without data it says .*device\\(type='meta'",
        lambda x, s: torch.empty(s, dtype=x.dtype, device="meta"),
    ),
    _fault(
        "another stride",
        "fake",
        AGAINST,
        lambda x, s: x.new_empty_strided(s, _backwards(s)),
    ),
    _fault("another storage offset", "opcheck", "mismatched storage offset", _offset),
    _fault("a stride that is right for contiguous input only", "fake", AGAINST, _as_input),
    _fault(
        "right for matrices only", "fake", AGAINST, lambda x, s: x.new_empty((x.shape[0], s[-1]))
    ),
    _fault(
        "right for float32 only",
        "fake",
        AGAINST,
        lambda x, s: x.new_empty(s, dtype=torch.float32),
    ),
    Fault(
        "the strides of transposed input",
        "relu_squared",
        "fake",
        AGAINST,
        contract=lambda genuine, x: torch.empty_like(genuine(x).as_strided(x.shape, x.stride())),
    ),
    Fault(
        "a column-major scale declared row-major",
        "per_token_group_quant",
        "fake",
        AGAINST,
        contract=lambda genuine, x, *a, **k: tuple(
            r.new_empty(r.shape) for r in genuine(x, *a, **k)
        ),
    ),
]

SIZES = [
    _fault("three rows, whatever comes", "fake", AGAINST, lambda x, s: _rows(x, s, 3)),
    _fault(
        "int() of the rows",
        "symbolic",
        "rows of x is baked in",
        lambda x, s: _rows(x, s, int(s[0])),
    ),
    _fault(
        "len() of the input", "symbolic", "rows of x is baked in", lambda x, s: _rows(x, s, len(x))
    ),
    _fault(
        "a range over the rows",
        "symbolic",
        "rows of x is baked in",
        lambda x, s: _rows(x, s, sum(1 for _ in range(s[0]))),
    ),
    _fault(
        "three rows for sizes that are no int",
        "symbolic",
        "symbolic sizes say",
        lambda x, s: _rows(x, s, s[0] if isinstance(s[0], int) else 3),
    ),
    _fault(
        "the rows that a symbol stood for at first",
        "symbolic",
        "symbolic sizes say",
        lambda x, s: _rows(x, s, _hinted(s[0])),
    ),
    _fault(
        "sixteen columns, whatever comes", "fake", AGAINST, lambda x, s: x.new_empty((*s[:-1], 16))
    ),
    _fault(
        "int() of the columns",
        "symbolic",
        "a size is baked in",
        lambda x, s: x.new_empty((*s[:-1], int(s[-1]))),
    ),
    _fault(
        "int() of the rows of three dimensions",
        "symbolic",
        "rows of x is baked in",
        lambda x, s: x.new_empty((int(s[0]), *s[1:]) if len(s) == 3 else s),
    ),
    _fault(
        "a stride from the columns that a symbol stood for at first",
        "symbolic",
        "symbolic sizes say",
        lambda x, s: x.new_empty_strided(s, (_hinted(s[1]), 1)) if len(s) == 2 else x.new_empty(s),
    ),
    _fault("wrong for four rows", "fake", AGAINST, lambda x, s: _when(x, s, x.shape[:1] == (4,))),
    _fault("wrong above four rows", "fake", AGAINST, lambda x, s: _when(x, s, s[:1] > (4,))),
    _fault(
        "wrong for a hundred rows",
        "symbolic",
        "which 100 rows do not fulfil",
        lambda x, s: _when(x, s, len(s) == 2 and s[0] == 100),
    ),
    _fault(
        "wrong above three hundred rows",
        "symbolic",
        "is assumed, which 1023 rows do not fulfil",
        lambda x, s: _when(x, s, len(s) == 2 and s[0] > 300),
    ),
]

DATA = [
    _fault(
        "data is read",
        "fake",
        "DataDependentOutput|meta tensors",
        lambda x, s: x.new_empty(s).fill_(x.sum().item()),
    ),
    _fault(
        "a shape that depends on data",
        "fake",
        "nonzero",
        lambda x, s: x.new_empty(len(x.nonzero())),
    ),
    Fault(
        "refused without data, where real data is taken",
        "silu_and_mul",
        "fake",
        "NotImplementedError: no shapes of three dimensions",
        contract=_only_real,
    ),
]


def _ids(genuine: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    weights, ids = genuine(*args, **kwargs)
    return weights, ids.long()


def _swapped(genuine: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    first, second = genuine(*args, **kwargs)
    return second, first


def _swapped_dtypes(genuine: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    first, second = genuine(*args, **kwargs)
    return first.to(second.dtype), second.to(first.dtype)


def _first(genuine: Any, *args: Any, **kwargs: Any) -> Tensor:
    return genuine(*args, **kwargs)[0]


def _twice(genuine: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    result = genuine(*args, **kwargs)
    return result, result.clone()


RESULTS = [
    Fault("int64 ids, which are int32", "topk_softmax", "fake", AGAINST, contract=_ids),
    Fault("two results swapped", "per_token_group_quant", "fake", AGAINST, contract=_swapped),
    Fault(
        "the dtypes of two results swapped",
        "per_token_group_quant",
        "fake",
        AGAINST,
        contract=_swapped_dtypes,
    ),
    Fault(
        "a result too many",
        "silu_and_mul",
        "fake",
        AGAINST,
        contract=_twice,
        traits={"results": (Tensor, Tensor), "grad": False},
    ),
    Fault(
        "a result too few",
        "per_token_group_quant",
        "fake",
        AGAINST,
        contract=_first,
        traits={"results": None},
    ),
    Fault(
        "the argument is the result without data",
        "relu_squared",
        "opcheck",
        "alias",
        contract=lambda genuine, x: x if x.is_contiguous() else genuine(x),
    ),
    Fault(
        "the argument is the result, with data and without",
        "relu_squared",
        "opcheck",
        "returned its argument x, not a new tensor",
        contract=lambda genuine, x: x if x.is_contiguous() else genuine(x),
        kernel=lambda genuine, x: x if x.is_contiguous() else genuine(x),
    ),
    Fault(
        "a view of the argument is the result, with data and without",
        "silu_and_mul",
        "fake",
        "returned a view of its argument x, not a new tensor",
        contract=lambda genuine, x: x[..., : genuine(x).shape[-1]],
        kernel=lambda genuine, x: x[..., : genuine(x).shape[-1]],
    ),
]

FAULTS = [*SHAPES, *SIZES, *DATA, *RESULTS]
