"""Faults in what a kernel promises: its traits, its condition, its in-place form, its gradients."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
from typing import Any

import torch
from torch import Tensor

from faults.record import INTS, NANS, OFF, condition, edit, inplace, kernel, reference

SILU, MUL_ADD, RMS = "silu_and_mul", "mul_add", "rms_norm"

_calls = itertools.count()


@kernel(MUL_ADD, "deterministic", "other bits for the same arguments")
def rounds_at_random(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return reference(MUL_ADD)(x, y, scale) * (1 + next(_calls) % 2 * 2**-5)


_last: list[Any] = []


@kernel("relu_squared", "deterministic", "other bits for the same arguments")
def depends_on_the_last_call(x: Tensor) -> Tensor:
    result = reference("relu_squared")(x)
    _last[:] = [*_last[-2:], x]
    return result + (len(_last) > 2 and x.shape == _last[-2].shape)


_kept: dict[Any, Tensor] = {}


@kernel("quick_gelu", "numerics", f"{OFF}|{NANS}")
def returns_what_it_kept_for_the_shape(x: Tensor) -> Tensor:
    key = x.shape, x.dtype, x.stride()
    return _kept.setdefault(key, reference("quick_gelu")(x)).clone()


_buffers: dict[Any, Tensor] = {}


@kernel("quick_gelu", "purity", "share their memory|of a call before")
def returns_one_buffer_for_all_calls(x: Tensor) -> Tensor:
    result = reference("quick_gelu")(x)
    return _buffers.setdefault((x.shape, x.dtype), torch.empty_like(result)).copy_(result)


_turns: dict[Any, list[Tensor]] = {}


@kernel("quick_gelu", "purity", "share their memory|of a call before")
def returns_three_buffers_in_turn(x: Tensor) -> Tensor:
    result = reference("quick_gelu")(x)
    like = [torch.empty_like(result) for _ in range(3)]
    buffers = _turns.setdefault((x.shape, x.dtype), like)
    buffers.append(buffers.pop(0))
    return buffers[0].copy_(result)


@kernel("quick_gelu", "numerics", "changed torch's grad mode from True to False")
def turns_gradients_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    return reference("quick_gelu")(x)


@kernel(SILU, "random", "RuntimeError: no version")
def cannot_be_served_in_inference_mode(x: Tensor) -> Tensor:
    if x.is_inference():
        raise RuntimeError("no version")
    return reference(SILU)(x)


@kernel("relu_squared", "offsets", f"70000 rows: ({OFF})")
def has_no_more_rows_than_a_grid(x: Tensor) -> Tensor:
    result = reference("relu_squared")(x)
    if x.dim() > 1:
        result[65_535:] = 0
    return result


@kernel("per_token_quant", "invariance", "in a batch of 300 or more", batch_invariant=True)
def other_scales_in_a_large_batch(x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Any:
    q, scale = reference("per_token_quant")(x, dtype=dtype)
    return q, scale * (1 + 2**-20) if x.shape[:-1].numel() > 290 else scale


@kernel("moe_sum", "invariance", "have other bits alone", batch_invariant=True)
def sums_in_another_order_for_many_rows(x: Tensor, *, scale: float = 1.0) -> Tensor:
    many = x.dim() > 2 and x.shape[0] > 2
    return reference("moe_sum")(x.flip(-2) if many else x, scale=scale)


@kernel("per_token_quant", "invariance", "have other bits alone", batch_invariant=True)
def one_scale_for_the_batch(x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Any:
    q, scale = reference("per_tensor_quant")(x, dtype=dtype)
    return q, scale.expand(*x.shape[:-1], 1).contiguous()


def _rows_at(x: Tensor, bits: int) -> Tensor:
    """Rows of ``x`` at offsets that are cut to ``bits``, in elements."""
    where = [row * x.stride(0) % 2**bits for row in range(x.shape[0])]
    inner = x.shape[1:], x.stride()[1:]
    return torch.stack([x.as_strided(*inner, x.storage_offset() + at) for at in where])


@kernel("relu_squared", "offsets", f"x: .*({OFF}|{NANS})")
def offsets_of_31_bits(x: Tensor) -> Tensor:
    far = x.dim() > 1 and len(x) and x.numel() and x.stride(0) > 2**29
    return reference("relu_squared")(_rows_at(x, 31) if far else x)


@kernel("softmax", "offsets", f"logits: .*({OFF}|{NANS})")
def byte_offsets_of_32_bits(logits: Tensor, *, temperature: Any = 1.0) -> Tensor:
    far = logits.dim() > 1 and len(logits) and logits.numel() and logits.stride(0) > 2**29
    return reference("softmax")(_rows_at(logits, 30) if far else logits, temperature=temperature)


@kernel("quick_gelu", "offsets", "the process died of SIGSEGV")
def signed_offsets_of_32_bits(x: Tensor) -> Tensor:
    if x.dim() == 2 and x.is_cpu and x.stride(0) > 2**29:
        faulthandler.disable()  # In the child, whose death is the kit's to report.
        for row in range(len(x)):
            at = ctypes.c_int32(row * x.stride(0)).value * x.itemsize
            ctypes.string_at(x.data_ptr() + at, x.shape[1] * x.itemsize)
    return reference("quick_gelu")(x)


@condition(SILU, "condition", "without data")
def looks_at_data(x: Tensor) -> str | None:
    return None if x.is_meta or (x.isfinite().all() and x.numel()) else "not finite"


@condition(SILU, "condition", "OSError: no driver")
def raises(x: Tensor) -> str | None:
    raise OSError("no driver")


@condition(SILU, "condition", "answered with ''")
def gives_no_reason(x: Tensor) -> str | None:
    return "" if x.dtype == torch.float64 else None


@condition(SILU, "condition", "answered with True")
def answers_with_a_truth(x: Tensor) -> Any:
    return x.dtype == torch.float64 or None


@condition(SILU, "condition", "for fewer rows")
def counts_rows(x: Tensor) -> str | None:
    return "a single row" if x.dim() == 2 and x.shape[0] == 1 else None


@condition(SILU, "condition", "for more rows")
def has_a_most_of_rows(x: Tensor) -> str | None:
    return "more than 1000 rows" if x.dim() == 2 and x.shape[0] > 1000 else None


@condition(SILU, "condition", "without data")
def asks_for_the_device(x: Tensor) -> str | None:
    return None if x.is_cpu else "not on the CPU"


@kernel(RMS, "numerics", f"7 .*({OFF})", supports=lambda x, *_: None)
def accepts_sizes_that_it_cannot_do(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    right = reference(RMS)(x, weight, eps)
    return right if x.shape[-1] % 2 == 0 or x.shape[-1] < 5 else right.roll(1, -1)


@kernel(SILU, "fake", "returned .* with strides .*; declared is")
def returns_columns(x: Tensor) -> Tensor:
    result = reference(SILU)(x)
    return result if result.dim() < 2 else result.mT.contiguous().mT


@inplace(MUL_ADD, "not what the functional form returns")
def rounds_twice_in_place(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x.mul_(scale).add_(y)


@inplace("fused_add_rms_norm", "not what the functional form returns")
def leaves_the_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Any:
    x.copy_(reference("fused_add_rms_norm")(x, residual, weight, eps)[0])
    return x, residual


@inplace("fused_add_rms_norm", "not what the functional form returns|result 0 is not|returned")
def writes_the_wrong_argument(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> Any:
    normed, total = reference("fused_add_rms_norm")(x, residual, weight, eps)
    x.copy_(total)
    residual.copy_(normed)
    return x, residual


@inplace("fused_add_rms_norm", "wrote into weight")
def spoils_the_weight(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> Any:
    normed, total = reference("fused_add_rms_norm")(x, residual, weight, eps)
    weight.mul_(2)
    return x.copy_(normed), residual.copy_(total)


@inplace(MUL_ADD, "wrote into x, or between the elements of it")
def writes_between_columns(x: Tensor, y: Tensor, scale: float) -> Tensor:
    result = reference(MUL_ADD)(x, y, scale)
    if not x.is_contiguous():
        torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).zero_()
    return x.copy_(result)


@inplace("rotary_embedding", "result 1 is not what the functional form returns")
def leaves_the_key(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    *,
    is_neox: bool = True,
    offsets: Tensor | None = None,
) -> Any:
    turned, _ = reference("rotary_embedding")(
        positions, query, None, cos_sin_cache, is_neox=is_neox, offsets=offsets
    )
    return query.copy_(turned), key


@kernel("sample", "invariance", f"have other bits alone|{INTS}", batch_invariant=True)
def seed_of_the_first_row(
    probs: Tensor,
    *,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    seed: Any,
    offset: Any,
    indices: Tensor | None = None,
) -> Tensor:
    if isinstance(seed, Tensor) and seed.numel():
        seed = seed[:1].expand(seed.shape)
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    return reference("sample")(probs, **limits, seed=seed, offset=offset, indices=indices)


GRADIENTS = {"check": "gradients", "complaint": OFF}
edit(
    SILU,
    "no gradient through up",
    old="(silu(gate) * up).to",
    new="(silu(gate) * up.detach()).to",
    **GRADIENTS,
)
edit(
    SILU,
    "gradient of silu is a sigmoid",
    old="(silu(gate) * up).to",
    new="(gate * gate.sigmoid().detach() * up).to",
    **GRADIENTS,
)
edit(
    RMS,
    "no gradient through the root",
    old="torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)",
    new="torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach()",
    **GRADIENTS,
)
edit(
    "layer_norm",
    "no gradient through the mean",
    old="centred = wide(x) - wide(x).mean(-1, keepdim=True)\n",
    new="centred = wide(x) - wide(x).mean(-1, keepdim=True).detach()\n"
    "    return _rounded((_over_root(centred, eps) if weight is None else "
    "_over_root(centred, eps) * wide(weight)) + (0 if bias is None else wide(bias)), "
    "x.dtype)\n",
    **GRADIENTS,
)
edit(
    "rotary_embedding",
    "gradient turned the same way",
    old="a * cos - b * sin, b * cos + a * sin",
    new="a * cos - b * sin + (b * sin).detach() * 2 - 2 * b * sin + (2 * b * sin - (2 * b * "
    "sin).detach()) * 2, b * cos + a * sin",
    **GRADIENTS,
)
edit(
    "relu_squared",
    "gradient not doubled",
    old="relu(wide(x)).square()",
    new="(relu(wide(x)) * relu(wide(x)).detach())",
    **GRADIENTS,
)
