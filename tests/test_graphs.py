"""Graphs on the accelerator of the machine; ``tests/simulated`` has what needs none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from accelerator import HERE, with_graphs
from invalid import SPOILERS, assert_well, drawing, spoil, spoil_the_second_of_three

pytestmark = [with_graphs, pytest.mark.filterwarnings("ignore:the reference, which is slow")]

HEADS, DIM = 4, 64


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A capture that failed leaves no trace: torch computes, draws and captures."""
    yield
    assert HERE is not None
    module = torch.get_device_module(HERE.type)
    assert not module.is_current_stream_capturing()
    assert module.current_stream() == module.default_stream()
    assert torch.rand(8, device=HERE).sum().item() > 0
    graph = hal.graphs.capture(lambda x: x + torch.rand_like(x), torch.zeros(8, device=HERE))
    x = torch.zeros(8, device=HERE)
    assert not torch.equal(graph(x), graph(x))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device=HERE, dtype=torch.bfloat16)


def gate(x: Tensor) -> Tensor:
    return hal.ops.silu_and_mul(x) * 2


def test_a_function_captured_whole_does_what_it_does() -> None:
    fast = hal.graphs.capture(gate, draw(64, 512), pad={"x": float("nan")})
    for count in (1, 3, 17, 64, 65):
        x = draw(count, 512)
        assert torch.equal(fast(x), gate(x))
    stats = fast.stats()
    assert stats.graphs == len(stats.buckets)
    assert stats.fallbacks == {"more than 64 tokens": 1}


class Model:
    """Layers of attention over a paged cache, without products of matrices."""

    def __init__(self, layers: int = 3) -> None:
        self.cache = torch.zeros(layers, 2, 64, 16, HEADS, DIM, dtype=torch.bfloat16, device=HERE)

    def __call__(
        self,
        x: Tensor,
        slots: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        starts: Tensor,
        most: int,
        longest: int,
    ) -> Tensor:
        for keys, values in self.cache:
            rows = hal.ops.rms_norm(x, None).unflatten(-1, (HEADS, DIM))
            hal.ops.store_kv_cache_(rows, rows, keys, values, slots)
            mixed, _ = hal.ops.paged_attention(
                rows, keys, values, block_table, seq_lens, starts, most, longest, causal=True
            )
            x = x + mixed.flatten(-2)
        return x


def prompt(count: int) -> tuple[Any, ...]:
    starts = torch.tensor([0, count], dtype=torch.int32, device=HERE)
    table = torch.randperm(64, device=HERE).int()[None]
    slots = table[0, torch.arange(count, device=HERE) // 16] * 16
    slots += torch.arange(count, device=HERE, dtype=torch.int32) % 16
    return draw(count, HEADS * DIM), slots, table, starts[1:].clone(), starts, count, count


def test_a_function_broken_at_attention_does_what_it_does() -> None:
    model = Model()
    fast = hal.graphs.breakable(
        model,
        *prompt(256),
        at=hal.ops.paged_attention,
        eager=("block_table", "seq_lens", "starts", "most", "longest"),
        pad={"x": 0, "slots": -1},
        buckets=[16, 64, 128, 256],
    )
    assert fast.stats().graphs == 4 * 4
    assert not model.cache.any()
    for count in (256, 5, 100, 64, 300, 17):
        given = prompt(count)
        model.cache.zero_()
        got, cached = fast(*given), model.cache.clone()
        model.cache.zero_()
        torch.testing.assert_close(got, model(*given))
        torch.testing.assert_close(cached, model.cache)


def test_an_alias_has_no_share_in_its_memory() -> None:
    assert HERE is not None
    module = torch.get_device_module(HERE.type)
    x = torch.ones(1 << 20, device=HERE)
    alias = hal.graphs.weak_ref_tensor(x.view(1 << 10, -1).t())
    assert (alias.data_ptr(), alias.stride()) == (x.data_ptr(), (1, 1 << 10))
    x.fill_(3)
    assert alias.sum().item() == 3 << 20
    before = module.memory_allocated()
    del x
    assert module.memory_allocated() == before - (4 << 20)


def test_an_exception_in_the_middle_leaves_nothing() -> None:
    def failing(x: Tensor) -> Tensor:
        assert HERE is not None
        if torch.get_device_module(HERE.type).is_current_stream_capturing():
            raise ValueError("in the middle")
        return x * 2

    with pytest.raises(ValueError, match="in the middle"):
        hal.graphs.capture(failing, draw(2, 4))


@pytest.mark.parametrize("name", SPOILERS)
def test_a_capture_that_was_made_invalid_leaves_nothing(name: str) -> None:
    assert HERE is not None
    module, x = torch.get_device_module(HERE.type), torch.zeros(8, device=HERE)
    earlier = drawing(x)
    spoil(module, x, name)
    assert_well(module, earlier, x)


def test_nor_does_the_second_graph_of_three() -> None:
    assert HERE is not None
    module, x = torch.get_device_module(HERE.type), torch.zeros(2, 8, device=HERE)
    earlier = drawing(x[0])
    spoil_the_second_of_three(module, x)
    assert_well(module, earlier, x[0])


def test_what_is_read_and_returned_is_what_it_is_without_graphs() -> None:
    """Casts by autocast inside of another, heads before tokens, and what is on the host."""
    assert HERE is not None
    kind, weight = HERE.type, draw(64, 64).float().requires_grad_()

    def heads(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(kind, torch.bfloat16):
            y = torch.nn.functional.linear(x, weight)
        return y.view(-1, 8, 8).transpose(0, 1), torch.arange(5000) + 5

    with torch.autocast(kind, enabled=False):
        fast = hal.graphs.capture(heads, draw(8, 64), pad={"x": 0})
    others = [torch.full((64, 64), 9.0, dtype=torch.bfloat16, device=HERE) for _ in range(64)]
    for count in (1, 3, 8):
        x = draw(count, 64)
        got, want = fast(x), heads(x)
        torch.testing.assert_close(got[0], want[0])
        assert torch.equal(got[1], want[1])
    assert others[0][0, 0] == 9


def test_a_result_that_is_an_argument_may_be_given_back_as_another() -> None:
    fast = hal.graphs.capture(lambda x, last: (x + last, x), draw(2), draw(2), copy=False)
    x = torch.ones_like(draw(2))
    given = x, x * 10
    for _ in range(2):
        given = fast(*given)
    assert [each.tolist() for each in given] == [[12.0, 12.0], [11.0, 11.0]]


def test_memory_that_nobody_held_before_is_not_taken_for_given_back() -> None:
    draw(64, 1 << 20)
    assert hal.graphs.capture(gate, draw(64, 512)).stats().bytes > 0


def test_memory_does_not_grow_over_a_thousand_replays() -> None:
    assert HERE is not None
    module = torch.get_device_module(HERE.type)
    fast = hal.graphs.capture(gate, draw(64, 512), pad={"x": 0})
    x = draw(50, 512)
    fast(x)
    module.synchronize()
    before = module.memory_reserved(), module.memory_allocated()
    for _ in range(1000):
        fast(x)
    assert (module.memory_reserved(), module.memory_allocated()) == before


def test_what_a_library_of_products_keeps_for_a_stream_lasts_as_long_as_the_graphs() -> None:
    """Torch's own graphs of compiled code have it let go of that, and its memory is given back."""
    forget = getattr(torch._C, f"_{HERE.type}_clearCublasWorkspaces", None) if HERE else None
    if forget is None:
        pytest.skip("torch keeps nothing of that kind there")
    weight = draw(4096, 4096)
    fast = hal.graphs.capture(lambda x: x @ weight, draw(20, 4096))
    x = draw(20, 4096)
    want = fast(x)
    forget()
    module = torch.get_device_module(HERE)
    module.empty_cache()
    held = [torch.full((1 << 22,), float("nan"), device=HERE) for _ in range(16)]
    assert torch.equal(fast(x), want)
    assert all(each.isnan().all() for each in held)
