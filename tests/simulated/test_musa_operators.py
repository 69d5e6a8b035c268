"""What the kernels for Moore Threads' cards need of torch, and whether torch_musa has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import hal
from hal.testing.simulated import fallbacks, strict
from simulated.musa_calls import calls, run
from simulated.vendors import ARCH, host, on_card, vendors

REGISTERED = (
    *(
        "aten::any.all_out",
        "aten::any.out",
        "aten::arange.start_out",
        "aten::bitwise_or.Tensor_out",
    ),
    *("aten::cat.out", "aten::clamp.out", "aten::div.out", "aten::eq.Scalar_out"),
    *("aten::fill_.Scalar", "aten::gather.out", "aten::ge.Tensor_out", "aten::isnan"),
    *("aten::le.Scalar_out", "aten::masked_fill_.Scalar", "aten::sigmoid.out"),
    *("aten::sum.IntList_out", "aten::where.self"),
)
"""Those of torch's operators that the backend needs and torch_musa registers for its device.

They were looked up in torch_musa/csrc/aten/ops/musa_functions.yaml of MooreThreads/torch_musa
(BSD-3-Clause) at 008913f; memory, copies and views, which a simulated device has of its own, are
there too: _copy_from, _reshape_alias, as_strided, empty.memory_format, empty_strided, view.
"""

CALLS = calls()

pytestmark = pytest.mark.skipif(
    ARCH < 31 or hal.supports(hal.Capability.TRITON, "musa"),
    reason="an S5000 without Triton has all of the kernels",
)


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        yield


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_needs_nothing_that_torch_musa_lacks(name: str) -> None:
    call = CALLS[name]
    args, kwargs = on_card(call[2:])
    with strict(allow=REGISTERED):
        found = run(call, args, kwargs)
    wanted = getattr(hal.ops, call[0])(*call[2], **call[3])
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for got, want in pairs:
        got, want = (x.float() if x.itemsize == 1 else x for x in (host(got), want))
        torch.testing.assert_close(got, want)


def test_all_that_is_listed_is_needed() -> None:
    with fallbacks() as needed:
        for call in CALLS.values():
            run(call, *on_card(call[2:]))
    assert set(needed) == set(REGISTERED)


def test_one_that_is_missing_would_be_noticed() -> None:
    call = CALLS["ragged"]
    args, kwargs = on_card(call[2:])
    fewer = [name for name in REGISTERED if "arange" not in name]
    with strict(allow=fewer), pytest.raises(NotImplementedError, match="arange"):
        run(call, args, kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_can_be_captured(name: str) -> None:
    call = CALLS[name]
    args, kwargs = on_card(call[2:])
    wanted = run(call, args, kwargs)
    graph = torch.musa.MUSAGraph()
    with torch.musa.graph(graph):
        found = run(call, args, kwargs)
    graph.replay()
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for got, want in pairs:
        got, want = (x.float() if x.itemsize == 1 else x for x in (host(got), host(want)))
        torch.testing.assert_close(got, want)
