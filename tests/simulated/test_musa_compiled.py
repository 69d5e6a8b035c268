"""Operators of Moore Threads' libraries under torch.compile: their fakes, and what they hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import hal
from simulated.vendors import ARCH, drawn, host, on_card, vendors

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn

from_22 = pytest.mark.skipif(ARCH < 22, reason="muDNN has SwiGLU from mp_22 on")
from_31 = pytest.mark.skipif(ARCH < 31, reason="8-bit floats are for mp_31")


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        torch._dynamo.reset()
        yield


def compiled(function: Callable[..., Tensor], *args: Tensor, backend: str = "aot_eager") -> Tensor:
    return host(torch.compile(function, backend=backend, fullgraph=True)(*args))


@from_22
@pytest.mark.parametrize("dynamic", [False, True])
def test_swiglu_of_torch_musa_is_compiled_for_any_size(dynamic: bool) -> None:
    gate = torch.ops.aten._fused_swiglu_forward
    function = torch.compile(lambda x: gate(x) + 1, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 5):
        x = on_card(drawn(rows, 64))
        torch.testing.assert_close(host(function(x)), host(gate(x) + 1))


@from_22
def test_its_gradient_is_compiled_too() -> None:
    x = on_card(drawn(3, 64)).requires_grad_()
    gate = torch.ops.aten._fused_swiglu_forward
    torch.compile(lambda x: gate(x).sum(), backend="aot_eager", dynamic=True)(x).backward()
    found, x.grad = x.grad, None
    gate(x).sum().backward()
    torch.testing.assert_close(host(found), host(x.grad))


@from_31
def test_an_operator_that_hides_what_it_writes_gives_garbage_and_ours_does_not() -> None:
    import sgl_kernel  # noqa: F401

    name = "sgl_per_token_group_quant_8bit"
    quantise = getattr(torch.ops.sgl_kernel, name)

    def unwrapped(x: Tensor) -> Tensor:
        q = torch.zeros(x.shape, dtype=E4M3, device=x.device)
        scale = torch.zeros((x.shape[0], 1), device=x.device)
        quantise(x, q, scale, 128, 1e-10, -448.0, 448.0, False)
        return scale

    def ours(x: Tensor) -> Tensor:
        return hal.ops.per_token_group_quant(x)[1]

    x = on_card(drawn(4, 128))
    wanted = host(hal.ops.per_token_group_quant(host(x))[1])
    assert torch.equal(host(unwrapped(x)), wanted)
    with torch.library._scoped_library("sgl_kernel", "FRAGMENT") as library:
        torch.library.register_fake(f"sgl_kernel::{name}", lambda *_: None, lib=library)
        # Nothing says that it writes, so compiled code leaves it out.
        assert not compiled(unwrapped, x).any()
    assert torch.equal(compiled(ours, x), wanted)


@from_31
def test_functions_that_are_no_operators_are_compiled_as_ours() -> None:
    def attend(q: Tensor, starts: Tensor) -> Tensor:
        return hal.ops.varlen_attention(q, q, q, starts, starts, 8, 8, causal=True)[0]

    q, starts = drawn(8, 2, 64, dtype=BF16), torch.tensor([0, 5, 8], dtype=torch.int32)
    assert str(
        hal.explain("varlen_attention", *on_card((q, q, q, starts, starts)), 8, 8).chosen
    ) == ("musa:mate")
    torch.testing.assert_close(compiled(attend, *on_card((q, starts))), attend(q, starts))
