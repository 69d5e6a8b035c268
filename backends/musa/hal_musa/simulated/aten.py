"""torch_musa's operators in torch's own namespace: kernels, gradients, and the fakes it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal_musa.simulated import fused, sdpa
from hal_musa.simulated.cards import arch
from hal_musa.simulated.host import check, host, only, register, sent
from hal_musa.simulated.schemas import SCHEMAS

__all__ = ["register_operators"]

_COMPOSITE = ("swish_glu", "rope")
_EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
# What torch_musa's rms_norm adds where nothing is said, whatever the dtype: float64's epsilon.
_EPSILON = torch.finfo(torch.float64).eps


def _throwing(name: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name} only supported in torch_musa.")

    return kernel


def _composite(name: str, fused_name: str) -> Callable[..., Any]:
    refuse = _throwing(name)

    def kernel(input: Tensor, *args: Any) -> Any:
        if input.device.type != "musa":
            return refuse()
        return getattr(torch.ops.aten, fused_name)(input, *args)

    return kernel


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    eps = _EPSILON if eps is None else eps
    return torch.ops.aten._fused_rmsnorm_forward(input, normalized_shape, eps, weight)[0]


def _scaled_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """A tensor's scale or a row's and a column's; ``scale_result`` is not looked at."""
    check(arch() >= 31, "_scaled_mm needs MP31")
    only("mat1", self.dtype, *_EIGHT)
    only("mat2", mat2.dtype, *_EIGHT)
    (m, k), (rows, n) = self.shape, mat2.shape
    check(k == rows, f"mat1 is [{m}, {k}] and mat2 [{rows}, {n}]")
    check(scale_a.numel() in (1, m) and scale_b.numel() in (1, n), "scales are of tensors or rows")
    check(scale_a.dtype == scale_b.dtype == torch.float32, "scales have to be float32")
    product = host(self).float() @ host(mat2).float()
    product = product * host(scale_a).reshape(-1, 1) * host(scale_b).reshape(1, -1)
    product = product if bias is None else product + host(bias).float()
    return sent(product, self, out_dtype or self.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.inputs = inputs


def _gradients(library: torch.library.Library) -> None:
    """As torch_musa's derivatives.yaml; ``gated_silu`` has none."""
    aten = torch.ops.aten

    def swiglu(ctx: Any, grad: Tensor) -> Tensor:
        return aten._fused_swiglu_backward(grad, *ctx.inputs)

    def rope(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _, angles, *rest = ctx.inputs
        turned = aten._fused_rope_backward(grad.contiguous(), angles, *rest)
        return (turned, *(None,) * (len(ctx.inputs) - 1))

    def entropy(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = aten._fused_cross_entropy_loss_2d_backward(grad, *ctx.inputs)
        return (found, *(None,) * (len(ctx.inputs) - 1))

    for name, backward in (
        ("_fused_swiglu_forward", swiglu),
        ("_fused_rope_forward", rope),
        ("_fused_cross_entropy_loss_2d_forward", entropy),
    ):
        torch.library.register_autograd(f"aten::{name}", backward, setup_context=_save, lib=library)


def _norm_gradient(library: torch.library.Library) -> None:
    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, ctx.shape, ctx.eps, ctx.weight = (*inputs, None)[:4]
        ctx.count = len(inputs)
        _, inverse = output
        ctx.save_for_backward(input, inverse)
        ctx.mark_non_differentiable(inverse)

    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        input, inverse = ctx.saved_tensors
        of_input, of_weight = torch.ops.aten._fused_rmsnorm_backward(
            grad.contiguous(), inverse, input, ctx.shape, ctx.eps, ctx.weight
        )
        grads = (of_input, None, None, None if ctx.weight is None else of_weight)
        return grads[: ctx.count]

    name = "aten::_fused_rmsnorm_forward"
    torch.library.register_autograd(name, backward, setup_context=save, lib=library)


def _attention_gradients(library: torch.library.Library) -> None:
    def save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
        given = (*inputs, *(None, 0.0, False)[len(inputs) - 3 :])
        query, key, value, mask, _, ctx.causal = given
        ctx.scale, ctx.mask, ctx.count = keyword_only_inputs["scale"], mask, len(inputs)
        ctx.save_for_backward(query, key, value, *output)
        ctx.mark_non_differentiable(*output[1:])

    def backward(name: str) -> Callable[..., Any]:
        def run(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
            kernel = getattr(torch.ops.aten, name)
            grads = kernel(grad, *ctx.saved_tensors, ctx.causal, ctx.mask, scale=ctx.scale)
            mask = grads[3] if ctx.mask is not None and ctx.mask.requires_grad else None
            return (*grads[:3], mask, None, None)[: ctx.count]

        return run

    for way in ("math", "flash"):
        name = f"_scaled_dot_product_attention_{way}_musa"
        torch.library.register_autograd(
            f"aten::{name}", backward(f"{name}_backward"), setup_context=save, lib=library
        )


def _fakes(library: torch.library.Library) -> None:
    """Those of ``core/ops/register_fake_impl.py``: of the norm, and of nothing else."""

    def forward(
        inp: Tensor, normalized_shape: Sequence[int], eps: float, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inverse = torch.empty(inp.shape[: -len(normalized_shape)], device=inp.device)
        return torch.empty_like(inp), inverse

    def backward(
        grad_out: Tensor,
        invvar: Tensor,
        inp: Tensor,
        normalized_shape: Sequence[int],
        eps: float,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        of_weight = torch.empty((0,), device=inp.device)
        return torch.empty_like(inp), of_weight if weight is None else torch.empty_like(weight)

    torch.library.register_fake("aten::_fused_rmsnorm_forward", forward, lib=library)
    torch.library.register_fake("aten::_fused_rmsnorm_backward", backward, lib=library)


def _reroute(library: torch.library.Library) -> None:
    """Have torch's own functions take torch_musa's operators, above autograd as composites are."""
    for key in ("PrivateUse1", "AutogradPrivateUse1"):
        library.impl("rms_norm", _rms_norm, key)
        library.impl("scaled_dot_product_attention", sdpa.route, key)
    library.impl("_scaled_mm", _scaled_mm, "PrivateUse1")


def register_operators() -> list[torch.library.Library]:
    """Declare what torch_musa's torch has, on a torch that lacks it; to be held for good."""
    library = register("aten", "FRAGMENT", SCHEMAS, {**fused.KERNELS, **sdpa.KERNELS})
    for name in (schema.partition("(")[0] for schema in SCHEMAS):
        if name not in _COMPOSITE:
            library.impl(name, _throwing(name), "CPU")
    library.impl("swish_glu", _composite("swish_glu", "_fused_swiglu_forward"))
    library.impl("rope", _composite("rope", "_fused_rope_forward"))
    for step in (_gradients, _norm_gradient, _attention_gradients, _fakes):
        step(library)
    routes = torch.library.Library("aten", "IMPL")
    _reroute(routes)
    return [library, routes]
