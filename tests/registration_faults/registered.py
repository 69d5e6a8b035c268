"""Faults of the registration with torch: schema, implementation, fake kernel and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from hal import library
from registration_faults.plant import Fault, Patch


def _nothing(genuine: Any) -> Any:
    return lambda *args, **kwargs: None


def _fault(name: str, op: str, check: str, complaint: str, *patches: Patch) -> Fault:
    return Fault(name, op, check, complaint, patches=patches)


def _raising(genuine: Any) -> Any:
    def shapes(*_: Any) -> Any:
        raise NotImplementedError("no shapes")

    return lambda *args: shapes


def _refusing(genuine: Any) -> Any:
    """The real kernel takes what shapes without data are not had for."""

    def make(*given: Any) -> Any:
        shapes = genuine(*given)

        def refuse(x: Any) -> Any:
            if x.dim() == 3:
                raise NotImplementedError("no shapes of three dimensions")
            return shapes(x)

        return refuse

    return make


FAKE = [
    _fault(
        "no fake kernel",
        "silu_and_mul",
        "fake",
        "NoKernel: no kernel can serve planted_.* on meta",
        Patch(torch.library, "register_fake", _nothing),
    ),
    _fault(
        "a fake kernel that raises",
        "silu_and_mul",
        "fake",
        "NotImplementedError: no shapes",
        Patch(library, "_shapes", _raising),
    ),
    _fault(
        "a fake kernel that raises where the real one does not",
        "silu_and_mul",
        "fake",
        "NotImplementedError: no shapes of three dimensions",
        Patch(library, "_shapes", _refusing),
    ),
]


def _marking(marks: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Patch:
    """Another choice of the parameters that the schema says are written."""
    return Patch(
        library,
        "_define",
        lambda genuine: (
            lambda name, signature, mutated: genuine(
                name, signature, marks(tuple(mutated)) if mutated else ()
            )
        ),
    )


def _always_marking(genuine: Any) -> Any:
    return lambda name, signature, mutated: genuine(name, signature, ("x",))


def _respelled(name: str, **changes: Any) -> Patch:
    """A schema in which an argument is another."""

    def make(genuine: Any) -> Any:
        def prototype(*args: Any) -> inspect.Signature:
            given = genuine(*args).parameters.values()
            changed = [p.replace(**changes) if p.name == name else p for p in given]
            return inspect.Signature(changed, return_annotation=args[1])

        return prototype

    return Patch(library, "prototype", make)


SCHEMA = [
    _fault(
        "a mutation that the schema does not state",
        "fused_add_rms_norm",
        "opcheck",
        "mutat|states that it writes",
        _marking(lambda _: ()),
    ),
    _fault(
        "one of two mutations that the schema does not state",
        "fused_add_rms_norm",
        "opcheck",
        "mutat|states that it writes",
        _marking(lambda names: names[:1]),
    ),
    _fault(
        "a mutation in the schema that never happens",
        "fused_add_rms_norm",
        "opcheck",
        "states that it writes",
        _marking(lambda names: (*names, "weight")),
    ),
    _fault(
        "a mutation in the schema of an op that has none",
        "per_token_quant",
        "opcheck",
        r"states that it writes \['x'\], not \[\]",
        Patch(library, "_define", _always_marking),
    ),
    _fault(
        "a mutation stated of the wrong argument",
        "mul_add",
        "opcheck",
        "mutat|states that it writes",
        _marking(lambda _: ("y",)),
    ),
    _fault(
        "another default in the schema",
        "rms_norm",
        "opcheck",
        "eps is 1e-05 by default",
        _respelled("eps", default=1e-5),
    ),
    _fault(
        "another dtype by default in the schema",
        "per_token_quant",
        "opcheck",
        "dtype is torch.int8 by default",
        _respelled("dtype", default=torch.int8),
    ),
    _fault(
        "an int in the schema for a float",
        "mul_add",
        "opcheck",
        "Expected .* 'int'",
        _respelled("scale", annotation=int),
    ),
    _fault(
        "a tensor in the schema that may be absent",
        "rms_norm",
        "opcheck",
        "in the schema weight may be absent: False, not True",
        _respelled("weight", annotation=torch.Tensor),
    ),
]


def _computing(change: Callable[..., Any]) -> Patch:
    """An implementation in which something happens to the arguments or the results."""

    def make(genuine: Any) -> Any:
        def implementation(*given: Any) -> Any:
            function = genuine(*given)
            return lambda *arguments: change(function, *arguments)

        return implementation

    return Patch(library, "implementation", make)


def _elsewhere(genuine: Any) -> Any:
    """What is for every device becomes what is for one that is not here."""

    def impl(name: str, function: Any, key: str, **rest: Any) -> None:
        genuine(name, function, key.replace("CompositeExplicitAutograd", "CUDA"), **rest)

    return impl


IMPLEMENTATION = [
    _fault(
        "a keyword that the implementation drops",
        "per_token_quant",
        "opcheck",
        "computes another result|Dtypes",
        _computing(lambda function, x, *_: function(x)),
    ),
    _fault(
        "an optional tensor that the implementation takes for absent",
        "rms_norm",
        "opcheck",
        "the operator computes another result 0",
        _computing(lambda function, x, weight, *rest: function(x, None, *rest)),
    ),
    _fault(
        "a float that the implementation truncates",
        "mul_add",
        "opcheck",
        "the operator computes another result 0",
        _computing(lambda function, x, y, scale: function(x, y, float(int(scale)))),
    ),
    _fault(
        "two arguments that the implementation swaps",
        "layer_norm",
        "opcheck",
        "the operator computes another result 0",
        _computing(lambda function, x, weight, bias, *rest: function(x, bias, weight, *rest)),
    ),
    _fault(
        "two results that the implementation swaps",
        "per_token_quant",
        "opcheck",
        "computes another result 0",
        _computing(lambda function, *arguments: function(*arguments)[::-1]),
    ),
    _fault(
        "an implementation for another device alone",
        "silu_and_mul",
        "opcheck",
        "Could not run 'hal::planted_",
        Patch(
            library._LIBRARY,
            "impl",
            _elsewhere,
        ),
    ),
]


def _pulling(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Patch:
    """Gradients of a call's arguments that are changed."""

    def make(genuine: Any) -> Any:
        def backward(op: Any) -> Any:
            pulled = genuine(op)
            return lambda ctx, *grads: change(pulled(ctx, *grads))

        return backward

    return Patch(library, "backward", make)


GRADIENTS = [
    Fault(
        "no gradients",
        "silu_and_mul",
        "gradients",
        "",
        # Those of torch's functions would come of themselves.
        kernel=lambda genuine, x: genuine(x.detach()),
        patches=(Patch(torch.library, "register_autograd", _nothing),),
    ),
    _fault(
        "no gradients, by torch's own check",
        "silu_and_mul",
        "opcheck",
        "",
        Patch(torch.library, "register_autograd", _nothing),
    ),
    _fault(
        "the gradients of two arguments swapped",
        "layer_norm",
        "gradients",
        "relative norm|off by up to",
        _pulling(lambda found: (found[0], found[2], found[1], *found[3:])),
    ),
    _fault(
        "a gradient of zero",
        "silu_and_mul",
        "gradients",
        "relative norm 1.00|off by up to",
        _pulling(lambda found: tuple(g if g is None else g * 0 for g in found)),
    ),
    _fault(
        "a gradient that is left out",
        "rms_norm",
        "gradients",
        "relative norm 1.00|off by up to",
        _pulling(lambda found: (found[0], None, *found[2:])),
    ),
]

FAULTS = [*FAKE, *SCHEMA, *IMPLEMENTATION, *GRADIENTS]
