"""Gradients, vmap, and what traces an op without running it: make_fx and torch.export."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

import hal
from hal.functions import FORMS
from hal.op import OPS
from offering import NATIVE, Noting, backend, installed, kernel

GRADS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "silu_and_mul": (hal.ops.silu_and_mul, (8,)),
    "gelu_and_mul": (hal.ops.gelu_and_mul, (8,)),
    "gelu_tanh_and_mul": (hal.ops.gelu_tanh_and_mul, (8,)),
    "relu_squared": (hal.ops.relu_squared, (8,)),
    "quick_gelu": (hal.ops.quick_gelu, (8,)),
    "rms_norm": (lambda x, w: hal.ops.rms_norm(x, w, eps=1e-5), (8,)),
    "layer_norm": (lambda x, w: hal.ops.layer_norm(x, w, w.flip(0), eps=1e-3), (8,)),
    "rotary_embedding": (lambda q, c: rotated(q, None, c)[0], (2, 8)),
    "rotary_embedding with key": (lambda q, c: torch.cat(rotated(q, q.sin(), c)), (2, 8)),
}


def rotated(query: Tensor, key: Tensor | None, row: Tensor) -> Any:
    return hal.ops.rotary_embedding(torch.arange(3), query, key, row.expand(3, 8), is_neox=False)


def leaves(case: str) -> list[Tensor]:
    """Inputs in float64: the rows, and for those that have one a vector of weights."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, *GRADS[case][1], generator=generator, dtype=torch.float64)
    weight = torch.rand(8, generator=generator, dtype=torch.float64) + 0.5
    return [x, weight] if "norm" in case or "rotary" in case else [x]


@pytest.fixture(params=["native", "other"])
def served(request: pytest.FixtureRequest) -> Iterator[None]:
    """The reference, or a kernel of another backend through which no gradient flows."""

    def opaque(op: str) -> hal.Kernel:
        plain = kernel(op).fn

        def fn(*args: Any, **kwargs: Any) -> Any:
            detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
            with torch.no_grad():
                return plain(*detached, **kwargs)

        fn.__signature__ = OPS[op].signature  # type: ignore[attr-defined]
        return hal.Kernel(fn=fn, name="opaque")

    kernels = {op: opaque(op) for op, declared in OPS.items() if declared.grad}
    with installed(backend("other", devices=None, **kernels), NATIVE), hal.use(request.param):
        yield


def test_every_differentiable_op_is_tried_here() -> None:
    assert {case.split()[0] for case in GRADS} == {op for op in OPS if OPS[op].grad}


@pytest.mark.parametrize("case", GRADS)
@pytest.mark.usefixtures("served")
def test_gradients_agree_with_finite_differences(case: str) -> None:
    inputs = [leaf.requires_grad_() for leaf in leaves(case)]
    assert torch.autograd.gradcheck(GRADS[case][0], inputs)


@pytest.mark.parametrize("case", ["silu_and_mul", "rms_norm", "rotary_embedding"])
def test_gradients_of_gradients_agree_with_finite_differences(case: str) -> None:
    inputs = [leaf.requires_grad_() for leaf in leaves(case)]
    assert torch.autograd.gradgradcheck(GRADS[case][0], inputs)


@pytest.mark.parametrize("case", GRADS)
@pytest.mark.usefixtures("served")
def test_functional_gradients_are_those_of_autograd_also_under_vmap(case: str) -> None:
    function, inputs = GRADS[case][0], leaves(case)
    leaf = inputs[0].clone().requires_grad_()
    scale = torch.linspace(-1, 1, function(*inputs).numel(), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return (function(x, *inputs[1:]).flatten() * scale).sum()

    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(inputs[0]), leaf.grad)
    _, pull = torch.func.vjp(loss, inputs[0])
    torch.testing.assert_close(pull(torch.tensor(2.0).double())[0], 2 * leaf.grad)
    both = torch.stack((inputs[0], inputs[0].flip(0)))
    wanted = torch.stack([torch.func.grad(loss)(each) for each in both])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(both), wanted)


@pytest.mark.parametrize("case", GRADS)
@pytest.mark.usefixtures("served")
def test_compiled_gradients_are_those_of_eager(case: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(GRADS[case][0], backend="aot_eager", fullgraph=True)
    found = [leaf.requires_grad_() for leaf in leaves(case)]
    wanted = [leaf.requires_grad_() for leaf in leaves(case)]
    compiled(*found).square().sum().backward()
    GRADS[case][0](*wanted).square().sum().backward()
    for got, want in zip(found, wanted, strict=True):
        assert want.grad is not None
        torch.testing.assert_close(got.grad, want.grad)


def test_only_the_inputs_that_ask_for_a_gradient_have_one() -> None:
    x, weight = leaves("rms_norm")
    hal.ops.rms_norm(x, weight.requires_grad_()).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    hal.ops.rms_norm(x.requires_grad_(), None).sum().backward()
    assert x.grad is not None


def test_a_gradient_in_half_precision_has_its_dtype() -> None:
    x, weight = (leaf.bfloat16().requires_grad_() for leaf in leaves("rms_norm"))
    hal.ops.rms_norm(x, weight).sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dims", [(0, None), (1, 0), (None, 1), (-1, 0)])
def test_vmap_runs_each_slice(dims: tuple[int | None, int | None]) -> None:
    x, weight = torch.randn(3, 8), torch.rand(8)
    axes = [
        tensor.dim() + 1 + d if d is not None and d < 0 else d
        for tensor, d in zip((x, weight), dims, strict=True)
    ]
    xs = x if axes[0] is None else torch.stack([x, x + 1], axes[0])
    weights = weight if axes[1] is None else torch.stack([weight, 2 * weight], axes[1])
    found = torch.vmap(hal.ops.rms_norm, in_dims=dims)(xs, weights)
    for i, result in enumerate(found):
        args = [
            tensor if axis is None else tensor.select(axis, i)
            for tensor, axis in zip((xs, weights), axes, strict=True)
        ]
        torch.testing.assert_close(result, hal.ops.rms_norm(*args))


def test_vmap_of_several_results_and_of_a_missing_one() -> None:
    query, cache = torch.randn(2, 3, 4, 8), torch.randn(5, 8)
    turn = lambda q: hal.ops.rotary_embedding(torch.arange(3), q, None, cache)[0]  # noqa: E731
    torch.testing.assert_close(torch.vmap(turn)(query)[1], turn(query[1]))
    add = lambda x: hal.ops.fused_add_rms_norm(x, 2 * x, torch.ones(8))  # noqa: E731
    for got, want in zip(torch.vmap(add)(query), add(query), strict=True):
        torch.testing.assert_close(got, want)


def test_vmap_of_vmap_runs_each_slice_of_each() -> None:
    x = torch.randn(2, 3, 4, 8)
    found = torch.vmap(torch.vmap(hal.ops.silu_and_mul))(x)
    torch.testing.assert_close(found, hal.ops.silu_and_mul(x))


MODES = "real", "fake", "symbolic"
X, RESIDUAL, WEIGHT = torch.randn(4, 8), torch.randn(4, 8), torch.rand(8)


@pytest.mark.parametrize("mode", MODES)
def test_make_fx_traces_the_operator(mode: str) -> None:
    noting = Noting("rms_norm")
    with installed(noting.backend, NATIVE):
        hal.ops.rms_norm(X, WEIGHT)
        traced = make_fx(lambda x, w: hal.ops.rms_norm(x, w) * 2, tracing_mode=mode)(X, WEIGHT)
        assert len(noting.ran) == (2 if mode == "real" else 1)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.hal.rms_norm.default, torch.ops.aten.mul.Tensor]
    torch.testing.assert_close(traced(X + 1, WEIGHT), hal.ops.rms_norm(X + 1, WEIGHT) * 2)
    if mode == "symbolic":
        rows = torch.randn(7, 8)
        torch.testing.assert_close(traced(rows, WEIGHT), hal.ops.rms_norm(rows, WEIGHT) * 2)


@pytest.mark.parametrize("mode", MODES)
def test_make_fx_traces_an_inplace_form_as_a_mutation(mode: str) -> None:
    def step(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        x, residual = hal.ops.fused_add_rms_norm_(x, residual, weight)
        return x + residual

    traced = make_fx(step, tracing_mode=mode)(X.clone(), RESIDUAL.clone(), WEIGHT)
    assert torch.ops.hal.fused_add_rms_norm_.default in [n.target for n in traced.graph.nodes]
    found, wanted = [X.clone(), RESIDUAL.clone()], [X.clone(), RESIDUAL.clone()]
    torch.testing.assert_close(traced(*found, WEIGHT), step(*wanted, WEIGHT))
    torch.testing.assert_close(found, wanted)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(WEIGHT.clone(), requires_grad=False)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed, residual = hal.ops.fused_add_rms_norm(x, residual, self.weight)
        turned, none = hal.ops.rotary_embedding(
            torch.arange(x.shape[0]), x.unsqueeze(1), None, self.weight.expand(64, 8)
        )
        assert none is None
        return hal.ops.silu_and_mul(normed), hal.ops.rms_norm(residual, self.weight), turned


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("loops", [False, True], ids=["as it is", "decomposed"])
def test_export_keeps_the_operators_for_any_number_of_rows(strict: bool, loops: bool) -> None:
    torch._dynamo.reset()
    model, rows = Model(), Dim("rows", min=2, max=64)
    dynamic = ({0: rows}, {0: rows})
    program = export(model, (X, RESIDUAL), dynamic_shapes=dynamic, strict=strict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytree.
        program = program.run_decompositions() if loops else program
    ours = [n.target for n in program.graph.nodes if str(n.target).startswith("hal.")]
    assert ours == [
        FORMS[name].overload
        for name in ("fused_add_rms_norm", "rotary_embedding", "silu_and_mul", "rms_norm")
    ]
    for count in (2, 4, 33):
        x = torch.randn(count, 8), torch.randn(count, 8)
        for got, want in zip(program.module()(*x), model(*x), strict=True):
            torch.testing.assert_close(got, want)


class InPlace(torch.nn.Module):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return hal.ops.fused_add_rms_norm_(x, residual, torch.ones(8))[0] * 2


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_exported_inplace_form_overwrites_its_arguments(strict: bool) -> None:
    torch._dynamo.reset()
    program = export(InPlace(), (X.clone(), RESIDUAL.clone()), strict=strict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytree.
        functional = program.run_decompositions()
    for each in program, functional:
        found, wanted = [X.clone(), RESIDUAL.clone()], [X.clone(), RESIDUAL.clone()]
        torch.testing.assert_close(each.module()(*found), InPlace()(*wanted))
        torch.testing.assert_close(found, wanted)


def test_an_exported_program_is_served_as_the_call_would_be() -> None:
    program = export(Model(), (X, RESIDUAL)).module()
    noting = Noting("silu_and_mul")
    with installed(noting.backend, NATIVE):
        program(X, RESIDUAL)
        assert len(noting.ran) == 1
        with hal.use("native"):
            program(X, RESIDUAL)
        assert len(noting.ran) == 1
