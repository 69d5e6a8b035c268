"""Graphs of a simulated device: what a capture records, undoes and forbids, and what replays do."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hal
from hal.graphs.device import recover
from hal.testing.simulated import simulate
from hal.testing.simulated.build import extension

HERE = simulate("musa")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A capture that failed leaves no trace."""
    yield
    assert not HERE.is_current_stream_capturing()
    assert HERE.current_stream() == HERE.default_stream()
    assert torch.rand(8, device="musa").sum().item() > 0


def captured(function: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    """A graph of a function, and what the function returned."""
    graph, pool = HERE.Graph(), options.pop("pool", None) or HERE.graph_pool_handle()
    try:
        with HERE.graph(graph, pool=pool, **options):
            returned = function()
    except RuntimeError:
        with HERE.stream(HERE.Stream()):
            recover(graph, torch.device("musa", 0), pool)
        raise
    return graph, returned


def test_nothing_takes_effect_before_a_replay() -> None:
    x, total = torch.ones(4, device="musa"), torch.zeros(4, device="musa")
    graph, (y, count) = captured(lambda: (total.add_(x), (x > 0).sum())[0:2])
    assert total.tolist() == [0] * 4
    assert count.item() == -1
    assert y is total
    graph.replay()
    graph.replay()
    assert total.tolist() == [2] * 4
    assert count.item() == 4


def test_results_are_garbage_until_a_replay() -> None:
    x = torch.ones(4, device="musa")
    graph, (doubled, flags) = captured(lambda: (x * 2, x > 0))
    assert doubled.isnan().all()
    graph.replay()
    assert (doubled.tolist(), flags.tolist()) == ([2] * 4, [True] * 4)


def test_a_replay_sees_new_data_in_the_same_memory() -> None:
    x = torch.ones(2, 3, device="musa")
    graph, y = captured(lambda: (x.t() @ x).relu().view(-1)[1:])
    address = y.data_ptr()
    for value in (2.0, 3.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value**2] * 8
    assert y.data_ptr() == address


def test_a_replay_draws_anew() -> None:
    torch.manual_seed(5)
    want = [torch.rand(3) for _ in range(3)]
    torch.manual_seed(5)
    mine = torch.Generator("musa").manual_seed(5)
    graph, (drawn, other) = captured(
        lambda: (torch.rand(3, device="musa"), torch.rand(3, device="musa", generator=mine))
    )
    for expected in want:
        graph.replay()
        assert torch.equal(drawn.cpu(), expected)
        assert torch.equal(other.cpu(), expected)


FORBIDDEN: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "list": lambda x: x.tolist(),
    "from pageable memory": lambda x: torch.ones(4).to(x.device),
    "from pageable memory later": lambda x: torch.ones(4).to(x.device, non_blocking=True),
    "from pinned memory at once": lambda x: torch.ones(4).pin_memory().to(x.device),
    "a list": lambda x: torch.tensor([1, 2], device=x.device),
    "synchronize": lambda _: HERE.synchronize(),
    "synchronize a stream": lambda _: HERE.current_stream().synchronize(),
    "query a stream": lambda _: HERE.current_stream().query(),
    "synchronize an event": lambda _: HERE.current_stream().record_event().synchronize(),
    "query an event": lambda _: HERE.current_stream().record_event().query(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "capture": lambda x: captured(lambda: x + 1),
    "by an accelerator's name": lambda _: torch.accelerator.synchronize(),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_the_host_may_not_do_in_a_capture(name: str) -> None:
    x = torch.ones(4, device="musa")
    with pytest.raises(RuntimeError) as raised:
        captured(lambda: FORBIDDEN[name](x))
    said = f"{raised.value.__context__}: {raised.value}"
    assert "not permitted when stream is capturing" in said
    FORBIDDEN[name](x)


def test_what_was_forbidden_leaves_traces_until_it_recovers() -> None:
    """As on other devices: without that, what is tried here would prove nothing of them."""
    x, side = torch.ones(1 << 16, device="musa"), HERE.Stream()
    earlier, _ = captured(lambda: x + 1)
    graph, pool = HERE.Graph(), HERE.graph_pool_handle()
    with (
        pytest.raises(RuntimeError, match="previous error during capture"),
        HERE.graph(graph, pool=pool),
    ):
        x.cpu()

    def capture(graph: Any) -> None:
        with HERE.graph(graph, pool=pool):
            x.clone()

    def taken() -> int:
        y = x * 2
        y.record_stream(side)
        del y
        torch.empty(1, device="musa")
        return HERE.memory_reserved()

    def broken() -> list[str]:
        said: list[str] = []
        again = HERE.Graph()
        for each in torch.rand_like, lambda _: earlier.replay(), lambda _: capture(again):
            try:
                each(x)
            except RuntimeError as error:
                said.append(str(error).splitlines()[0])
        return said

    outside = "Offset increment outside graph capture encountered unexpectedly."
    assert broken() == [outside, outside, "beginAllocateToPool: already recording to mempool_id"]
    assert taken() + x.nbytes == taken()
    with HERE.stream(HERE.Stream()):
        recover(graph, x.device, pool)
    assert broken() == []
    assert taken() == taken()


def test_a_kernel_of_hal_may_not_do_it_either() -> None:
    """What runs inside an operator of hal is not recorded by itself, but it is watched."""
    x = torch.ones(4, device="musa")

    def reads(x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum())

    with torch.library._scoped_library("simulated_test", "FRAGMENT") as library:
        library.define("reads(Tensor x) -> Tensor")
        library.impl("reads", reads, "CompositeExplicitAutograd")
        with pytest.raises(RuntimeError, match="previous error during capture") as raised:
            captured(lambda: torch.ops.simulated_test.reads(x))
    assert "a value is read by the host" in str(raised.value.__context__)


def test_a_value_of_the_host_is_that_of_the_capture() -> None:
    x, factor = torch.ones(4, device="musa"), torch.tensor(3.0)
    graph, y = captured(lambda: x * factor)
    factor.fill_(5)
    graph.replay()
    assert y.tolist() == [3] * 4


def test_indices_and_pinned_memory_are_allowed() -> None:
    x, i = torch.arange(4.0, device="musa"), torch.tensor([2, 0], device="musa")
    host = torch.ones(2).pin_memory()
    graph, (y, copy) = captured(lambda: (x[i], host.to("musa", non_blocking=True)))
    host.fill_(7)
    i.fill_(3)
    graph.replay()
    assert (y.tolist(), copy.tolist()) == ([3, 3], [7, 7])


def test_other_threads_may_wait_only_if_the_capture_says_so() -> None:
    def wait() -> list[str]:
        said: list[str] = []

        def other() -> None:
            try:
                HERE.synchronize()
            except RuntimeError as error:
                said.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return said

    assert "not permitted" in captured(wait)[1][0]
    assert captured(wait, capture_error_mode="thread_local")[1] == []


def test_a_capture_needs_a_stream_of_its_own() -> None:
    graph = HERE.Graph()
    with pytest.raises(RuntimeError, match="non-default stream"):
        graph.capture_begin()
    with pytest.raises(RuntimeError, match="not captured"):
        graph.replay()
    with pytest.raises(RuntimeError, match="without capture_begin"):
        graph.capture_end()


def test_a_graph_is_captured_once() -> None:
    x = torch.ones(4, device="musa")
    graph, _ = captured(lambda: x + 1)
    with pytest.raises(RuntimeError, match="already owns a captured graph"):
        HERE.graph(graph).__enter__()
    graph.reset()
    with pytest.raises(RuntimeError, match="not captured"):
        graph.replay()
    with HERE.graph(graph):
        y = x + 2
    graph.replay()
    assert y.tolist() == [3] * 4


def test_an_exception_ends_the_capture() -> None:
    x = torch.ones(4, device="musa")
    graph = HERE.Graph()

    def fails() -> None:
        with HERE.graph(graph):
            x.add_(1)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert x.tolist() == [1] * 4
    with pytest.raises(RuntimeError, match="not captured"):
        graph.replay()


def test_work_on_a_stream_that_was_joined_is_captured() -> None:
    x, side = torch.ones(4, device="musa"), HERE.Stream()

    def forked() -> torch.Tensor:
        side.wait_stream(HERE.current_stream())
        with HERE.stream(side):
            assert HERE.is_current_stream_capturing()
            y = x * 2
        HERE.current_stream().wait_stream(side)
        return y + 1

    graph, y = captured(forked)
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [11] * 4


def test_work_that_is_not_waited_for_spoils_the_capture() -> None:
    x, side = torch.ones(4, device="musa"), HERE.Stream()

    def forked() -> None:
        side.wait_stream(HERE.current_stream())
        with HERE.stream(side):
            x.mul_(2)

    with pytest.raises(RuntimeError, match="unjoined work"):
        captured(forked)
    assert x.tolist() == [1] * 4


def test_other_streams_just_run() -> None:
    x, side = torch.ones(4, device="musa"), HERE.Stream()

    def beside() -> None:
        with HERE.stream(side):
            assert not HERE.is_current_stream_capturing()
            x.mul_(2)

    graph, _ = captured(beside)
    assert x.tolist() == [2] * 4
    graph.replay()
    assert x.tolist() == [2] * 4
    with pytest.raises(RuntimeError, match="work that is not captured"):
        captured(lambda: HERE.current_stream().wait_stream(side))


def test_intermediate_results_keep_their_memory() -> None:
    x = torch.ones(1 << 16, device="musa")
    before = HERE.memory_reserved()
    graph, y = captured(lambda: ((x + 1) * 2).sum())
    gc.collect()
    kept = HERE.memory_reserved() - before
    # The sum and its operand, of which one is freed before the other is made: the first is reused.
    assert kept >= 2 * x.nbytes
    for value in (3.0, 4.0):
        spoiled = [torch.full((1 << 16,), float("nan"), device="musa") for _ in range(4)]
        x.fill_(value)
        graph.replay()
        assert y.item() == (value + 1) * 2 * x.numel()
    del spoiled
    assert HERE.memory_reserved() - before == kept
    graph.reset()
    assert HERE.memory_reserved() - before == y.untyped_storage().nbytes() + 508
    del graph, y
    assert HERE.memory_reserved() == before


def test_graphs_share_a_pool() -> None:
    x = torch.ones(1 << 16, device="musa")

    def step() -> torch.Tensor:
        return ((x + 1) * 2).sum()

    pool = HERE.graph_pool_handle()
    first, y = captured(step, pool=pool)
    before = HERE.memory_reserved()
    second, z = captured(step, pool=first.pool())
    assert HERE.memory_reserved() - before == 512
    assert second.pool() == first.pool() == pool
    first.replay()
    second.replay()
    assert y.item() == z.item() == 4 * x.numel()


def test_what_was_freed_is_not_read() -> None:
    def made() -> tuple[Any, Any]:
        x = torch.ones(4, device="musa")
        return captured(lambda: x + 1)

    graph, y = made()
    with pytest.raises(RuntimeError, match="illegal memory access: a replay runs aten"):
        graph.replay()
    assert y.isnan().all()


def test_there_are_as_many_graphs_as_the_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    x = torch.ones(4, device="musa")
    first, _ = captured(lambda: x + 1)
    monkeypatch.setattr(HERE.Graph, "limit", len(HERE.Graph._alive) + 1)
    second, _ = captured(lambda: x + 1)
    with pytest.raises(RuntimeError, match=r"holds no more than \d+; reset"):
        captured(lambda: x + 1)
    first.reset()
    third, _ = captured(lambda: x + 1)
    del second
    gc.collect()
    captured(lambda: x + 1)
    assert third.replay() is None


def test_what_has_no_share_in_its_memory_is_not_read_after_it_is_freed() -> None:
    x = torch.ones(1 << 20, device="musa")  # More than any other, or that would get its place.
    borrowed = extension().unowned(x)
    assert borrowed.sum().item() == 1 << 20
    del x
    with pytest.raises(RuntimeError, match=r"illegal memory access.*was freed"):
        borrowed.sum()


def test_a_replay_in_a_capture_is_captured() -> None:
    x = torch.ones(4, device="musa")
    inner, y = captured(lambda: x * 2)
    outer, z = captured(lambda: (inner.replay(), y + 1)[1])
    assert y.isnan().all()
    x.fill_(5)
    outer.replay()
    assert (y.tolist(), z.tolist()) == ([10] * 4, [11] * 4)


def test_another_device_captures() -> None:
    x = torch.ones(4, device="musa:1")
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    graph, y = captured(
        lambda: torch.rand(4, device="musa:1") + torch.empty_like(x).fill_(1),
        stream=HERE.Stream("musa:1"),
    )
    assert HERE.current_device() == 0
    graph.replay()
    assert y.device.index == 1
    torch.testing.assert_close(y.cpu(), want + 1)


def test_gradients_are_captured() -> None:
    weight = torch.ones(3, 3, device="musa", requires_grad=True)
    x = torch.ones(2, 3, device="musa")
    weight.grad = torch.zeros_like(weight)
    graph, _ = captured(lambda: (x @ weight).sum().backward())
    assert weight.grad.tolist() == [[0] * 3] * 3
    graph.replay()
    graph.replay()
    assert weight.grad.tolist() == [[4] * 3] * 3


def test_a_replay_casts_as_the_capture_did() -> None:
    x = torch.ones(4, 4, device="musa")
    with torch.autocast("musa", dtype=torch.bfloat16):
        graph, y = captured(lambda: x @ x)
    graph.replay()
    assert (y.dtype, y[0].tolist()) == (torch.bfloat16, [4] * 4)


def test_an_operator_of_hal_is_captured_as_what_it_does() -> None:
    x, weight = torch.randn(4, 8, device="musa"), torch.ones(8, device="musa")
    residual = torch.randn(4, 8, device="musa")
    start = residual.clone()
    with hal.use("native"):
        graph, (normed, y) = captured(
            lambda: (
                hal.ops.rms_norm(x, weight, eps=1e-6),
                hal.ops.fused_add_rms_norm_(x.clone(), residual, weight, eps=1e-6)[1],
            )
        )
        names = [str(node.op) for node in graph._nodes]
        assert {"aten.rsqrt.default", "aten.clone.default", "aten.copy_.default"} <= {*names}
        assert not any(name.startswith("hal.") for name in names)
        assert torch.equal(residual, start)
        assert normed.isnan().all()
        x.normal_()
        graph.replay()
        want = hal.ops.rms_norm(x, weight, eps=1e-6)
        torch.testing.assert_close(normed, want, rtol=0, atol=0)
        torch.testing.assert_close(residual, start + x)
        assert y.data_ptr() == residual.data_ptr()
