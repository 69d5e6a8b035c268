"""Tensors of a simulated device: where they lie, what runs on them, and what is refused."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch

from hal.testing.simulated import fallbacks, simulate, simulation, strict

HERE = simulate("musa")


def test_tensors_have_storage_strides_and_a_type_of_their_own() -> None:
    x = torch.arange(24.0, device="musa").view(4, 6)
    assert (str(x.device), x.is_musa, x.is_cuda, x.is_cpu) == ("musa:0", True, False, False)
    assert x.t().stride() == (1, 6)
    assert not x.t().is_contiguous()
    view = x[1:, ::2]
    view.add_(100)
    assert x[1, 2].item() == 108
    assert x[1, 3].item() == 9
    assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert view.untyped_storage().device == x.device


OPERATORS = {
    "matmul": lambda x: x @ x.t(),
    "topk": lambda x: x.topk(3).values,
    "sort": lambda x: x.sort(-1, descending=True).indices,
    "index_put": lambda x: x.clone().index_put_(
        (torch.zeros(1, dtype=int, device=x.device),), x[:1]
    ),
    "mask": lambda x: x[x > 0],
    "norm": lambda x: torch.nn.functional.layer_norm(x, (8,)),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
    "embedding": lambda x: torch.nn.functional.embedding(torch.arange(3, device=x.device), x),
    "fp8": lambda x: x.to(torch.float8_e4m3fn).float(),
    "bf16": lambda x: x.bfloat16() * 2,
    "cat": lambda x: torch.cat([x, x.flip(0)]),
    "scan": lambda x: x.cumsum(1),
    "foreach": lambda x: torch._foreach_mul([x, x], 2.0)[1],
    "unfold": lambda x: x.unfold(0, 2, 1).sum(-1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 4, 2)).conj() * 2),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_give_what_they_give_on_the_host(name: str) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    got, want = OPERATORS[name](x.to("musa")), OPERATORS[name](x)
    assert got.device.type == "musa"
    torch.testing.assert_close(got.cpu(), want)


def test_out_is_written_where_it_is() -> None:
    out = torch.empty(3, device="musa")
    address = out.data_ptr()
    torch.add(torch.ones(3, device="musa"), 1, out=out)
    assert (out.tolist(), out.data_ptr()) == ([2, 2, 2], address)


def test_memory_that_nothing_was_written_to_shows() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.empty(5, dtype=dtype, device="musa").isnan().all()
    assert torch.empty(5, dtype=torch.int32, device="musa").tolist() == [-1] * 5


def test_tensors_remember_their_device() -> None:
    x = torch.ones(3, device="musa:1")
    assert (x + x).device == torch.device("musa:1")
    # Its memory is made for what is empty at first.
    assert torch.arange(4, device="musa:1").view(2, 2).device == torch.device("musa:1")
    assert x.to("musa:0").device.index == 0
    with HERE.device(1):
        assert torch.empty(1, device="musa").device.index == 1
    assert HERE.current_device() == 0
    with HERE.device_of(x):
        assert HERE.current_device() == 1
    HERE.set_device("musa:1")
    assert torch.accelerator.current_device_index() == 1
    HERE.set_device(0)
    assert (HERE.device_count(), torch.accelerator.device_count()) == (2, 2)


def test_devices_do_not_mix() -> None:
    x = torch.ones(3, device="musa:0")
    for other in (torch.ones(3, device="musa:1"), torch.ones(3)):
        with pytest.raises(RuntimeError, match="same device"):
            x + other
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="invalid device ordinal 2; there are 2"):
        torch.ones(3, device="musa:2")
    with pytest.raises(TypeError, match="can't convert"):
        x.numpy()
    with pytest.raises(ValueError, match="of type musa, not cpu"):
        HERE.synchronize("cpu")


def test_fallbacks_are_counted() -> None:
    x = torch.ones(3, device="musa")
    with fallbacks() as found:
        torch.sort(x)
        torch.sort(x)
        x.view(1, 3)
    assert found == {"aten::sort.values_stable": 2}
    torch.sort(x)
    assert found["aten::sort.values_stable"] == 2


def test_strict_refuses_what_has_no_kernel() -> None:
    x = torch.ones(3, device="musa")
    with strict(["aten::mul"]):
        assert torch.empty(2, device="musa").view(2, 1).shape == (2, 1)
        x * 2
        with pytest.raises(
            NotImplementedError, match=r"'aten::sort.values_stable' .* 'musa' backend"
        ):
            torch.sort(x)
        with strict(), pytest.raises(NotImplementedError, match="aten::mul"):
            x * 2
        x * 2
    torch.sort(x)


def test_strict_holds_for_every_thread() -> None:
    raised: list[BaseException] = []

    def other() -> None:
        try:
            torch.sort(torch.empty(3, device="musa"))
        except NotImplementedError as error:
            raised.append(error)

    with strict():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(raised) == 1


def test_memory_is_counted() -> None:
    before, reserved = HERE.memory_allocated(), HERE.memory_reserved()
    x = torch.empty(1000, device="musa")
    assert HERE.memory_allocated() - before == 4096
    assert HERE.memory_stats()["allocated_bytes.all.current"] == before + 4096
    free, total = HERE.mem_get_info()
    assert total - free == HERE.memory_reserved() == reserved + 4096
    other = HERE.memory_allocated(1)
    del x
    assert (HERE.memory_allocated(), HERE.memory_allocated(1)) == (before, other)
    assert HERE.max_memory_allocated() >= before + 4096
    HERE.reset_peak_memory_stats()
    assert HERE.max_memory_allocated() == before
    y = torch.empty(10, device="musa").resize_(1000)
    assert HERE.memory_allocated() - before == 4096
    del y


def test_more_than_there_is_cannot_be_had() -> None:
    before = HERE.memory_allocated()
    total = HERE.mem_get_info()[1]
    with pytest.raises(torch.OutOfMemoryError, match="musa out of memory"):
        torch.empty(total + 1, dtype=torch.uint8, device="musa")
    assert HERE.memory_allocated() == before
    assert HERE.OutOfMemoryError is torch.OutOfMemoryError


@pytest.mark.skipif(not hasattr(torch.accelerator, "memory_allocated"), reason="before torch 2.9")
def test_torch_knows_the_memory_as_well() -> None:
    x = torch.empty(1000, device="musa")
    assert torch.accelerator.memory_allocated() == HERE.memory_allocated() >= x.nbytes


def test_the_same_seed_draws_what_the_host_draws() -> None:
    torch.manual_seed(7)
    want = torch.rand(3), torch.randn(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3, device="musa").cpu(), want[0])
    assert torch.equal(torch.randn(3, device="musa").cpu(), want[1])
    generator = torch.Generator("musa").manual_seed(7)
    assert torch.equal(torch.rand(3, device="musa", generator=generator).cpu(), want[0])


def test_each_device_draws_for_itself() -> None:
    torch.manual_seed(7)
    first = torch.rand(3, device="musa:0")
    assert torch.equal(torch.rand(3, device="musa:1").cpu(), first.cpu())
    state = HERE.get_rng_state()
    drawn = torch.rand(3, device="musa")
    assert not torch.equal(drawn, first)
    HERE.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="musa"), drawn)
    HERE.manual_seed(7)
    assert torch.equal(torch.rand(3, device="musa"), first)
    HERE.set_rng_state_all([state, state])
    assert torch.equal(torch.rand(3, device="musa:1").cpu(), drawn.cpu())


def test_pinned_memory_is_known() -> None:
    x = torch.ones(3)
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert pinned.to("musa", non_blocking=True).tolist() == [1, 1, 1]


def test_autocast_casts_what_it_should() -> None:
    x = torch.randn(4, 4, device="musa")
    with torch.autocast("musa", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        assert torch.softmax((x @ x), -1).dtype is torch.float32
    assert (x @ x).dtype is torch.float32


def test_gradients_flow() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
    there = copy.deepcopy(model).to("musa")
    x = torch.randn(3, 8)
    for each, data in ((model, x), (there, x.to("musa"))):
        each(data).square().sum().backward()
    for here, other in zip(model.parameters(), there.parameters(), strict=True):
        assert other.grad.device.type == "musa"
        torch.testing.assert_close(here.grad, other.grad.cpu())
    optimizer = torch.optim.AdamW(there.parameters())
    optimizer.step()


def test_tensors_are_saved_and_loaded() -> None:
    x = torch.randn(3, device="musa")
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    loaded = torch.load(file)["x"]
    assert loaded.device == x.device
    assert torch.equal(loaded, x)
    file.seek(0)
    assert torch.load(file, map_location="cpu")["x"].is_cpu
    assert torch.equal(copy.deepcopy(x), x)


def test_the_module_is_where_torch_looks_for_it() -> None:
    assert torch.get_device_module("musa") is HERE is torch.musa
    assert HERE.get_device_properties(0).total_memory == HERE.mem_get_info()[1]
    assert torch.accelerator.current_accelerator().type == "musa"
    assert HERE.is_available()
    found = simulation()
    assert found is not None
    assert (found.name, found.devices) == ("musa", 2)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        HERE.absent  # noqa: B018
