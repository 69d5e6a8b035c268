"""What Inductor makes of the ops: fused with their surroundings, for any number of rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._inductor.exc
from torch import Tensor

import hal
from hal.op import OPS
from hal.validate import as_tuple
from offering import NATIVE, backend, installed, kernel
from thinned import thinned


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    # pytest records all that is logged, and torch logs each step of its compiler.
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


# Inductor imports parts of torch that torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def code_of(compiled: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    from torch._inductor.utils import run_and_get_code

    result, codes = run_and_get_code(compiled, *args)
    assert len(codes) == 1
    return result, codes[0]


def called(code: str) -> str:
    """The part of generated code that runs at each call: a method, in torch 2.7 a function."""
    return re.split(r"^ *def call\((?:self, )?args\)", code, flags=re.MULTILINE)[1]


def kernels(code: str) -> list[str]:
    """The kernels that generated code calls, one entry a call."""
    return re.findall(r"^ +(cpp_fused\w*)\(", called(code), re.MULTILINE)


def scaled(x: Tensor) -> Tensor:
    return hal.ops.silu_and_mul(x) * 2 + 1


def test_the_reference_is_fused_with_what_is_around_it_into_one_kernel() -> None:
    x = torch.randn(4, 32)
    found, code = code_of(torch.compile(scaled, fullgraph=True), x)
    torch.testing.assert_close(found, scaled(x))
    assert len(kernels(code)) == 1
    assert "torch.ops.hal" not in code
    assert "extern_kernels" not in called(code)


def test_another_kernel_is_called_and_no_code_of_the_reference_is_used_again() -> None:
    def seven(x: Tensor) -> Tensor:
        return x.new_full((x.shape[0], x.shape[1] // 2), 7)

    x = torch.randn(4, 32)
    reference, _ = code_of(torch.compile(scaled, fullgraph=True), x)
    torch._dynamo.reset()
    # Kept, since torch 2.7 may crash where a function was compiled by a compiler that is gone.
    compiled = torch.compile(scaled, fullgraph=True)
    made = hal.Kernel(fn=seven, name="seven")
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        found, code = code_of(compiled, x)
        torch.testing.assert_close(found, torch.full((4, 16), 15.0))
        assert "torch.ops.hal.silu_and_mul.default" in code
        with hal.use("native"):
            torch.testing.assert_close(compiled(x), reference)
        torch.testing.assert_close(compiled(x), found)


def gated(rows: int) -> tuple[Any, ...]:
    return (torch.randn(rows, 16),)


def normed(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 16), torch.rand(16)


def added(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 16), torch.randn(rows, 16), torch.rand(16)


def shifted(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 16), torch.rand(16), torch.rand(16)


def rotary(rows: int) -> tuple[Any, ...]:
    query, key = torch.randn(rows, 4, 8), torch.randn(rows, 2, 8)
    return torch.arange(rows), query, key, torch.randn(32, 8)


def store(rows: int) -> tuple[Any, ...]:
    caches = torch.zeros(8, 4, 2, 8), torch.zeros(8, 4, 2, 8)
    return torch.randn(rows, 2, 8), torch.randn(rows, 2, 8), *caches, torch.arange(rows) * 2 - 1


def varlen(rows: int) -> tuple[Any, ...]:
    q, k, v = torch.randn(rows, 4, 8), torch.randn(rows, 2, 8), torch.randn(rows, 2, 8)
    starts = torch.tensor([0, 2, rows])
    return q, k, v, starts, starts, 16, 16


def paged(rows: int) -> tuple[Any, ...]:
    lens = torch.arange(rows) % 7 + 1
    table = torch.arange(rows * 2).view(rows, 2)
    cache = torch.randn(2, 2 * rows, 4, 2, 8)
    return torch.randn(rows, 4, 8), cache[0], cache[1], table, lens, torch.arange(rows + 1), 1, 8


def states(rows: int) -> tuple[Any, ...]:
    out, lse = torch.randn(2, rows, 4, 8), torch.randn(2, rows, 4)
    return out[0], lse[0], out[1], lse[1]


def probabilities(rows: int) -> tuple[Any, ...]:
    return torch.rand(rows, 33).softmax(-1), torch.arange(rows), torch.tensor(3)


def limits(rows: int) -> tuple[Any, ...]:
    return torch.rand(rows, 33), torch.linspace(0.2, 0.9, rows)


def ranks(rows: int) -> tuple[Any, ...]:
    return torch.rand(rows, 33), torch.arange(rows)


def bits(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 33), torch.randint(-(2**31), 2**31, (rows, 2), dtype=torch.int32)


def draw(probs: Tensor, seed: Tensor, offset: Tensor) -> Tensor:
    return hal.ops.sample(probs, seed=seed, offset=offset)


def heated(logits: Tensor, temperature: Tensor) -> Tensor:
    return hal.ops.softmax(logits, temperature=temperature)


CASES: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]] = {
    "silu_and_mul": (hal.ops.silu_and_mul, gated),
    "gelu_and_mul": (hal.ops.gelu_and_mul, gated),
    "gelu_tanh_and_mul": (hal.ops.gelu_tanh_and_mul, gated),
    "rms_norm": (hal.ops.rms_norm, normed),
    "fused_add_rms_norm": (hal.ops.fused_add_rms_norm, added),
    "gemma_rms_norm": (hal.ops.gemma_rms_norm, normed),
    "gemma_fused_add_rms_norm": (hal.ops.gemma_fused_add_rms_norm, added),
    "layer_norm": (hal.ops.layer_norm, shifted),
    "rotary_embedding": (hal.ops.rotary_embedding_, rotary),
    "store_kv_cache_": (hal.ops.store_kv_cache_, store),
    "varlen_attention": (hal.ops.varlen_attention, varlen),
    "paged_attention": (hal.ops.paged_attention, paged),
    "merge_attention_states": (hal.ops.merge_attention_states, states),
    "softmax": (heated, limits),
    "top_k_renorm": (hal.ops.top_k_renorm, ranks),
    "top_p_renorm": (hal.ops.top_p_renorm, limits),
    "min_p_renorm": (hal.ops.min_p_renorm, limits),
    "sample": (draw, probabilities),
    "apply_token_bitmask_": (hal.ops.apply_token_bitmask_, bits),
}
DYNAMIC = "rms_norm", "rotary_embedding", "paged_attention", "sample"


# Families that Inductor is not tried on here; test_compile has their ops under aot_eager.
UNTRIED = {"experts", "gemv", "int4", "matmul", "mla", "moe", "quant", "quant_fused"}


def family(op: str) -> str:
    return OPS[op].contract.__module__.rpartition(".")[2]


def test_every_other_family_is_tried_here() -> None:
    assert set(map(family, CASES)) == set(map(family, OPS)) - UNTRIED


def compare(op: str, compiled: Callable[..., Any], rows: int) -> None:
    function, make = CASES[op]
    arguments = make(rows)
    own = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    found, wanted = compiled(*arguments), function(*own)
    for got, want in zip(as_tuple(found), as_tuple(wanted), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)
    for got, want in zip(arguments, own, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("op", thinned(sorted(CASES.keys() - set(DYNAMIC)), 3))
def test_compiled_code_computes_what_eager_computes(op: str) -> None:
    compare(op, torch.compile(CASES[op][0], fullgraph=True), 5)


@pytest.mark.xfail(
    strict=True,
    raises=torch._inductor.exc.InductorError,
    reason="Inductor's C++ loses a buffer when a row's sum and its norm are both copied to inputs",
)
def test_an_inplace_norm_with_residual_computes_what_eager_computes() -> None:
    compiled = torch.compile(hal.ops.fused_add_rms_norm_, fullgraph=True)
    compiled(*added(5))


@pytest.mark.parametrize("op", thinned(DYNAMIC, 4))
def test_one_compilation_serves_every_number_of_rows(op: str) -> None:
    compiled = torch.compile(CASES[op][0], fullgraph=True, dynamic=True)
    compare(op, compiled, 5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compare(op, compiled, 9)
        compare(op, compiled, 14)


@pytest.mark.parametrize("op", thinned(DYNAMIC, 4))
@pytest.mark.parametrize("served", ["native", "other"])
def test_one_trace_serves_every_number_of_rows(op: str, served: str) -> None:
    compiled = torch.compile(CASES[op][0], backend="aot_eager", fullgraph=True, dynamic=True)
    with installed(backend("other", devices=None, **{op: kernel(op)}), NATIVE), hal.use(served):
        compare(op, compiled, 5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compare(op, compiled, 9)
            compare(op, compiled, 14)
