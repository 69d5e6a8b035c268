"""``explain``, ``require``, ``bind`` and ``trace``: they say what the code that chooses does."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import hal
from hal.functions import FORMS
from hal.op import OPS
from hal.testing.record import Sample
from hal.testing.records import RECORDS
from offering import ACME, NATIVE, backend, installed, kernel, refusing

X, ROW = torch.randn(2, 4), torch.ones(4)


def odd_rows(first: Tensor, *_: Any, **__: Any) -> str | None:
    # A tensor without dimensions is one row.
    return None if first.shape[:1].numel() % 2 else "takes an odd number of rows"


def strided(first: Tensor, *_: Any, **__: Any) -> str | None:
    return "takes strided tensors" if first.is_contiguous() else None


def half(first: Tensor, *_: Any, **__: Any) -> str | None:
    return None if first.dtype in (torch.float16, torch.bfloat16) else "takes 16 bits"


def conditional(name: str, **conditions: Callable[..., str | None]) -> Any:
    """A backend for the host with a kernel for each op and condition."""
    hooks = {op: [kernel(op, n, supports=c) for n, c in conditions.items()] for op in OPS}
    return backend(name, devices=("cpu",), **hooks)


@pytest.fixture
def mixed() -> Iterator[None]:
    """What serves depends on rows, strides and dtype."""
    with installed(
        conditional("b", odd=odd_rows), conditional("a", strided=strided, half=half), NATIVE
    ):
        yield


def ran(form: str, sample: Sample) -> str | None:
    """The kernel that a call is on record with, None if it is refused."""
    with hal.trace() as records:
        try:
            getattr(hal.ops, form)(
                *copy.deepcopy(list(sample.args)), **copy.deepcopy(sample.kwargs)
            )
        except hal.InvalidInput:
            return None
    (record,) = records
    assert record.op == form
    return f"{record.backend}:{record.kernel}"


def explained(form: str, sample: Sample) -> str | None:
    try:
        return str(hal.explain(getattr(hal.ops, form), *sample.args, **sample.kwargs).chosen)
    except hal.InvalidInput:
        return None


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("op", OPS)
def test_explained_is_what_runs(op: str) -> None:
    statements = (
        hal.prefer("a"),
        hal.prefer("a:half", "b"),
        hal.use("native", "b"),
        hal.use("native"),
    )
    forms = [form.name for form in FORMS.values() if form.op.name == op]
    drawn, served = random.Random(op), set()
    for sample in RECORDS[op].samples():
        for form in forms:
            with drawn.choice(statements):
                kernel_name = ran(form, sample)
                assert explained(form, sample) == kernel_name
            served.add(kernel_name)
    assert len(served) > 2


def test_explain_says_why_for_each_kernel() -> None:
    with installed(conditional("b", odd=odd_rows, half=half), NATIVE):
        choice = hal.explain(hal.ops.rms_norm, X, weight=ROW)
        assert [(str(c), c.backend, c.kernel, c.reason) for c in choice.candidates] == [
            ("b:odd", "b", "odd", "takes an odd number of rows"),
            ("b:half", "b", "half", "takes 16 bits"),
            ("native:torch", "native", "torch", "reference"),
        ]
        assert choice.chosen is choice.candidates[2]
        assert str(hal.explain("rms_norm", X.half(), ROW).chosen) == "b:half"
        assert str(hal.explain("rms_norm").chosen) == "b:odd"
        json.dumps(choice.to_dict())


def test_explain_takes_shapes_without_data() -> None:
    with installed(conditional("b", odd=odd_rows), NATIVE):
        for rows, expected in (3, "b:odd"), (4, "native:torch"):
            huge = torch.empty(rows * 10**9 + rows % 2, 8, device="meta")
            choice = hal.explain("silu_and_mul", huge)
            assert (str(choice.chosen), str(choice.device)) == (expected, "cpu")


def test_explain_does_not_run_the_kernel() -> None:
    fails = hal.Kernel(fn=lambda x: 1 / 0, name="fails")
    with installed(backend("b", devices=("cpu",), silu_and_mul=fails), NATIVE):
        assert str(hal.explain("silu_and_mul", X).chosen) == "b:fails"
        with pytest.raises(ZeroDivisionError):
            hal.ops.silu_and_mul(X)


def test_explain_shows_that_nothing_serves() -> None:
    with installed(conditional("b", odd=odd_rows), NATIVE), hal.use("b"):
        choice = hal.explain("softmax", X)
        assert choice.chosen is None
        assert choice.to_dict()["chosen"] is None
        with pytest.raises(hal.NoKernel) as caught:
            hal.ops.softmax(X)
        assert str(choice) in str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((), {"temperature": 1.0}, hal.InvalidType, "missing a required argument: 'logits'"),
        ((X, 1.0), {}, hal.InvalidType, "softmax(logits: 'Tensor', *, temperature"),
        ((X,), {"temprature": 1.0}, hal.InvalidType, "unexpected keyword argument 'temprature'"),
        ((3,), {}, hal.InvalidType, "softmax: logits must be Tensor, not 3 of type int"),
        ((X.int(),), {}, hal.InvalidInput, "logits is [2, 4] int32"),
        (
            (X,),
            {"temperature": ROW.to("meta")},
            hal.InvalidInput,
            "all tensors must be on one device; found logits on cpu, temperature on meta",
        ),
    ],
)
def test_explain_refuses_what_the_op_refuses(
    args: Any, kwargs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        hal.explain("softmax", *args, **kwargs)
    assert message in str(caught.value)


ASKING: dict[str, Callable[[Any], object]] = {
    "explain": hal.explain,
    "bind": lambda op: hal.bind(op, like=X),
    "require": lambda op: hal.require("fp8", ops=[op]),
    "require one": lambda op: hal.require("fp8", ops=op),
    "report": lambda op: hal.report("cpu", ops=[op]),
    "report one": lambda op: hal.report("cpu", ops=op),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_an_op_that_is_none(ask: Callable[[Any], object]) -> None:
    with pytest.raises(hal.InvalidInput, match="no op 'softmx'; did you mean softmax"):
        ask("softmx")
    with pytest.raises(hal.InvalidInput, match="there is no op 'relu'; known: silu_and_mul, "):
        ask("relu")
    for other in (torch.softmax, hal.ops, 3):
        with pytest.raises(hal.InvalidType, match="expected the name of an op"):
            ask(other)


def test_require_answers_for_the_device_and_each_op() -> None:
    fast = [kernel("softmax", "eager"), kernel("softmax", "captured", graph_safe=True)]
    norm = kernel("layer_norm", "eager")
    with installed(backend("b", softmax=fast, layer_norm=norm), NATIVE):
        answer = hal.require("graph_capture", ops=["softmax", hal.ops.layer_norm], device=ACME)
        assert answer.ok
        assert answer
        assert answer.reasons == {}
        assert answer.kernels == {"softmax": "b:captured", "layer_norm": "native:torch"}
        with hal.use("b"):
            refused = hal.require("graph_capture", ["softmax", "layer_norm"], ACME)
    assert not refused.ok
    assert not refused
    assert refused.kernels == {"softmax": "b:captured", "layer_norm": None}
    assert refused.reasons == {
        "layer_norm": "b:eager: is not graph_safe; native:torch: b is forced",
    }
    assert str(refused).splitlines() == [
        "graph_capture on acme:0: no",
        "  softmax: b:captured (claimed)",
        "  layer_norm: b:eager: is not graph_safe; native:torch: b is forced",
    ]


def test_require_asks_for_the_trait_of_the_capability() -> None:
    offered = [kernel("softmax", "pdl", pdl=True), kernel("softmax", "safe", graph_safe=True)]
    wanted = {"pdl": "b:pdl", "graph_capture": "b:safe", "fp8": "b:pdl", "triton": "b:pdl"}
    with installed(backend("b", softmax=offered)):
        found = {c: hal.require(c, "softmax", ACME).kernels["softmax"] for c in wanted}
    assert found == wanted


def test_require_needs_a_kernel_without_a_condition() -> None:
    picky = kernel("softmax", "picky", graph_safe=True, supports=refusing(None))
    with installed(backend("b", softmax=picky)):
        answer = hal.require("graph_capture", "softmax", ACME)
        assert answer.kernels == {"softmax": "b:picky"}
        reason = "b:picky: third-party for this device, if its condition holds"
        assert answer.reasons == {"softmax": reason}
    with installed(backend("b", softmax=picky), NATIVE):
        assert hal.require("graph_capture", "softmax", ACME)


def test_require_of_a_device_without_it() -> None:
    bare = attrs.evolve(ACME, capabilities=())
    with installed(NATIVE):
        answer = hal.require(hal.Capability.GRAPH_CAPTURE, ops=[], device=bare)
        everything = hal.require(hal.Capability.GRAPH_CAPTURE, device=bare)
    assert not answer
    assert answer.reasons == {"acme:0": "no backend states graph_capture for acme:0 (Example)"}
    assert list(everything.kernels) == list(OPS)
    assert json.loads(json.dumps(answer.to_dict())) == {
        "capability": "graph_capture",
        "device": "acme:0",
        "ok": False,
        "kernels": {},
        "reasons": answer.reasons,
        "standing": {},
    }


def test_require_of_the_unknown() -> None:
    known = "known: pdl, graph_capture, fake_kernels, compile, triton, fp8, bf16"
    for wrong in ("PDL", "graphs", None, 3, []):
        with pytest.raises(hal.InvalidInput, match=known):
            hal.require(wrong)  # type: ignore[arg-type]
    with pytest.raises(hal.InvalidInput, match="'toaster' is not a device"):
        hal.require("fp8", "softmax", "toaster")


def test_bind_gives_the_kernel_itself() -> None:
    fast = kernel("softmax")
    with installed(backend("b", devices=("cpu",), softmax=fast), NATIVE):
        assert hal.bind(hal.ops.softmax, like=X) is fast.fn
        with hal.use("native"):
            bound = hal.bind("softmax", like=X)
        assert bound is not fast.fn
        torch.testing.assert_close(bound(X, temperature=2.0), (X / 2).softmax(-1))


def test_bind_gives_the_kernel_itself_beside_others_that_have_conditions() -> None:
    fast = kernel("softmax")
    asked = kernel("softmax", "asked", supports=odd_rows, on_request="another is quicker")
    later = kernel("softmax", "later", supports=odd_rows)
    with installed(backend("b", devices=("cpu",), softmax=[asked, fast, later]), NATIVE):
        assert hal.bind(hal.ops.softmax, like=X) is fast.fn
        with hal.use("b:asked"), pytest.raises(hal.NoKernel, match="an odd number of rows"):
            hal.bind(hal.ops.softmax, like=X)(X)


def test_what_is_there_on_request_vouches_for_nothing_unless_it_is_named() -> None:
    alone = kernel("softmax", graph_safe=True, on_request="another is quicker")
    with installed(backend("b", devices=("cpu",), softmax=alone)):
        answer = hal.require("fake_kernels", "softmax", "cpu")
        assert "b:fast: on request only: another is quicker" in answer.reasons["softmax"]
        with hal.use("b:fast"):
            assert "softmax" not in hal.require("fake_kernels", "softmax", "cpu").reasons


def test_bind_takes_what_holds_when_it_binds() -> None:
    ran: list[str] = []

    def noting(name: str, **traits: Any) -> hal.Kernel:
        made = kernel("softmax", name, **traits)

        def fn(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
            ran.append(name)
            return made.fn(logits, temperature=temperature)

        return attrs.evolve(made, fn=fn)

    several = [noting("odd", supports=odd_rows), noting("any"), noting("other")]
    with installed(backend("b", devices=("cpu",), softmax=several), NATIVE):
        bound = hal.bind("softmax", like=X)
        with hal.use("b:other"):
            forced = hal.bind("softmax", like=X)
            for rows in 2, 3:
                bound(torch.randn(rows, 4))
        forced(X)
    assert ran == ["any", "odd", "other"]


def test_bind_refuses_where_nothing_may_serve() -> None:
    picky = kernel("softmax", supports=odd_rows)
    with installed(backend("b", devices=("cpu",), softmax=picky), NATIVE), hal.use("b"):
        with pytest.raises(hal.NoKernel, match="offers no kernel here"):
            hal.bind("layer_norm", like=X)
        bound = hal.bind("softmax", like=X)
        with pytest.raises(hal.NoKernel, match="takes an odd number of rows"):
            bound(X)
    with pytest.raises(hal.InvalidType, match="expected a tensor or a device, not 3"):
        hal.bind("softmax", like=3)  # type: ignore[arg-type]


def written(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Any:
    residual.add_(x)
    x.copy_(torch.nn.functional.rms_norm(residual, weight.shape, weight, eps))
    return x, residual


@pytest.mark.parametrize("inplace", [None, written])
@pytest.mark.parametrize("supports", [None, refusing(None)])
def test_bind_of_the_form_that_overwrites(inplace: Any, supports: Any) -> None:
    fast = kernel("fused_add_rms_norm", inplace=inplace, supports=supports)
    x, residual = X.clone(), X.flip(0)
    expected = hal.ops.fused_add_rms_norm(x, residual, ROW)
    with installed(backend("b", devices=("cpu",), fused_add_rms_norm=fast), NATIVE):
        bound = hal.bind(hal.ops.fused_add_rms_norm_, like=x)
        kept = hal.bind(hal.ops.fused_add_rms_norm, like=x)
        torch.testing.assert_close(kept(x, residual, ROW), expected)
        results = bound(residual=residual, weight=ROW, x=x)
    torch.testing.assert_close((x, residual), expected)
    assert results[0] is x
    assert results[1] is residual


def test_trace_records_each_call() -> None:
    with installed(backend("b", devices=("cpu",), rms_norm=kernel("rms_norm")), NATIVE):
        with hal.trace() as records:
            for _ in range(3):
                hal.ops.rms_norm(X, ROW.double())
            hal.ops.softmax(torch.zeros(0, 4, dtype=torch.float16))
            hal.ops.fused_add_rms_norm_(X.clone(), X.clone(), ROW)
        hal.ops.softmax(X)
    norm = ("rms_norm", "b", "fast", ("float32", "float64"), ((2, 4), (4,)))
    shapes = ((2, 4), (2, 4), (4,))
    assert [attrs.astuple(record, recurse=False) for record in records] == [
        *[norm] * 3,
        ("softmax", "native", "torch", ("float16",), ((0, 4),)),
        ("fused_add_rms_norm_", "native", "torch", ("float32",) * 3, shapes),
    ]


def test_traces_nest() -> None:
    with hal.trace() as outer:
        hal.ops.softmax(X)
        with hal.trace() as inner:
            hal.ops.silu_and_mul(X)
        hal.ops.softmax(X)
    assert [record.op for record in outer] == ["softmax", "silu_and_mul", "softmax"]
    assert [record.op for record in inner] == ["silu_and_mul"]


def test_a_trace_ends_with_an_exception() -> None:
    with contextlib.suppress(ZeroDivisionError), hal.trace() as records:
        hal.ops.softmax(X)
        1 / 0  # noqa: B018  # The statement is there to raise.
    hal.ops.softmax(X)
    assert len(records) == 1


def test_a_trace_is_of_its_thread() -> None:
    found: dict[str, list[str]] = {}
    start = threading.Barrier(3, timeout=10)

    def record(op: str) -> None:
        with hal.trace() as records:
            start.wait()
            for _ in range(20):
                getattr(hal.ops, op)(X)
        found[op] = [record.op for record in records]

    threads = [threading.Thread(target=record, args=(op,)) for op in ("softmax", "silu_and_mul")]
    with hal.trace() as here:
        for thread in threads:
            thread.start()
        start.wait()
        hal.ops.gelu_and_mul(X)
        for thread in threads:
            thread.join()
    assert [record.op for record in here] == ["gelu_and_mul"]
    assert found == {op: [op] * 20 for op in ("softmax", "silu_and_mul")}


def test_a_trace_sees_calls_by_way_of_torch() -> None:
    x = X.clone().requires_grad_()
    with hal.trace() as records:
        hal.ops.rms_norm(x, ROW).sum()
        torch.ops.hal.softmax(X)
        hal.ops.silu_and_mul(X.to("meta"))
    assert [record.op for record in records] == ["rms_norm", "softmax"]
