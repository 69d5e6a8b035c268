"""Under ``torch.compile``: every form as in eager, and no choice that has gone stale."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import hal
from hal.functions import FORMS
from hal.op import OPS
from hal.repairs import fits_torch
from hal.testing.record import Sample
from hal.testing.records import RECORDS
from hal.validate import as_tuple, overlaps
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


def writable(op: str, sample: Sample) -> bool:
    flat = OPS[op].flatten(sample.args, sample.kwargs)
    return not any(overlaps(flat[i]) for i in OPS[op].overwritten)


def refusal(text: str) -> str:
    """The pattern of Dynamo's error for a refusal that says ``text``.

    Torch 2.7 tells its type alone, 2.11 how its text is put together.
    """
    return rf"InvalidInput.*{text}" if fits_torch(">=2.12") else "InvalidInput"


def some(op: str, count: int) -> list[Sample]:
    """That many samples of an op, from first to last, which every form can take."""
    given = RECORDS[op].samples()
    every = [s for s in given if writable(op, s) and not s.name.startswith("large: ")]
    return [every[i * (len(every) - 1) // (count - 1)] for i in range(count)]


def fresh(sample: Sample) -> tuple[list[Any], dict[str, Any]]:
    return copy.deepcopy(list(sample.args)), copy.deepcopy(sample.kwargs)


def same(found: Any, wanted: Any, **tolerance: float) -> None:
    for got, want in zip(as_tuple(found), as_tuple(wanted), strict=True):
        if want is None:
            assert got is None
            continue
        assert (got.dtype, got.stride()) == (want.dtype, want.stride()) or not want.numel()
        torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def compiled_is_eager(name: str, sample: Sample, compiler: Any) -> None:
    """Call a form plainly and compiled, each with arguments of its own, which must end alike."""
    function = getattr(hal.ops, name)
    args, kwargs = fresh(sample)
    want = function(*args, **kwargs)
    given, named = fresh(sample)
    found = torch.compile(function, backend=compiler, fullgraph=True)(*given, **named)
    same(found, want, rtol=0, atol=0)
    for got, expected in zip(given, args, strict=True):
        if isinstance(expected, Tensor):
            same(got, expected, rtol=0, atol=0)
    if FORMS[name].inplace:
        targets = OPS[FORMS[name].op.name].flatten(given, named)
        for result, i in zip(as_tuple(found), FORMS[name].op.overwritten, strict=True):
            assert result is targets[i]


@pytest.mark.parametrize("name", thinned(FORMS, 3))
def test_a_compiled_form_is_the_eager_one(name: str) -> None:
    for sample in some(FORMS[name].op.name, 2):
        compiled_is_eager(name, sample, "eager")


@pytest.mark.parametrize("name", thinned(FORMS, 6))
def test_a_form_compiled_through_autograd_is_the_eager_one(name: str) -> None:
    compiled_is_eager(name, some(FORMS[name].op.name, 4)[2], "aot_eager")


@pytest.mark.parametrize("name", thinned(FORMS, 5))
def test_a_form_served_by_another_kernel_compiles_to_the_operator(name: str) -> None:
    op = FORMS[name].op.name
    with installed(backend("other", devices=None, **{op: kernel(op)}), NATIVE):
        counter = CompileCounterWithBackend("aot_eager")
        compiled_is_eager(name, some(op, 3)[1], counter)
    # A float64 tensor without dimensions may be a number to torch, which then starts again.
    targets = [node.target for node in counter.graphs[-1].graph.nodes]
    assert FORMS[name].overload in targets


@pytest.mark.parametrize("name", thinned([n for n in FORMS if not FORMS[n].inplace], 7))
@pytest.mark.parametrize("other", [False, True])
def test_out_is_written_in_compiled_code(name: str, other: bool) -> None:
    sample, function = some(name, 3)[1], getattr(hal.ops, name)
    plugins = [backend("other", devices=None, **{name: kernel(name)})] if other else []
    with installed(*plugins, NATIVE):
        want = function(*sample.args, **sample.kwargs)
        poison = [None if w is None else torch.full_like(w, 77) for w in as_tuple(want)]
        out = poison[0] if isinstance(want, Tensor) else tuple(poison)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        found = compiled(*sample.args, **sample.kwargs, out=out)
    same(out, want, rtol=0, atol=0)
    assert all(a is b for a, b in zip(as_tuple(found), poison, strict=True))


def marked(op: str, value: float, name: str) -> hal.Kernel:
    """A kernel whose results are ``value`` throughout, which tells that it ran."""
    plain = kernel(op, name)

    def fn(*args: Any, **kwargs: Any) -> Any:
        return plain.fn(*args, **kwargs).fill_(value)

    fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
    return hal.Kernel(fn=fn, name=name)


@pytest.fixture
def acme() -> Iterator[None]:
    """A backend that comes before the reference and answers with sevens, or with eights."""
    kernels = [marked("silu_and_mul", 7, "seven"), marked("silu_and_mul", 8, "eight")]
    with installed(backend("acme", devices=("cpu",), silu_and_mul=kernels), NATIVE):
        yield


X = torch.linspace(-2, 2, 24).view(3, 8)
SEVEN, EIGHT = torch.full((3, 4), 7.0), torch.full((3, 4), 8.0)


def reference() -> Tensor:
    return torch.nn.functional.silu(X[:, :4]) * X[:, 4:]


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    counter = CompileCounter()
    return torch.compile(function, backend=counter, fullgraph=True), counter


def gate(x: Tensor) -> Tensor:
    return hal.ops.silu_and_mul(x)


@pytest.mark.parametrize("statement", [hal.use, hal.prefer])
@pytest.mark.usefixtures("acme")
def test_compiled_code_follows_the_choice_and_compiles_once_for_each(statement: Any) -> None:
    compiled, counter = counted(gate)
    for _ in range(3):
        same(compiled(X), SEVEN)
        with statement("native"):
            same(compiled(X), reference())
            with statement("acme"):
                same(compiled(X), SEVEN)
        with statement(silu_and_mul="native"):
            same(compiled(X), reference())
        with statement("acme:eight"):
            same(compiled(X), EIGHT)
    assert counter.frame_count == 2


@pytest.mark.usefixtures("acme")
def test_a_choice_for_another_op_compiles_nothing_again() -> None:
    compiled, counter = counted(gate)
    compiled(X)
    with hal.use(rms_norm="native"), hal.prefer(softmax="native"):
        same(compiled(X), SEVEN)
    assert counter.frame_count == 1


def test_an_unforced_kernel_that_is_refused_leaves_the_reference_in_compiled_code() -> None:
    picky = hal.Kernel(
        fn=marked("silu_and_mul", 7, "seven").fn,
        name="picky",
        supports=lambda x: None if x.shape[0] == 3 else "takes three rows",
    )
    with installed(backend("picky", devices=None, silu_and_mul=picky), NATIVE):
        compiled, _ = counted(gate)
        same(compiled(X), SEVEN)
        same(compiled(X[:2]), reference()[:2])


@pytest.mark.usefixtures("acme")
def test_a_forced_kernel_that_cannot_serve_is_an_error_in_compiled_code_too() -> None:
    def norm(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x, None)

    compiled, _ = counted(norm)
    compiled(X)
    with hal.use("acme"), pytest.raises(hal.NoKernel, match="acme is forced"):
        compiled(X)
    compiled(X)


@pytest.mark.usefixtures("acme")
def test_a_choice_made_inside_compiled_code_holds_there() -> None:
    def inside(x: Tensor) -> tuple[Tensor, Tensor]:
        with hal.use("native"):
            first = hal.ops.silu_and_mul(x)
        return first, hal.ops.silu_and_mul(x)

    compiled = torch.compile(inside, backend="eager")
    for _ in range(2):
        same(compiled(X), (reference(), SEVEN))
    with hal.prefer("native"):
        same(compiled(X), (reference(), reference()))
    same(compiled(X), (reference(), SEVEN))


@pytest.mark.usefixtures("acme")
def test_a_decorated_function_compiles_under_its_choice() -> None:
    compiled = hal.use("native")(torch.compile(gate, backend="eager", fullgraph=True))
    around = torch.compile(hal.use("native")(gate), backend="eager")
    for _ in range(2):
        same(compiled(X), reference())
        same(around(X), reference())
        same(gate(X), SEVEN)


@pytest.mark.usefixtures("acme")
def test_threads_run_the_same_compiled_code_each_under_its_own_choice() -> None:
    compiled, _ = counted(gate)
    same(compiled(X), SEVEN)
    with hal.use("native"):
        same(compiled(X), reference())
    wrong: list[str] = []
    barrier = threading.Barrier(4)

    def run(spec: str, want: Tensor) -> None:
        barrier.wait(20)
        for _ in range(50):
            with hal.use(spec):
                if not torch.allclose(compiled(X), want):
                    wrong.append(spec)

    wanted = {"acme": SEVEN, "native": reference(), "acme:eight": EIGHT, "acme:seven": SEVEN}
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in wanted.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # How often it was compiled says nothing: threads that miss each other's entries compile again.
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


OUT: dict[str, Callable[[], Any]] = {
    "broadcast": lambda: torch.empty(2, 3, 8),
    "dtype": lambda: torch.empty(3, 8, dtype=torch.float16),
    "several": lambda: (torch.empty(3, 8), torch.empty(3, 8)),
    "expanded": lambda: torch.empty(1, 8).expand(3, 8),
    "grad": lambda: torch.empty(3, 8, requires_grad=True),
}


@pytest.mark.parametrize("case", OUT)
@pytest.mark.parametrize("served", ["native", "other"])
def test_out_that_does_not_fit_is_refused_in_compiled_code(case: str, served: str) -> None:
    other = backend("other", devices=None, rms_norm=kernel("rms_norm"))
    whole = torch.compile(hal.ops.rms_norm, backend="eager", fullgraph=True)
    parts = torch.compile(hal.ops.rms_norm, backend="eager")
    with installed(other, NATIVE), hal.use(served):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=refusal("rms_norm: ")):
            whole(X, None, out=OUT[case]())
        for _ in range(2):
            with pytest.raises(hal.InvalidInput, match=r"rms_norm: (out|writing)"):
                parts(X, None, out=OUT[case]())


@pytest.mark.parametrize("served", ["native", "other"])
def test_writing_where_a_gradient_is_recorded_is_refused_in_compiled_code(served: str) -> None:
    op = "fused_add_rms_norm"
    compiled = torch.compile(hal.ops.fused_add_rms_norm_, backend="eager")
    leaf = torch.ones(8, requires_grad=True)
    with installed(backend("other", devices=None, **{op: kernel(op)}), NATIVE), hal.use(served):
        with pytest.raises(hal.InvalidInput, match="has no gradient"):
            compiled(X.clone(), X.clone(), leaf)
        with torch.no_grad():
            compiled(X.clone(), X.clone(), leaf)


def test_a_refusal_in_compiled_code_names_what_was_found() -> None:
    compiled, _ = counted(gate)
    found = refusal(r"even last dimension; x is \[3, 7\]")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=found):
        compiled(X[:, :7])
    with pytest.raises(hal.InvalidInput, match=r"silu_and_mul: x must have an even last"):
        torch.compile(gate, backend="eager")(X[:, :7])


def test_so_it_does_where_a_size_is_symbolic() -> None:
    compiled = torch.compile(gate, backend="eager", fullgraph=True, dynamic=True)
    found = refusal(r"even last dimension; .*x is .*\[s\d+, s\d+\] float32")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=found):
        compiled(X[:, :7])
    into = torch.compile(hal.ops.rms_norm, backend="eager", fullgraph=True, dynamic=True)
    found = refusal(r"rms_norm: out must be .*float32.* on cpu; out is .*\[s\d+, s\d+\] float32")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=found):
        into(X, None, out=torch.empty(3, 7))
