"""The call path: from ``hal.ops.<name>(...)`` to the kernel planned for these arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
from torch._C._dynamo.guards import TensorGuards  # pyright: ignore
from torch._C._functorch import peek_interpreter_stack

from hal.checks import describe
from hal.errors import BackendError, InvalidInput, InvalidType
from hal.op import OPS, Op, Parameter
from hal.policy import Policy, active, current, op_name
from hal.probe import device
from hal.select import Candidate, Choice, called, choose, offers, require_chosen

__all__ = ["Form", "Record", "bind", "call", "execute", "explain", "forms"]

# Shapes vary with the number of tokens; past this many plans of one op it is cheaper to plan again.
_MAX_PLANS = 4096
# A norm sees the hidden state, queries and keys in turn; each guard tried in vain costs about 0.1 us.
_MAX_RECENT = 4


@attrs.frozen
class Record:
    """One call, as ``hal.trace()`` records it; dtypes and shapes are those of the tensor arguments."""

    op: str
    backend: str
    kernel: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


@attrs.frozen(eq=False)
class Plan:
    """The kernel for some arguments; ``run`` takes them as the form's function does."""

    chosen: Candidate
    run: Callable[..., Any]


@attrs.define(eq=False)
class Form:
    """An op as it is called: with results returned, or in place.

    Attributes:
        name: The name in ``hal.ops``.
        inplace: Whether the results overwrite arguments.
        overload: The torch operator; set by ``hal.library``.
        traced: What Dynamo sees instead; set by ``hal.library``.
        through: The call by way of the torch operator; set by ``hal.library``.
        plans: Plans by all that a check or a condition may look at.
        recent: Guards on the latest arguments, with their plans.
    """

    op: Op
    name: str
    inplace: bool
    overload: Any = None
    traced: Any = None
    through: Any = None
    plans: dict[tuple[Any, ...], Plan] = attrs.Factory(dict)
    recent: list[tuple[Any, ...]] = attrs.Factory(list)


def forms(op: Op) -> list[Form]:
    """The functional form, the in-place form, or both."""
    functional = [] if op.mutates else [Form(op, op.name, False)]
    inplace = [Form(op, op.name if op.mutates else f"{op.name}_", True)]
    return functional + (inplace if op.mutates or op.inplace else [])


def overwritten(op: Op) -> tuple[int, ...]:
    """The positions of the parameters that the in-place form writes."""
    names = [parameter.name for parameter in op.parameters]
    return tuple(names.index(name) for name in op.inplace or op.mutates)


# ---- checking -------------------------------------------------------------------------------------


_ACCEPTED: dict[Any, tuple[type, ...]] = {
    float: (float, int, torch.SymFloat, torch.SymInt),
    int: (int, torch.SymInt),
    bool: (bool, torch.SymBool),
    Sequence: (tuple, list),
}


def _accepts(parameter: Parameter, value: Any) -> bool:
    if isinstance(value, bool) and bool not in parameter.types:
        return False
    return any(isinstance(value, _ACCEPTED.get(t, (t,))) for t in parameter.types)


def _check_types(op: Op, flat: Sequence[Any]) -> None:
    for parameter, value in zip(op.parameters, flat, strict=True):
        if not _accepts(parameter, value):
            names = " or ".join(getattr(t, "__name__", str(t)) for t in parameter.types)
            found = f"{value!r} of type {type(value).__name__}"
            raise InvalidType(f"{op.name}: {parameter.name} must be {names}, not {found}")


def _tensors(op: Op, flat: Sequence[Any]) -> dict[str, Tensor]:
    pairs = zip(op.parameters, flat, strict=True)
    return {p.name: value for p, value in pairs if isinstance(value, Tensor)}


def _check_devices(op: Op, tensors: dict[str, Tensor]) -> None:
    if len({tensor.device for tensor in tensors.values()}) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise InvalidInput(f"{op.name}: all tensors must be on one device; found {where}")


def _meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Results as a tuple, also when there is one."""
    return results if isinstance(results, tuple) else (results,)


def validate(op: Op, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Refuse bad arguments; return the results that the declaration promises, as meta tensors."""
    _check_types(op, flat)
    _check_devices(op, _tensors(op, flat))
    return as_tuple(called(op, op.contract, [_meta(value) for value in flat]))


def _facts(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor):
        return tensor if tensor is None else type(tensor)
    return list(tensor.shape), tensor.dtype, tensor.stride() if tensor.numel() else None


def _check_results(name: str, plan: Plan, results: Any, promised: tuple[Any, ...], where: Any) -> None:
    """Compare what a kernel returned with the declaration, once for each plan."""
    found = as_tuple(results)
    same = len(found) == len(promised) and all(
        _facts(got) == _facts(want) and (got is None or got.device == where)
        for got, want in zip(found, promised, strict=True)
    )
    if not same:
        got = ", ".join(_facts_text(each) for each in found)
        want = ", ".join(_facts_text(each) for each in promised)
        raise BackendError(
            f"{name}: {plan.chosen} returned {got}; declared is {want} on {where}; "
            f"HAL_DISABLE={plan.chosen.backend}:{name.rstrip('_')} takes it out"
        )


def _facts_text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{describe(value)} with strides {value.stride()} on {value.device}"


# ---- planning -------------------------------------------------------------------------------------


def _described(value: Any) -> Any:
    """All that a check, a condition or a kernel's choice may depend on."""
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device
    return (list, *value) if isinstance(value, list) else (type(value), value)


def _first_tensor(op: Op, flat: Sequence[Any]) -> Tensor:
    return next(value for value in flat if isinstance(value, Tensor))


def _runner(form: Form, candidate: Candidate) -> Callable[..., Any]:
    """What runs a kernel in this form, with the op's own parameters."""
    kernel = candidate.offered
    assert kernel is not None
    if not form.inplace:
        return kernel.fn
    positions, function = overwritten(form.op), kernel.inplace or kernel.fn
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
    except TypeError:  # An unhashable argument; the check of types names it.
        _check_types(form.op, flat)
        raise
    promised: tuple[Any, ...] | None = None
    if plan is None:
        promised = validate(form.op, flat)
        choice = choose(form.op, device(_first_tensor(form.op, flat)), policy, flat)
        chosen = require_chosen(choice, form.op)
        plan = Plan(chosen, _runner(form, chosen))
    _trace(form, plan, flat, policy)
    try:
        results = called(form.op, plan.run, flat)
    except Exception as error:
        blame(form.name, plan.chosen, error)
        raise
    if promised is not None:
        if not form.inplace:
            _check_results(form.name, plan, results, promised, _first_tensor(form.op, flat).device)
        _remember(form, key, plan, policy)
    return results


def _remember(form: Form, key: tuple[Any, ...], plan: Plan, policy: Policy) -> None:
    if policy.traces():
        return
    if len(form.plans) >= _MAX_PLANS:
        form.plans.clear()
    form.plans[key] = plan


def _trace(form: Form, plan: Plan, flat: Sequence[Any], policy: Policy) -> None:
    for records in policy.traces():
        tensors = _tensors(form.op, flat).values()
        records.append(
            Record(
                form.name,
                plan.chosen.backend,
                plan.chosen.kernel or "",
                tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors),
                tuple(tuple(tensor.shape) for tensor in tensors),
            )
        )


def _guard(form: Form, flat: Sequence[Any]) -> Callable[..., bool]:
    """A check that the arguments that can be tensors are like these, in one call into torch.

    It compares type, dispatch keys (hence functorch and inference mode), dtype, device, sizes and strides.
    """
    values = [v for p, v in zip(form.op.parameters, flat, strict=True) if p.tensor]
    tensors = [value for value in values if isinstance(value, Tensor)]
    guard = TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    ).check
    if len(tensors) == len(values):
        return guard
    absent = [None if isinstance(value, Tensor) else (type(value), value) for value in values]

    def check(*args: Any) -> bool:
        for arg, plain in zip(args, absent, strict=True):
            if plain is not None and (type(arg), arg) != plain:
                return False
        return guard(*[arg for arg in args if isinstance(arg, Tensor)])

    return check


def _promote(form: Form, flat: Sequence[Any]) -> None:
    """Put the plan just used in front of the guards that the call path tries."""
    policy = active.get()
    plan = form.plans.get((current(), *map(_described, flat)))
    if plan is None or len(flat) == 0:
        return
    tensors = _tensors(form.op, flat).values()
    plain = tuple(v for p, v in zip(form.op.parameters, flat, strict=True) if not p.tensor)
    free = not any(tensor.requires_grad for tensor in tensors)
    entry = (_guard(form, flat), free, policy, *plain, plan.run, plan.chosen)
    form.recent[:] = [entry, *form.recent[: _MAX_RECENT - 1]]


# ---- calling --------------------------------------------------------------------------------------


def _needs_gradient(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _needs_torch(tensors: Sequence[Tensor]) -> bool:
    """Whether anything but plain execution on real data is asked for."""
    return (
        _len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None
        or any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta for t in tensors)
        or _needs_gradient(tensors)
    )


def call(form: Form, flat: Sequence[Any], out: Any = None) -> Any:
    """What a function of ``hal.ops`` does when none of its recent plans fits."""
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if not tensors or (form.op.parameters[0].types == (Tensor,) and not isinstance(flat[0], Tensor)):
        _check_types(form.op, flat)
    if (form.inplace or out is not None) and _needs_gradient(tensors):
        raise InvalidInput(
            f"{form.name}: writing into given tensors has no gradient; "
            "call the op without out= and underscore, or under torch.no_grad()"
        )
    if out is not None:
        return _call_into(form, flat, as_tuple(out), out)
    if _needs_torch(tensors):
        _check_types(form.op, flat)
        return form.through(flat)
    results = execute(form, flat)
    _promote(form, flat)
    return results


def _call_into(form: Form, flat: Sequence[Any], targets: tuple[Any, ...], out: Any) -> Any:
    """Compute, then copy to ``out``; refused before anything runs if its tensors are not as declared."""
    promised = validate(form.op, flat)
    where = _first_tensor(form.op, flat).device
    fits = len(targets) == len(promised) and all(
        (want is None and got is None)
        or (
            isinstance(got, Tensor)
            and (got.shape, got.dtype, got.device) == (want.shape, want.dtype, where)
        )
        for got, want in zip(targets, promised, strict=True)
    )
    if not fits:
        want = ", ".join(describe(each) for each in promised)
        got = ", ".join(describe(each) for each in targets)
        raise InvalidInput(f"{form.name}: out must be {want} on {where}; out is {got}")
    copy_results(as_tuple(call(form, flat)), targets)
    return out


def bind(op: Callable[..., Any] | str, like: Tensor) -> Callable[..., Any]:
    """The kernel that serves ``op`` on the device of ``like`` here and now, as a plain callable.

    It skips every check, and autograd unless it is plain torch. Where kernels have conditions, the callable
    goes through them at each call, with the preferences that held when it was bound.

    Raises:
        NoKernel: No kernel may serve.

    Example:
        >>> norm = hal.bind(hal.ops.rms_norm, like=torch.zeros(1))
        >>> norm(torch.ones(1, 2), None)
        tensor([[1.0000, 1.0000]])
    """
    declared, policy, where = OPS[op_name(op)], current(), device(like)
    chosen = require_chosen(choose(declared, where, policy), declared)
    assert chosen.offered is not None
    conditional = any(offer.kernel and offer.kernel.supports for offer in offers(declared, where))
    if not conditional:
        return chosen.offered.fn

    def bound(*args: Any, **kwargs: Any) -> Any:
        flat = flatten(declared, args, kwargs)
        served = require_chosen(choose(declared, where, policy, flat), declared)
        assert served.offered is not None
        return served.offered.fn(*args, **kwargs)

    return bound


def flatten(op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """A call's arguments in the order of the signature, with defaults.

    Raises:
        InvalidType: Arguments that do not fit the signature.
    """
    try:
        bound = op.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidType(f"{op.name}{op.signature}: {error}") from None
    bound.apply_defaults()
    return list(bound.arguments.values())


def explain(op: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Choice:
    """Which kernel would serve this call, and why not the others, from the code that chooses.

    Args:
        op: A function of ``hal.ops`` or its name.
        args: The op's arguments; meta tensors do, with the choice explained for the current device. Without
            any, conditions count as met.
        kwargs: The same by keyword.

    Raises:
        InvalidInput: Arguments that the op refuses.

    Example:
        >>> hal.explain("silu_and_mul", torch.zeros(2, 8)).chosen.kernel
        'torch'
    """
    declared = OPS[op_name(op)]
    if not args and not kwargs:
        return choose(declared, device(), current())
    flat = flatten(declared, args, kwargs)
    validate(declared, flat)
    tensor = _first_tensor(declared, flat)
    return choose(declared, device() if tensor.is_meta else device(tensor), current(), flat)
