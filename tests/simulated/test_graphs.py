"""Functions captured whole: what a replay copies, pads, checks, counts and leaves behind."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import attrs
import pytest
import torch
from torch import Tensor

import hal
from hal import probe
from hal.graphs import captured
from hal.graphs import device as graphs_device
from hal.testing.simulated import simulate
from invalid import SPOILERS, assert_well, drawing, spoil, spoil_the_second_of_three
from offering import NATIVE, Noting, backend, installed, kernel

HERE = simulate("musa")
X = "musa:0"

# Of cards for which nobody has kernels, hal says once that the reference serves.
pytestmark = pytest.mark.filterwarnings("ignore:the reference, which is slow")


@pytest.fixture(autouse=True)
def memory_is_given_back(nothing_is_left: None) -> Iterator[None]:
    """Whatever happens, besides what ``nothing_is_left`` asks for."""
    del nothing_is_left  # It goes first, and looks again last.
    before = HERE.memory_reserved(X)
    yield
    gc.collect()
    assert HERE.memory_reserved(X) <= before


def gate(x: Tensor) -> Tensor:
    return hal.ops.silu_and_mul(x) + x[:, : x.shape[1] // 2]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device=X)


def test_a_replay_does_what_the_function_does_with_other_data() -> None:
    fast = hal.graphs.capture(gate, draw(3, 8))
    for _ in range(3):
        x = draw(3, 8)
        assert torch.equal(fast(x), gate(x))
    assert (fast.stats().graphs, fast.stats().replays) == (1, {0: 3})


def test_it_is_replayed_and_not_called() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x * 2

    fast = hal.graphs.capture(counted, draw(4, 2), pad={"x": 0}, buckets=[2, 4])
    before = list(calls)
    assert sorted(set(before)) == [2, 4]
    fast(draw(3, 2))
    assert calls == before
    fast(draw(5, 2))
    assert calls == [*before, 5]


def test_results_are_copies_unless_they_are_asked_not_to_be() -> None:
    fast = hal.graphs.capture(gate, draw(2, 8))
    x = draw(2, 8)
    first = fast(x)
    fast(draw(2, 8))
    assert torch.equal(first, gate(x))
    same = hal.graphs.capture(gate, draw(2, 8), copy=False)
    first, second = same(x), same(y := draw(2, 8))
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(first, gate(y))


def test_a_result_that_is_an_argument_may_be_given_back_as_another() -> None:
    fast = hal.graphs.capture(lambda x, last: (x + last, x), draw(2), draw(2), copy=False)
    x = torch.ones(2, device=X)
    given = x, x * 10
    for _ in range(2):
        given = fast(*given)
    assert [each.tolist() for each in given] == [[12.0, 12.0], [11.0, 11.0]]


def test_a_result_that_is_not_on_the_device_of_the_graphs_lasts() -> None:
    fast = hal.graphs.capture(lambda x: (x * 2, torch.arange(5000) + 5), draw(2))
    others = [torch.full((5000,), 7) for _ in range(20)]
    assert torch.equal(fast(draw(2))[1], torch.arange(5000) + 5)
    assert others[0].sum() == 35000


def test_results_that_are_not_copied_cannot_be_read_after_another_replay() -> None:
    """They have no share in their memory, which the graphs of another bucket may have used."""
    # So unlike in size that neither has a place for the other.
    same = hal.graphs.capture(gate, draw(64, 512), pad={"x": 0}, buckets=[2, 64], copy=False)
    large = same(draw(64, 512))
    large.sum()
    same(draw(2, 512))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        large.sum()


def test_any_number_of_tokens_up_to_the_largest_bucket_is_rounded_up() -> None:
    fast = hal.graphs.capture(gate, draw(8, 6), pad={"x": float("nan")}, buckets=[8, 3])
    for count in (0, 1, 3, 4, 8):
        x = draw(count, 6)
        got = fast(x)
        assert torch.equal(got, gate(x))
    assert fast.stats().replays == {3: 3, 8: 2}


def test_more_tokens_than_in_the_largest_bucket_run_as_they_are_and_are_counted() -> None:
    fast = hal.graphs.capture(gate, draw(4, 6), pad={"x": 0})
    assert fast.stats().buckets == (1, 2, 4)
    x = draw(5, 6)
    assert torch.equal(fast(x), gate(x))
    assert fast.stats().fallbacks == {"more than 4 tokens": 1}
    assert fast.stats().replays == {}


def test_what_is_quicker_is_done_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = {"function": 0.0, "graphs": 0.0}

    def paused(x: Tensor) -> Tensor:
        time.sleep(pauses["function"])
        return gate(x)

    replay = captured.Program.replay

    def replayed(self: Any, given: Any) -> Any:
        time.sleep(pauses["graphs"])
        return replay(self, given)

    monkeypatch.setattr(captured.Program, "replay", replayed)
    fast = hal.graphs.capture(paused, draw(8, 6), pad={"x": 0}, buckets=[4, 8])
    assert fast.stats().least == {}

    def settle(count: int, **quicker: float) -> dict[int, int]:
        pauses.update({"function": 0.01, "graphs": 0.01} | quicker)
        graphs, function = fast.calibrate(draw(count, 6))
        assert (graphs < function) == ("graphs" in quicker)
        return fast.stats().least

    def from_graphs(count: int) -> bool:
        before, x = fast.stats().replays, draw(count, 6)
        assert torch.equal(fast(x), gate(x))
        return fast.stats().replays != before

    assert settle(6, function=0) == {8: 7}
    assert [from_graphs(count) for count in (4, 5, 6, 7, 8)] == [True, False, False, True, True]
    assert fast.stats().fallbacks == {"the function itself is quicker": 2}
    # Less padding can only make the function slower, and more of it only the graphs.
    assert settle(7, graphs=0) == {8: 7}
    assert settle(6, graphs=0) == {8: 6}
    assert settle(5, function=0) == {8: 6}
    assert settle(8, function=0) == {8: 9}
    assert settle(4, graphs=0) == {8: 9}
    assert [from_graphs(count) for count in (4, 5, 8)] == [True, False, False]
    with pytest.raises(hal.InvalidInput, match="captured for up to 8 tokens, not 9"):
        fast.calibrate(draw(9, 6))


def test_what_cannot_be_replayed_is_no_quicker() -> None:
    fast = hal.graphs.capture(lambda x: x + 1, draw(4))
    with torch.enable_grad():
        graphs, function = fast.calibrate(draw(4).requires_grad_())
    assert graphs == math.inf > function
    assert fast.stats().least == {0: 1}
    assert fast.calibrate(draw(4))[0] < math.inf


def test_a_calibration_that_fails_changes_nothing() -> None:
    fails: list[int] = []

    def refusing(x: Tensor) -> Tensor:
        if fails:
            raise ValueError("not now")
        return x + 1

    fast = hal.graphs.capture(refusing, draw(4))
    with torch.enable_grad():
        fast.calibrate(draw(4).requires_grad_())
    fails.append(1)
    with pytest.raises(ValueError, match="not now"):
        fast.calibrate(draw(4))
    assert fast.stats().least == {0: 1}


def test_a_calibration_waits_for_the_device_of_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.ones(4, device="musa:1")
    fast, waited = hal.graphs.capture(lambda x: x + 1, there), set[Any]()
    monkeypatch.setattr(HERE, "synchronize", lambda *where: waited.add(where))
    fast.calibrate(there)
    assert waited == {(there.device,)}


def test_padding_is_renewed_in_each_call() -> None:
    """What an earlier call with more tokens left must not be taken for this call's."""
    fast = hal.graphs.capture(lambda x: x.sum(0), draw(4, 3), pad={"x": 0}, buckets=[4])
    fast(draw(4, 3) + 100)
    x = draw(1, 3)
    assert torch.equal(fast(x), x.sum(0))


def test_the_last_element_fills_offsets_and_a_pad_may_be_in_another_dimension() -> None:
    def spans(starts: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return starts.diff(), x * 2

    starts, x = torch.arange(0, 10, 2, device=X), draw(3, 4)
    pad: Any = {"starts": "last", "x": hal.graphs.Pad(0, dim=1)}
    fast = hal.graphs.capture(spans, starts, x, pad=pad, buckets=[4])
    few, wide = fast(starts[:3], x[:, :2])
    assert few.tolist() == [2, 2]
    assert torch.equal(wide, x[:, :2] * 2)
    program = fast._programs[4]
    assert program.results[0].tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("function", "dim"),
    [(lambda x: x * 2, 1), (lambda x: x[0].view(-1, 4, 2).transpose(0, 1) * 2, 1)],
)
def test_a_size_that_a_bucket_has_by_chance_is_not_taken_for_it(function: Any, dim: int) -> None:
    """Nor is one before what counts tokens, such as of a batch of one or of four heads."""
    pad: Any = {"x": hal.graphs.Pad(float("nan"), dim)}
    fast = hal.graphs.capture(function, draw(1, 8, 8), pad=pad)
    assert fast.stats().buckets == (1, 2, 4, 8)
    for count in (1, 3, 4, 7):
        x = draw(1, count, 8)
        assert torch.equal(fast(x), function(x))


def test_padded_rows_are_stored_nowhere() -> None:
    cache = torch.zeros(2, 4, 1, 2, device=X)

    def store(k: Tensor, slots: Tensor) -> Tensor:
        hal.ops.store_kv_cache_(k, k, cache, cache, slots)
        return k

    slots = torch.arange(4, device=X)
    fast = hal.graphs.capture(store, draw(4, 1, 2), slots, pad={"k": 7, "slots": -1}, buckets=[4])
    assert not cache.any()
    k = draw(2, 1, 2)
    fast(k, slots[2:4])
    assert torch.equal(cache.view(8, 1, 2)[2:4], k)
    assert cache.view(8, 2).any(1).tolist() == [False, False, True, True, *[False] * 4]


def test_before_the_captures_it_runs_on_padding_alone() -> None:
    seen: list[list[float]] = []

    def noted(x: Tensor, y: Tensor) -> Tensor:
        if not HERE.is_current_stream_capturing():
            seen.append([*x.unique().tolist(), *y.unique().tolist()])
        return x + y

    hal.graphs.capture(noted, draw(4, 2), torch.ones(2, device=X), pad={"x": 7}, buckets=[2, 4])
    assert seen == [[7.0, 1.0]] * 6


def test_it_draws_anew_in_each_replay() -> None:
    fast = hal.graphs.capture(lambda x: x + torch.rand(3, device=X), torch.zeros(3, device=X))
    torch.manual_seed(5)
    want = [torch.rand(3) for _ in range(3)]
    torch.manual_seed(5)
    x = torch.zeros(3, device=X)
    assert all(torch.equal(fast(x).cpu(), expected) for expected in want)


def test_a_module_is_captured_as_it_is_called() -> None:
    class Gate(torch.nn.Module):
        def forward(self, x: Tensor, *, scale: float = 3.0) -> Tensor:
            return hal.ops.silu_and_mul(x) * scale

    module = Gate()
    fast = hal.graphs.capture(module, draw(4, 8), pad={"x": 0}, buckets=[4])
    x = draw(2, 8)
    assert torch.equal(fast(x), module(x))
    with pytest.raises(hal.InvalidInput, match="Gate was captured with scale"):
        fast(x, scale=2.0)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "shape": (
        lambda f: f(draw(3, 8), 2.0),
        r"x is \[3, 8\].* captured for \[2, 8\] float32 on musa:0",
    ),
    "pad": (lambda f: f(draw(3, 8), 2.0), "name it in pad if that dimension counts tokens"),
    "dtype": (lambda f: f(draw(2, 8).half(), 2.0), r"float16 .* float32 on musa:0$"),
    "device": (lambda f: f(draw(2, 8).cpu(), 2.0), "on cpu; it was captured for .* on musa:0"),
    "no tensor": (lambda f: f(None, 2.0), "captured with a tensor as x, not None"),
    "value": (lambda f: f(draw(2, 8), 3.0), "captured with scale = 2.0, not 3.0"),
    "type": (lambda f: f(draw(2, 8), 2), "captured with scale = 2.0, not 2"),
    "missing": (lambda f: f(), "missing a required argument: 'x'"),
    "unknown": (lambda f: f(draw(2, 8), other=1), "unexpected keyword argument 'other'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_it_was_not_captured_for_is_refused(name: str) -> None:
    def scaled(x: Tensor, scale: float = 2.0) -> Tensor:
        return x * scale

    fast = hal.graphs.capture(scaled, draw(2, 8))
    call, says = REFUSED[name]
    with pytest.raises(hal.InvalidInput, match=says) as caught:
        call(fast)
    assert "scaled" in str(caught.value)
    x = draw(2, 8)
    assert torch.equal(fast(x=x), x * 2)


def test_what_the_function_takes_by_name_alone_is_taken_so() -> None:
    def scaled(x: Tensor, *, scale: float = math.nan) -> Tensor:
        return x * scale

    fast = hal.graphs.capture(scaled, draw(2, 8))
    with pytest.raises(hal.InvalidInput, match="too many positional arguments"):
        fast(draw(2, 8), math.nan)
    assert fast(draw(2, 8), scale=math.nan).isnan().all()


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "writes": (
        lambda: hal.graphs.capture(lambda x: x.mul_(2), draw(2)),
        r"aten.mul_.* writes into x.*close over what is changed",
    ),
    "object": (lambda: hal.graphs.capture(lambda x, y: x, draw(2), [1]), "y is a list"),
    "two devices": (
        lambda: hal.graphs.capture(lambda x, y: x, draw(2), torch.ones(2)),
        "x on musa:0, y on cpu",
    ),
    "no tensor": (lambda: hal.graphs.capture(lambda x: x, 1), "no tensor in the example"),
    "no such pad": (lambda: hal.graphs.capture(gate, draw(2, 4), pad={"y": 0}), "pad names y"),
    "no such dimension": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": hal.graphs.Pad(0, 2)}),
        "x, which has no dimension 2",
    ),
    "no such dimension from the end": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": hal.graphs.Pad(0, -3)}),
        "x, which has no dimension -3",
    ),
    "no padding": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": cast("Any", "first")}),
        "pad fills x with a number or 'last', not 'first'",
    ),
    "half a token": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": 0}, buckets=cast("Any", [2.5])),
        r"not \[2.5\]",
    ),
    "one bucket": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": 0}, buckets=cast("Any", 4)),
        "not 4",
    ),
    "buckets of nothing": (
        lambda: hal.graphs.capture(gate, draw(2, 4), buckets=[4]),
        "buckets need pad",
    ),
    "no bucket": (
        lambda: hal.graphs.capture(gate, draw(2, 4), pad={"x": 0}, buckets=[]),
        "one at least",
    ),
    "no tensor comes": (
        lambda: hal.graphs.capture(lambda x: (x, {"rows": len(x)}), draw(2)),
        "returns 2; a replay renews nothing but tensors",
    ),
    "no token": (lambda: hal.graphs.capture(gate, draw(0, 4), pad={"x": 0}), "1 or more tokens"),
    "rows of which some are padding": (
        lambda: hal.graphs.capture(lambda x: x.repeat(2, 1), draw(2, 4), pad={"x": 0}),
        r"not one dimension counts tokens.*: \[4, 4\] for 2, \[2, 4\] for 1",
    ),
    "padding in two dimensions": (
        lambda: hal.graphs.capture(lambda x: x @ x.t(), draw(2, 4), pad={"x": 0}),
        "not one dimension counts tokens",
    ),
    "another result": (
        lambda: hal.graphs.capture(lambda x: (x,) * len(x), draw(2, 4), pad={"x": 0}),
        "nested otherwise",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_captured_is_refused_before_it_is(name: str) -> None:
    call, says = UNFIT[name]
    with pytest.raises(hal.InvalidInput, match=says):
        call()


def test_a_device_without_graphs_says_so() -> None:
    with pytest.raises(hal.HalError, match="no backend states graph_capture for cpu"):
        hal.graphs.capture(gate, torch.ones(2, 4))


def fails_at(run: int) -> Callable[[Tensor], Tensor]:
    runs: list[int] = []

    def failing(x: Tensor) -> Tensor:
        runs.append(0)
        y = x * 2
        if len(runs) == run:
            raise ValueError("in the middle")
        return y

    return failing


# Twice before all, then thrice for each bucket.
@pytest.mark.parametrize("run", range(1, 9))
def test_an_exception_in_the_middle_leaves_nothing(run: int) -> None:
    with pytest.raises(ValueError, match="in the middle") as caught:
        hal.graphs.capture(fails_at(run), draw(2, 2), pad={"x": 0}, buckets=[1, 2])
    assert caught.tb  # Which has what was there.
    assert not graphs_device._alive.get("musa")
    fast = hal.graphs.capture(gate, draw(2, 4))
    assert torch.equal(fast(x := draw(2, 4)), gate(x))


def test_what_a_capture_forbids_is_an_error_that_leaves_nothing() -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        hal.graphs.capture(lambda x: x * float(x.sum()), draw(2))


@pytest.mark.parametrize("name", SPOILERS)
def test_a_capture_that_was_made_invalid_leaves_nothing(name: str) -> None:
    x = torch.zeros(8, device=X)
    earlier = drawing(x)
    spoil(HERE, x, name)
    assert_well(HERE, earlier, x)


def test_nor_does_the_second_graph_of_three() -> None:
    x = torch.zeros(2, 8, device=X)
    earlier = drawing(x[0])
    spoil_the_second_of_three(HERE, x)
    assert_well(HERE, earlier, x[0])


def test_a_closed_one_gives_its_memory_back_and_says_so() -> None:
    gc.collect()
    before = HERE.memory_reserved(X)
    fast = hal.graphs.capture(gate, draw(64, 64))
    assert HERE.memory_reserved(X) > before
    assert fast.stats().bytes > 0
    fast.close()
    fast.close()
    gc.collect()
    assert HERE.memory_reserved(X) <= before
    with pytest.raises(hal.HalError, match="gate was closed"):
        fast(draw(64, 64))


def test_the_example_is_not_kept() -> None:
    gc.collect()
    before, most = HERE.memory_reserved(X), 1 << 12
    example = [draw(most, 64), draw(most, 64)]
    fast = hal.graphs.capture(
        lambda x, y: x.sum() + y.sum(), *example, pad={"x": 0}, buckets=[most]
    )
    example.clear()
    gc.collect()
    # One is where the graphs read.
    assert HERE.memory_reserved(X) - before < 3 * most * 64 * 4
    assert fast(draw(5, 64), draw(most, 64)).shape == ()


def test_in_another_capture_it_is_the_function_itself() -> None:
    fast = hal.graphs.capture(gate, draw(2, 8))
    x, graph = draw(2, 8), HERE.Graph()
    with HERE.graph(graph):
        y = fast(x)
        with pytest.raises(hal.HalError, match="cannot be timed while"):
            fast.calibrate(x)
    x.normal_()
    graph.replay()
    assert torch.equal(y, gate(x))
    assert fast.stats().fallbacks == {"another graph is being captured": 1}


def test_in_what_is_about_to_be_captured_too() -> None:
    """What a replay has skipped before it would be compiled in the capture."""
    runs: list[bool] = []

    def inner(x: Tensor) -> Tensor:
        runs.append(HERE.is_current_stream_capturing())
        return x * 2

    fast = hal.graphs.capture(inner, draw(4, 8), pad={"x": 0}, buckets=[4])
    runs.clear()
    outer = hal.graphs.capture(lambda x: fast(x) + 1, draw(3, 8))
    assert runs == [False] * 4 + [True]
    x = draw(3, 8)
    assert torch.equal(outer(x), x * 2 + 1)


def test_nothing_is_captured_in_another_capture() -> None:
    with pytest.raises(hal.HalError, match="capture before"), HERE.graph(HERE.Graph()):
        hal.graphs.capture(gate, draw(2, 8))


def test_gradients_are_recorded_by_the_function_itself() -> None:
    fast = hal.graphs.capture(lambda x: x * 3, draw(4))
    x = draw(4).requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0] * 4
    assert fast.stats().fallbacks == {"gradients are recorded": 1}
    with torch.no_grad():
        fast(x)
    assert fast.stats().replays == {0: 1}


def test_inference_mode_may_hold_in_the_capture_and_not_in_the_replay() -> None:
    with torch.inference_mode():
        fast = hal.graphs.capture(gate, draw(2, 8))
    x = draw(2, 8)
    assert torch.equal(fast(x), gate(x))
    with torch.inference_mode():
        assert torch.equal(fast(x), gate(x))


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_casts_of_weights_do_not_go_with_the_autocast_around_a_capture(
    outside: bool, inside: bool
) -> None:
    weight = draw(8, 8).requires_grad_()

    def product(x: Tensor) -> Tensor:
        with torch.autocast("musa", torch.bfloat16) if inside else contextlib.nullcontext():
            return torch.nn.functional.linear(x, weight)

    with torch.autocast("musa", dtype=torch.bfloat16, enabled=outside):
        fast = hal.graphs.capture(product, draw(2, 8))
        x = draw(2, 8)
        with torch.no_grad():
            want = product(x)
        assert torch.is_autocast_cache_enabled()
    gc.collect()
    got = fast(x)
    assert got.dtype == (torch.bfloat16 if inside or outside else torch.float32)
    assert torch.equal(got, want)


def test_results_are_nested_as_they_were_and_may_be_none() -> None:
    fast = hal.graphs.capture(lambda x: {"a": [x * 2, None], "b": (x[:1],)}, draw(4, 2))
    x = draw(4, 2)
    got = fast(x)
    assert torch.equal(got["a"][0], x * 2)
    assert got["a"][1] is None
    assert torch.equal(got["b"][0], x[:1])


def test_graphs_of_another_device_run_there() -> None:
    x = torch.randn(2, 8, device="musa:1")
    fast = hal.graphs.capture(gate, x)
    assert torch.equal(fast(x * 2), gate(x * 2))
    assert HERE.current_device() == 0


def test_several_share_a_pool() -> None:
    first = hal.graphs.capture(gate, draw(128, 64))
    second = hal.graphs.capture(gate, draw(128, 64), pool=first.pool)
    alone = hal.graphs.capture(gate, draw(128, 64))
    assert second.stats().bytes < alone.stats().bytes
    a, b = draw(128, 64), draw(128, 64)
    one, two = first(a), second(b)
    assert torch.equal(one, gate(a))
    assert torch.equal(two, gate(b))


def test_smaller_buckets_use_the_memory_of_the_largest() -> None:
    one = hal.graphs.capture(gate, draw(256, 64), pad={"x": 0}, buckets=[256])
    taken = one.stats().bytes
    one.close()
    many = hal.graphs.capture(gate, draw(256, 64), pad={"x": 0}, buckets=[256, 200, 160, 130])
    assert many.stats().bytes == taken
    many.close()


def test_memory_does_not_grow_over_a_thousand_replays() -> None:
    fast = hal.graphs.capture(gate, draw(8, 16), pad={"x": 0})
    xs = [draw(1 + i % 8, 16) for i in range(8)]
    for x in xs:
        fast(x)
    gc.collect()
    before = HERE.memory_reserved(X), HERE.memory_allocated(X)
    for i in range(1000):
        fast(xs[i % 8])
    assert (HERE.memory_reserved(X), HERE.memory_allocated(X)) == before
    assert sum(fast.stats().replays.values()) == 1008


def test_it_says_what_was_warmed_and_what_it_took() -> None:
    stats = hal.graphs.capture(gate, draw(8, 16), pad={"x": 0}, buckets=[4, 8]).stats()
    assert stats.buckets == (4, 8)
    assert stats.graphs == 2
    assert stats.seconds > 0
    backend, kernel = (str(hal.explain(hal.ops.silu_and_mul, draw(8, 16)).chosen)).split(":")
    assert stats.warmed == (f"silu_and_mul: {backend}:{kernel}",)


def test_a_bar_is_shown_if_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hal.graphs.capture(gate, draw(4, 4), pad={"x": 0}, buckets=range(1, 10))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    hal.graphs.capture(gate, draw(4, 4), pad={"x": 0}, progress=True)
    assert "graphs for 1 tokens" in capsys.readouterr().err


def limited(monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    found = probe._found

    def few(kind: str, index: int | None) -> hal.Device:
        return attrs.evolve(found(kind, index), max_graphs=most)

    monkeypatch.setattr(probe, "_found", few)


def test_more_graphs_than_the_device_holds_are_refused_up_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited(monkeypatch, 5)
    first = hal.graphs.capture(gate, draw(4, 4), pad={"x": 0})
    assert first.stats().graphs == 3
    calls: list[bool] = []

    def noted(x: Tensor) -> Tensor:
        calls.append(HERE.is_current_stream_capturing())
        return x * 2

    with pytest.raises(
        hal.HalError, match=r"needs 3 graphs: 1 for each of 3 buckets.* holds 5.* 3:"
    ):
        hal.graphs.capture(noted, draw(4, 4), pad={"x": 0})
    assert calls == [False, False]
    first.close()
    hal.graphs.capture(noted, draw(4, 4), pad={"x": 0})


def test_a_card_says_how_many_it_holds_before_its_driver_does() -> None:
    most = hal.device(X).max_graphs
    assert most is not None
    assert most <= HERE.MUSAGraph.limit


def test_in_a_capture_only_what_is_safe_there_is_chosen() -> None:
    quick = kernel("silu_and_mul", "quick")
    safe = kernel("silu_and_mul", "safe", graph_safe=True)
    theirs = backend("theirs", devices=("musa",), silu_and_mul=[quick, safe])
    x = draw(2, 8)
    with installed(theirs, NATIVE):
        assert str(hal.explain(hal.ops.silu_and_mul, x).chosen) == "theirs:quick"
        gate(x)
        fast = hal.graphs.capture(gate, x)
        assert fast.stats().warmed == ("silu_and_mul: theirs:safe",)
        with hal.trace() as records:
            gate(x)
        assert records[0].kernel == "quick"


def test_a_capture_of_somebody_elses_is_seen_when_a_call_is_planned() -> None:
    """And what was planned for it is for it alone."""
    safe = Noting("silu_and_mul", graph_safe=True)
    offered = [kernel("silu_and_mul", "quick"), safe.kernel]
    theirs = backend("theirs", devices=("musa",), silu_and_mul=offered)
    x = draw(2, 8)
    with installed(theirs, NATIVE):
        with HERE.graph(HERE.Graph()):
            hal.ops.silu_and_mul(x)
        assert len(safe.ran) == 1
        hal.ops.silu_and_mul(x)
        with HERE.graph(HERE.Graph()), hal.trace() as records:
            hal.ops.silu_and_mul(draw(3, 8))
        assert records[0].kernel == "noting"
        assert len(safe.ran) == 2


def test_an_op_without_a_safe_kernel_is_named_with_what_to_do() -> None:
    theirs = backend("theirs", devices=("musa",), silu_and_mul=kernel("silu_and_mul"))
    with installed(theirs):
        with pytest.raises(hal.NoKernel) as caught:
            hal.graphs.capture(gate, draw(2, 8))
        said = str(caught.value)
        assert "silu_and_mul on musa:0" in said
        assert "theirs:fast  is not graph_safe" in said
        assert "hal.graphs.breakable(..., at=[hal.ops.silu_and_mul])" in said
        answer = hal.require("graph_capture", ops=[hal.ops.silu_and_mul], device=X)
        assert answer.reasons["silu_and_mul"] == "theirs:fast: is not graph_safe"
        with pytest.raises(hal.NoKernel), hal.use("theirs"):
            hal.graphs.capture(gate, draw(2, 8))


def test_what_is_forced_holds_in_the_capture() -> None:
    slow = kernel("silu_and_mul", "other", graph_safe=True)
    with installed(backend("theirs", devices=("musa",), silu_and_mul=slow), NATIVE):
        with hal.use("native"):
            fast = hal.graphs.capture(gate, draw(2, 8))
        assert fast.stats().warmed == ("silu_and_mul: native:torch",)


def test_what_is_claimed_is_told_from_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    ask: dict[str, Any] = {"ops": ["rms_norm"], "device": X}
    answer = hal.require(hal.Capability.GRAPH_CAPTURE, **ask)
    assert answer.ok
    assert answer.standing == {"rms_norm": "claimed"}
    assert f"rms_norm: {answer.kernels['rms_norm']} (claimed)" in str(answer)
    for word in ("proven", "refuted"):
        monkeypatch.setattr("hal.evidence.standing", lambda *_, word=word: word)
        answer = hal.require(hal.Capability.GRAPH_CAPTURE, **ask)
        assert answer.standing == {"rms_norm": word}
        assert answer.ok is (word == "proven")
    assert "refuted here" in answer.reasons["rms_norm"]
    assert hal.require("fake_kernels", **ask).standing == {}


def test_an_alias_has_no_share_in_its_memory() -> None:
    x = draw(1 << 18, 2)
    alias = hal.graphs.weak_ref_tensor(x.t()[1:])
    assert (alias.shape, alias.stride(), alias.dtype) == ((1, 1 << 18), (1, 2), x.dtype)
    assert alias.data_ptr() == x.data_ptr() + 4
    x.fill_(3)
    assert alias[0, 5].item() == 3
    before = HERE.memory_allocated(X)
    del x
    assert HERE.memory_allocated(X) == before - (1 << 21)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        alias.sum()


def test_a_ladder_ends_where_it_is_told_to_and_wastes_a_fifth_at_most() -> None:
    for most in (1, 2, 3, 5, 16, 100, 4096):
        steps = hal.graphs.ladder(most)
        assert steps[-1] == most
        assert list(steps) == sorted(set(steps))
        for count in range(16, most + 1):
            bucket = next(step for step in steps if step >= count)
            assert (bucket - count) / bucket <= 0.2
    assert len(hal.graphs.ladder(4096)) <= 40
