"""The call path: from ``hal.ops.<name>(...)`` to the kernel planned for these arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
from torch._C._dynamo.guards import TensorGuards  # pyright: ignore
from torch._C._functorch import peek_interpreter_stack

from hal.compat import untraced
from hal.form import Form, Plan
from hal.op import Op, prepared
from hal.policy import Policy, active, breaker, current
from hal.probe import device
from hal.select import Candidate, choose, in_capture, require_chosen
from hal.validate import (
    as_tuple,
    check_out,
    check_results,
    check_targets,
    check_types,
    check_unrecorded,
    first_tensor,
    tensors,
    validate,
)

__all__ = ["Record", "blame", "call", "call_below", "copy_results"]

# Shapes vary with the number of tokens; past this many plans of one op it is cheaper to plan again.
_MAX_PLANS = 4096
# A norm sees the hidden state, queries and keys in turn; a guard tried in vain costs about 0.1 us.
_MAX_RECENT = 4


@attrs.frozen
class Record:
    """One call, as ``hal.trace()`` records it, with the dtypes and shapes of its tensors."""

    op: str
    backend: str
    kernel: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def _described(value: Any) -> Any:
    """All that a check, a condition or a kernel's choice may depend on."""
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):  # Equal members can be of different types.
        return type(value), *value, *map(type, value)
    return type(value), value


def _ready(op: Op, function: Callable[..., Any], flat: Sequence[Any]) -> Callable[..., Any]:
    """A kernel's function for calls like this one."""
    return op.call(function.prepare, flat) if isinstance(function, prepared) else function


def _runner(form: Form, candidate: Candidate, flat: Sequence[Any]) -> Callable[..., Any]:
    """What runs a kernel in this form for calls like this one, with the op's own parameters."""
    kernel = candidate.offered
    assert kernel is not None
    if not form.inplace:
        return _ready(form.op, kernel.fn, flat)
    positions = form.op.overwritten
    function = _ready(form.op, kernel.inplace or kernel.fn, flat)
    copies = bool(form.op.inplace) and kernel.inplace is None
    single = form.op.results is None

    def run(*args: Any, **kwargs: Any) -> Any:
        results = function(*args, **kwargs)
        targets = tuple((*args, *kwargs.values())[i] for i in positions)
        if copies:
            copy_results(as_tuple(results), targets)
        return targets[0] if single else targets

    return run


def copy_results(results: tuple[Any, ...], targets: tuple[Any, ...]) -> None:
    """Copy each result that is there to its target."""
    for result, target in zip(results, targets, strict=True):
        if result is not None:
            target.copy_(result)


def blame(name: str, chosen: Candidate, error: Exception) -> None:
    """Add to an error which kernel raised it, and how to do without; Python 3.10 has no notes."""
    if hasattr(error, "add_note"):
        error.add_note(  # pyright: ignore
            f"raised by {chosen} for hal.ops.{name}; "
            f"HAL_DISABLE={chosen.backend}:{name.rstrip('_')} takes that kernel out"
        )


def execute(form: Form, flat: Sequence[Any]) -> Any:
    """Plan if need be, and run on real tensors, below autograd and every other transform.

    Raises:
        InvalidInput: Arguments that the declaration refuses; before anything runs.
        NoKernel: No kernel may serve.
        BackendError: The kernel's results are not as declared.
    """
    policy = current()
    try:
        key = (policy, *map(_described, flat))
        plan = form.plans.get(key)
    except (TypeError, RuntimeError):  # Not hashable, or without strides; the check names it.
        check_types(form.op, flat)
        raise
    promised, wanted = None, policy
    if plan is None:
        promised = validate(form.op, flat)
        wanted = in_capture(policy, first_tensor(flat))
        plan = _planned(form, flat, wanted)
    _trace(form, plan, flat, policy)
    try:
        results = form.op.call(plan.run, flat)
    except Exception as error:
        blame(form.name, plan.chosen, error)
        raise
    if promised is not None:
        if not form.inplace:
            check_results(form.op, plan.chosen, results, promised, flat)
        if wanted is policy:  # A plan for somebody's capture is not for what comes after it.
            _remember(form, key, plan, policy)
    return results


def _planned(form: Form, flat: Sequence[Any], policy: Policy) -> Plan:
    if form.inplace:
        check_targets(form.op, flat)
    choice = choose(form.op, device(first_tensor(flat)), policy, flat)
    chosen = require_chosen(choice, form.op)
    try:
        return Plan(chosen, _runner(form, chosen, flat))
    except Exception as error:
        blame(form.name, chosen, error)
        raise


def _remember(form: Form, key: tuple[Any, ...], plan: Plan, policy: Policy) -> None:
    if policy.traces:
        return
    if len(form.plans) >= _MAX_PLANS:
        form.plans.clear()
    form.plans[key] = plan


def _trace(form: Form, plan: Plan, flat: Sequence[Any], policy: Policy) -> None:
    for records in policy.traces:
        found = tensors(form.op, flat).values()
        records.append(
            Record(
                form.name,
                plan.chosen.backend,
                plan.chosen.kernel or "",
                tuple(str(tensor.dtype).removeprefix("torch.") for tensor in found),
                tuple(tuple(tensor.shape) for tensor in found),
            )
        )


def _guard(form: Form, flat: Sequence[Any]) -> Callable[..., bool]:
    """A check that the arguments that can be tensors are like these, in one call into torch.

    It compares type, dispatch keys (hence functorch and inference mode), dtype, device, sizes and
    strides.
    """
    values = [v for p, v in zip(form.op.parameters, flat, strict=True) if p.tensor]
    first: dict[int, int] = {}
    given, same, plain = [], [], []
    for place, value in enumerate(values):
        if not isinstance(value, Tensor):
            plain.append((place, type(value), value))
        elif id(value) in first:
            same.append((place, first[id(value)]))
        else:
            first[id(value)] = place
            given.append(value)
    guard = TensorGuards(
        *given,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in given],  # pyright: ignore[reportArgumentType]
        dynamic_dims_strides=[list(tensor.stride()) for tensor in given],  # pyright: ignore[reportArgumentType]
    ).check
    return guard if len(given) == len(values) else _check(guard, [*first.values()], same, plain)


def _check(
    guard: Callable[..., bool],
    places: list[int],
    same: list[tuple[int, int]],
    plain: list[tuple[int, type, Any]],
) -> Callable[..., bool]:
    """A check of all arguments by a guard of those at some places.

    Args:
        guard: It finds no tensor alike that it is given a second time.
        places: Where tensors are given for the first time.
        same: Where one is given again, and where first.
        plain: Where there are other values, with their types.
    """
    # It gives a tuple only for several.
    pick = operator.itemgetter(*places, places[0])

    def check(*args: Any) -> bool:
        for place, kind, value in plain:
            found = args[place]
            if found is not value and (type(found) is not kind or found != value):
                return False
        for place, other in same:
            if args[place] is not args[other]:
                return False
        return guard(*pick(args)[:-1])

    return check


def _first(entries: tuple[Any, ...] | None, count: int) -> tuple[Any, ...] | None:
    """The first of some entries, each of which ends in the next."""
    if entries is None or count == 0:
        return None
    return (*entries[:-1], _first(entries[-1], count - 1))


def _promote(form: Form, flat: Sequence[Any], recent: str) -> None:
    """Put the plan just used in front of the guards that the call path tries."""
    policy = active.get()
    plan = form.plans.get((current(), *map(_described, flat)))
    if plan is None:
        return
    found = tensors(form.op, flat).values()
    # A list may change by the next call, and never equals a tuple.
    plain = tuple(
        tuple(v) if isinstance(v, list) else v
        for p, v in zip(form.op.parameters, flat, strict=True)
        if not p.tensor
    )
    free = not any(tensor.requires_grad for tensor in found)
    rest = _first(getattr(form, recent), _MAX_RECENT - 1)
    setattr(form, recent, (_guard(form, flat), free, policy, *plain, plan.run, plan.chosen, rest))


def _needs_gradient(given: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def _needs_torch(given: Sequence[Tensor]) -> bool:
    """Whether anything but plain execution on real data is asked for."""
    return (
        _len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None  # pyright: ignore[reportUnnecessaryComparison]
        or any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta for t in given)
        or _needs_gradient(given)
    )


@untraced
def call(form: Form, flat: Sequence[Any], out: Any = None) -> Any:
    """What a function of ``hal.ops`` does when none of its recent plans fits."""
    policy, broken = active.get(), breaker.get()
    if policy is not None and broken is not None and form.op.name in policy.broken:
        return broken(form, flat, out)
    given = [value for value in flat if isinstance(value, Tensor)]
    if not isinstance(flat[0], Tensor):  # The first parameter of every op is a tensor.
        check_types(form.op, flat)
    if form.inplace or out is not None:
        check_unrecorded(form.name, (*given, *as_tuple(out)))
    if out is not None:
        return _call_into(form, flat, as_tuple(out), out)
    if _needs_torch(given):
        check_types(form.op, flat)
        return form.through(flat)
    results = execute(form, flat)
    _promote(form, flat, "recent")
    return results


def call_below(form: Form, flat: Sequence[Any], out: Any = None) -> Any:
    """What a torch operator's implementation does when none of its recent plans fits."""
    del out
    results = execute(form, flat)
    _promote(form, flat, "recent_below")
    return results


def _call_into(form: Form, flat: Sequence[Any], targets: tuple[Any, ...], out: Any) -> Any:
    """Compute, then copy to ``out``, which is checked before anything runs."""
    promised = validate(form.op, flat)
    check_out(form.name, targets, promised, first_tensor(flat).device)
    copy_results(as_tuple(call(form, flat)), targets)
    return out
