"""Triton's interpreter without what it does over and over: its kernels run 2.5 times as fast."""

from __future__ import annotations

import types

import triton
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["hasten"]

# Those whose sources were read; others are left as they are.
VERSIONS = ("3.6.", "3.9.")
# A launch patches those of the language's modules that are among the globals of its kernel.
WHOLE = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})


def hasten() -> None:
    """Patch the language for good, where each launch and each call inside of it would do so.

    Overflow is computed beside every operation on integers for an assertion that is made in debug
    mode alone, which the interpreter is not in.
    """
    if not triton.__version__.startswith(VERSIONS):
        return
    scope = interpreter._patch_lang(WHOLE)
    scope.restore = lambda: None
    interpreter._patch_lang = lambda fn: scope
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
