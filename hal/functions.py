"""The functions of ``hal.ops``: signature, docstring and fast path of each form of an op."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
from torch._ops import _OpNamespace  # pyright: ignore[reportPrivateUsage]

from hal import ops
from hal.dispatch import blame, call, call_below
from hal.form import Form, forms
from hal.library import register
from hal.op import OPS, Parameter
from hal.plugins import lock
from hal.policy import active

__all__ = ["FORMS", "install"]

# The kernel planned for the latest arguments runs if one call into torch finds these alike. What
# that cannot see is asked beside it: dispatch modes, the active policy, plain arguments, and
# whether gradients are recorded. The names are closed over, since Dynamo looks a function's globals
# up in the module it says it is from.
_TEMPLATE = """
def make({names}):
    def {name}({signature}):
        if compiling():
            return traced(({flat}), {out})
        if {no_out}not modes():
            policy, entry = active(), form.{recent}
            while entry:
                check, free, stated, {stored}run, chosen, entry = entry
                if stated is policy and {same}(free or not grad()) and check({tensors}):
                    try:
                        return run({arguments})
                    except Exception as error:
                        blame(name, chosen, error)
                        raise
        return call(form, ({flat}), {out})
    return {name}
"""

# Equal values of other types, such as 1 and True, may be refused.
_SAME = "({0} is {0}_then or type({0}) is type({0}_then) and {0} == {0}_then{1}) and "
_MEMBERS = " and {{*map(type, {0})}} <= {{int}}"


def _same(parameter: Parameter) -> str:
    members = _MEMBERS.format(parameter.name) if parameter.sequence else ""
    return _SAME.format(parameter.name, members)


def _source(form: Form, names: str, recent: str) -> str:
    parameters = form.op.parameters
    plain = [p.name for p in parameters if not p.tensor]
    return _TEMPLATE.format(
        names=names,
        name=form.name,
        recent=recent,
        signature=_parameters(form),
        flat="".join(f"{p.name}, " for p in parameters),
        out="None" if form.inplace else "out",
        no_out="" if form.inplace else "out is None and ",
        stored="".join(f"{name}_then, " for name in plain),
        same="".join(_same(p) for p in parameters if not p.tensor),
        tensors=", ".join(p.name for p in parameters if p.tensor),
        arguments=", ".join(f"{p.name}={p.name}" if p.keyword_only else p.name for p in parameters),
    )


def _parameters(form: Form) -> str:
    """The parameter list as source; defaults are names, so that any object can be one."""
    texts: list[str] = []
    starred = False
    for parameter in form.op.parameters:
        if parameter.keyword_only and not starred:
            texts.append("*")
            starred = True
        required = parameter.default is inspect.Parameter.empty
        texts.append(parameter.name if required else f"{parameter.name}=_{parameter.name}")
    if not form.inplace:
        texts += ["out=None"] if starred else ["*", "out=None"]
    return ", ".join(texts)


def _signature(form: Form) -> inspect.Signature:
    """The op's signature, with ``out`` where the form has it."""
    signature = form.op.signature
    if form.inplace:
        return signature
    # The annotations of declarations are text.
    annotation = f"{signature.return_annotation} | None"
    out = inspect.Parameter(
        "out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
    return signature.replace(parameters=[*signature.parameters.values(), out])


def _doc(form: Form) -> str | None:
    doc = inspect.getdoc(form.op.contract)
    if not form.inplace or form.op.mutates:
        return doc
    written = " and ".join(f"``{name}``" for name in form.op.inplace)
    return f"``hal.ops.{form.op.name}`` in place: overwrites {written} and returns what it wrote."


def _no() -> bool:
    return False


# What the implementation of the torch operator has in place of the public function's names.
_BELOW = {"compiling": _no, "modes": _no, "grad": _no, "call": call_below}


def _function(form: Form, recent: str, changes: dict[str, Any]) -> Callable[..., Any]:
    defaults = {
        f"_{p.name}": p.default
        for p in form.op.parameters
        if p.default is not inspect.Parameter.empty
    }
    closed = (
        defaults
        | {
            "compiling": torch.compiler.is_dynamo_compiling,
            "modes": _len_torch_dispatch_stack,
            "grad": torch.is_grad_enabled,
            "active": active.get,
            "name": form.name,
            "form": form,
            "traced": form.traced,
            "call": call,
            "blame": blame,
        }
        | changes
    )
    namespace: dict[str, Any] = {"__name__": ops.__name__}
    source = _source(form, ", ".join(closed), recent)
    exec(compile(source, f"<hal.ops.{form.name}>", "exec"), namespace)
    function = namespace["make"](**closed)
    function.__qualname__ = form.name
    function.__doc__ = _doc(form)
    function.__signature__ = _signature(form)
    return function


FORMS: dict[str, Form] = {form.name: form for op in OPS.values() for form in forms(op)}
"""Every form of every op by its name in ``hal.ops``."""


_made = False


def _make() -> None:
    """Register every form with torch and put its function into ``hal.ops``, once."""
    global _made
    with lock:
        if _made:  # Or in the making, by this very thread.
            return
        _made = True
        for form in FORMS.values():
            form.below = _function(form, "recent_below", _BELOW)
            register(form)
            setattr(ops, form.name, _function(form, "recent", {}))


class _Namespace(_OpNamespace):
    """``torch.ops.hal``: at its first use the operators are made."""

    # A pickled graph finds an operator by the module that it is said to be from.
    __module__ = _OpNamespace.__module__

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            _make()
        return super().__getattr__(name)


def _attribute(name: str) -> Any:
    """What ``hal.ops`` does not have yet."""
    if name in FORMS:
        _make()
        return vars(ops)[name]
    near = [] if name.startswith("_") else difflib.get_close_matches(name, FORMS, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise AttributeError(f"module {ops.__name__!r} has no attribute {name!r}{hint}")


def install() -> None:
    """Let the first use of ``hal.ops`` or ``torch.ops.hal`` make the operators.

    That takes longer than all else that importing hal does.
    """
    ops.__all__ += FORMS
    ops.__getattr__ = _attribute  # pyright: ignore[reportAttributeAccessIssue]
    # A shell that completes names asks for them before it uses any.
    ops.__dir__ = lambda: list(ops.__all__)  # pyright: ignore[reportAttributeAccessIssue]
    torch.ops.hal = _Namespace("hal")  # pyright: ignore[reportAttributeAccessIssue]
