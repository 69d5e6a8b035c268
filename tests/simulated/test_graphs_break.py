"""Functions captured but for some operators, which run between graphs as they are called."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import hal
from hal import probe
from hal.testing.simulated import simulate
from hal.wanted import wanted
from offering import NATIVE, Noting, backend, installed, kernel

HERE = simulate("musa")
X = "musa:0"

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore:the reference, which is slow"),
]

HEADS, DIM = 2, 8
FREE = ("block_table", "seq_lens", "starts", "most", "longest")
PAD = {"x": 0.0, "slots": -1}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device=X)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=X)


class Model:
    """Two layers of attention over a paged cache, which it closes over."""

    def __init__(self, blocks: int = 16) -> None:
        torch.manual_seed(3)
        self.cache = torch.zeros(2, blocks, 4, HEADS, DIM, device=X)
        # No product of matrices: it rounds by the number of rows, also on the host.
        self.weight = draw(HEADS * DIM)

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
        for cache in self.cache:
            rows = (x * self.weight).view(-1, HEADS, DIM)
            hal.ops.store_kv_cache_(rows, rows + 1, cache, cache, slots)
            mixed, _ = hal.ops.paged_attention(
                rows, cache, cache, block_table, seq_lens, starts, most, longest, causal=True
            )
            x = x + mixed.flatten(-2)
        return x


def batch(new: list[int], past: list[int] | None = None) -> tuple[Any, ...]:
    """Sequences of four blocks each, one behind the other."""
    past = past or [0] * len(new)
    slots = [
        16 * i + p + k for i, (n, p) in enumerate(zip(new, past, strict=True)) for k in range(n)
    ]
    lengths = [n + p for n, p in zip(new, past, strict=True)]
    starts = [sum(new[:i]) for i in range(len(new) + 1)]
    return (
        draw(sum(new), HEADS * DIM),
        torch.tensor(slots, device=X),
        torch.arange(4 * len(new), dtype=torch.int32, device=X).view(-1, 4),
        integers(*lengths),
        integers(*starts),
        max(new),
        max(lengths),
    )


def broken(model: Any, example: tuple[Any, ...], **options: Any) -> hal.graphs.Captured:
    given: dict[str, Any] = {"at": hal.ops.paged_attention, "eager": FREE, "pad": PAD} | options
    return hal.graphs.breakable(model, *example, **given)


def test_replays_and_what_runs_between_them_do_what_the_function_does() -> None:
    model = Model()
    fast = broken(model, batch([8]), buckets=[4, 8, 16])
    assert fast.stats().graphs == 9
    assert not model.cache.any()
    for new in ([8], [3], [5, 2], [1, 1, 1], [16], [4, 4, 4, 4], [7, 2]):
        given = batch(new)
        model.cache.zero_()
        got, cached = fast(*given), model.cache.clone()
        model.cache.zero_()
        want = model(*given)
        assert torch.equal(got, want)
        assert torch.equal(cached, model.cache)
    assert fast.stats().replays == {8: 2, 4: 2, 16: 3}
    assert fast.stats().fallbacks == {}


class Putting:
    """A kernel that puts some of its results where they are wanted."""

    def __init__(self, op: str, which: slice) -> None:
        self.reference, self.which, self.put = kernel(op).fn, which, 0
        self.__signature__ = inspect.signature(self.reference)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        found, places = self.reference(*args, **kwargs), wanted()[self.which]
        assert wanted() == ()
        for result, place in zip(found, places, strict=False):
            if place is not None:
                self.put += 1
                place.copy_(result)
        put = [
            result if place is None else place for result, place in zip(found, places, strict=False)
        ]
        return *put, *found[len(put) :]


WAYS = [hal.graphs.breakable, hal.graphs.piecewise]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_kernel_may_put_results_where_they_are_read(way: Any, most: int) -> None:
    """What is elsewhere is copied; the second result is read by nobody, as torch.compile knows."""
    puts, model = Putting("paged_attention", slice(most)), Model()
    theirs = backend("theirs", devices=("musa",), paged_attention=hal.Kernel(fn=puts, name="puts"))
    with installed(theirs, NATIVE):
        options = {"at": hal.ops.paged_attention, "eager": FREE, "pad": PAD, "buckets": [4, 8]}
        fast = way(model, *batch([8]), **options)
        layers, wants = 2, 2 if way is hal.graphs.breakable else 1
        for new in ([8], [3], [5, 2]):
            given, puts.put = batch(new), 0
            model.cache.zero_()
            got = fast(*given)
            model.cache.zero_()
            assert torch.equal(got, model(*given))
            # Nobody wants what the model itself calls in a certain place.
            assert puts.put == layers * min(most, wants)


def first(x: Tensor) -> Tensor:
    return hal.ops.fused_add_rms_norm(x * 2, x, torch.ones_like(x[0]))[0] + 1


def second(x: Tensor) -> Tensor:
    return hal.ops.fused_add_rms_norm(x * 2, x, torch.ones_like(x[0]))[1] + 1


def turned(x: Tensor) -> Tensor:
    normed, total = hal.ops.fused_add_rms_norm(x * 2, x, torch.ones_like(x[0]))
    return total * 3 - normed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", [first, second, turned])
@pytest.mark.parametrize("which", [slice(1), slice(2)])
def test_results_that_look_alike_are_not_taken_for_each_other(
    way: Any, function: Any, which: slice
) -> None:
    puts = Putting("fused_add_rms_norm", which)
    offered = hal.Kernel(fn=puts, name="puts")
    with installed(backend("theirs", devices=("musa",), fused_add_rms_norm=offered), NATIVE):
        at = hal.ops.fused_add_rms_norm
        fast = way(function, draw(4, 8), at=at, pad={"x": 0}, buckets=[4])
        x = draw(3, 8)
        assert torch.equal(fast(x), function(x))


class OnTheWay(Putting):
    """A kernel of which another, that it calls, puts its sum where the first result is wanted."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        (normed, total), (place, *_) = self.reference(*args, **kwargs), (*wanted(), None)
        if place is not None:
            self.put += 1
            total = place.copy_(total)
        return normed, total


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", [first, second, turned])
def test_what_was_computed_on_the_way_may_be_another_result(way: Any, function: Any) -> None:
    puts = OnTheWay("fused_add_rms_norm", slice(1))
    offered = hal.Kernel(fn=puts, name="puts")
    with installed(backend("theirs", devices=("musa",), fused_add_rms_norm=offered), NATIVE):
        fast = way(function, draw(4, 8), at=hal.ops.fused_add_rms_norm, pad={"x": 0}, buckets=[4])
        x = draw(3, 8)
        assert torch.equal(fast(x), function(x))
    # Where torch.compile sees that nobody reads the first, that has no place.
    assert puts.put == (function is not second or way is hal.graphs.breakable)


def test_results_go_where_the_function_wants_them_also_over_an_argument() -> None:
    """There a kernel that writes early would write over what it reads, and is not offered it."""
    scale, seen = torch.ones(8, device=X), list[Any]()
    reference = kernel("rms_norm").fn

    def notes(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(wanted())
        return reference(*args, **kwargs)

    def over(x: Tensor) -> Tensor:
        y = x * 2
        hal.ops.rms_norm(y, scale, out=y)
        return y + 1

    notes.__signature__ = inspect.signature(reference)  # type: ignore[attr-defined]
    theirs = backend("theirs", devices=("musa",), rms_norm=hal.Kernel(fn=notes, name="notes"))
    with installed(theirs, NATIVE):
        fast = hal.graphs.breakable(over, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0})
        seen.clear()
        x = draw(3, 8)
        assert torch.equal(fast(x), over(x))
    assert seen == [(), ()]


def test_it_goes_on_from_a_cache() -> None:
    model = Model()
    fast = broken(model, batch([8]), buckets=[8])
    got: list[Tensor] = []
    want: list[Tensor] = []
    steps = [batch([6, 2]), *(batch([1, 1], [6 + i, 2 + i]) for i in range(4))]
    for run, results in (fast, got), (model, want):
        model.cache.zero_()
        results.extend(run(*step) for step in steps)
    assert all(map(torch.equal, got, want))


def test_arguments_that_are_changed_in_place_are_read_anew() -> None:
    model = Model()
    x, slots, table, lengths, starts, most, longest = batch([4], [2])
    fast = broken(model, (x, slots, table, lengths, starts, most, longest), buckets=[4])
    for length in (6, 5, 4):
        model.cache.normal_()
        lengths.fill_(length)
        table.copy_(table.flip(1))
        slots.fill_(-1)
        args = x, slots, table, lengths, starts, most, longest
        assert torch.equal(fast(*args), model(*args))


def test_more_tokens_than_in_the_largest_bucket_run_as_they_are() -> None:
    model = Model()
    fast = broken(model, batch([4]), buckets=[4])
    given = batch([5])
    assert torch.equal(fast(*given), model(*given))
    assert fast.stats().fallbacks == {"more than 4 tokens": 1}


def test_the_op_may_be_one_that_cannot_be_captured() -> None:
    note = Noting("paged_attention")
    with installed(note.backend, NATIVE):
        model = Model()
        fast = broken(model, batch([8]), buckets=[2, 8])
        assert "paged_attention: noting:noting" in fast.stats().warmed
        captures = len(note.ran)
        given = batch([2])
        got = fast(*given)
        assert len(note.ran) == captures + 2
        assert note.ran[-1][0].shape == (2, HEADS, DIM)
        assert note.ran[-1][3] is given[2]
        assert (note.ran[-1][6], type(note.ran[-1][6])) == (2, int)
        assert torch.equal(got, model(*given))


def test_it_runs_before_captures_for_the_bucket_of_the_example_alone() -> None:
    """What is in ``eager`` has the example's size, and may be beyond a smaller bucket's tokens."""
    note = Noting("paged_attention")
    with installed(note.backend, NATIVE):
        broken(Model(), batch([7]), buckets=[2, 8, 16])
        assert {args[0].shape[0] for args in note.ran} == {8}


def test_it_breaks_at_the_form_in_place_and_at_several() -> None:
    model = Model()
    at = [hal.ops.paged_attention, "store_kv_cache_", hal.ops.store_kv_cache_]
    fast = broken(model, batch([4]), at=at, buckets=[4])
    assert fast.stats().graphs == 5
    given = batch([3])
    got, cached = fast(*given), model.cache.clone()
    model.cache.zero_()
    assert torch.equal(got, model(*given))
    assert torch.equal(cached, model.cache)


def test_it_breaks_at_a_call_with_out_and_at_the_ends() -> None:
    def ends(x: Tensor) -> Tensor:
        y = hal.ops.rms_norm(x, None)
        into = torch.empty_like(y)
        hal.ops.rms_norm(y * 3, None, out=into)
        return hal.ops.rms_norm(into, None)

    fast = hal.graphs.breakable(ends, draw(4, 8), at="rms_norm", pad={"x": 0}, buckets=[4])
    assert fast.stats().graphs == 4
    x = draw(3, 8)
    assert torch.equal(fast(x), ends(x))


def test_weights_that_only_the_op_takes_live_as_long_as_it_does() -> None:
    def made() -> Any:
        weight = draw(8).abs()

        def normed(x: Tensor) -> Tensor:
            return hal.ops.rms_norm(x * 2, holder[0]) + 1

        holder = [weight]
        fast = hal.graphs.breakable(normed, draw(4, 8), at="rms_norm")
        holder.clear()
        return fast, weight.clone()

    fast, weight = made()
    gc.collect()
    x = draw(4, 8)
    assert torch.equal(fast(x), hal.ops.rms_norm(x * 2, weight) + 1)


def test_intermediates_are_not_held() -> None:
    """The memory of a layer does for the next, and that of the largest bucket for the others."""

    def layers(x: Tensor, count: int) -> Tensor:
        for _ in range(count):
            x = hal.ops.rms_norm(x * 2, None) + 1
        return x

    def taken(count: int) -> int:
        fast = hal.graphs.breakable(
            layers, draw(256, 64), count, at="rms_norm", pad={"x": 0}, buckets=[128, 256]
        )
        return fast.stats().bytes

    assert taken(12) == taken(4)


def test_what_is_forced_around_a_call_holds_in_each_replay() -> None:
    def normed(x: Tensor) -> Tensor:
        with hal.use("native"):
            return hal.ops.rms_norm(x * 2, None) + 1

    theirs = backend("theirs", devices=("musa",), rms_norm=kernel("rms_norm"))
    with installed(theirs, NATIVE):
        fast = hal.graphs.breakable(normed, draw(4, 8), at="rms_norm")
        with hal.trace() as records:
            fast(draw(4, 8))
        assert [record.backend for record in records] == ["native"]
        plain = hal.graphs.breakable(lambda x: hal.ops.rms_norm(x, None), draw(4, 8), at="rms_norm")
        with hal.trace() as records:
            plain(draw(4, 8))
        assert [record.backend for record in records] == ["theirs"]


def test_each_graph_draws_anew() -> None:
    def noisy(x: Tensor) -> Tensor:
        x = x + torch.rand(3, device=X)
        return hal.ops.rms_norm(x, None) + torch.rand(3, device=X)

    fast = hal.graphs.breakable(noisy, torch.zeros(3, device=X), at="rms_norm")
    x = torch.zeros(3, device=X)
    torch.manual_seed(5)
    want = [noisy(x) for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(fast(x), expected) for expected in want)


def test_graphs_of_all_parts_and_buckets_are_counted_before_any_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = probe._found
    monkeypatch.setattr(probe, "_found", lambda *a: attrs.evolve(found(*a), max_graphs=8))
    said = r"needs 9 graphs: 3 for each of 3 buckets; a process holds 8 on musa:0, and there are 0"
    with pytest.raises(hal.HalError, match=said):
        broken(Model(), batch([4]), buckets=[1, 2, 4])
    assert broken(Model(), batch([4]), buckets=[2, 4]).stats().graphs == 6


def test_it_never_runs_in_a_capture() -> None:
    seen: list[bool] = []

    def notes(*_: Any, **__: Any) -> None:
        seen.append(HERE.is_current_stream_capturing())

    with installed(Noting("rms_norm", notes).backend, NATIVE):
        hal.graphs.breakable(lambda x: hal.ops.rms_norm(x * 2, None), draw(4, 8), at="rms_norm")
    assert seen
    assert not any(seen)


def test_inference_mode_may_hold_in_the_capture_and_not_in_the_replay() -> None:
    model = Model()
    with torch.inference_mode():
        fast = broken(model, batch([4]), buckets=[4])
    given = batch([3])
    assert torch.equal(fast(*given), model(*given))
    with torch.inference_mode():
        assert torch.equal(fast(*given), model(*given))


def test_an_op_that_fails_in_a_replay_leaves_nothing() -> None:
    model = Model()
    step = broken(model, batch([4]), buckets=[4])
    x, slots, table, *rest = batch([4])
    with pytest.raises(hal.InvalidInput, match="paged_attention"):
        step(x, slots, table.float(), *rest)
    given = batch([4])
    assert torch.equal(step(*given), model(*given))


def test_one_tensor_in_the_example_may_be_several_in_a_call() -> None:
    def twice(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return hal.ops.rms_norm(hal.ops.rms_norm(x, first) * 2, second)

    same = torch.ones(8, device=X)
    fast = hal.graphs.breakable(
        twice, draw(4, 8), same, same, at="rms_norm", eager=("first", "second")
    )
    given = draw(4, 8), draw(8), draw(8)
    assert torch.equal(fast(*given), twice(*given))


def test_what_is_not_on_the_device_of_the_graphs_lasts_as_long_as_they_do() -> None:
    def beside(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, hal.ops.rms_norm(torch.arange(8192.0).view(4, -1), None)

    fast = hal.graphs.breakable(beside, draw(4, 8), at="rms_norm")
    others = [torch.full((4, 2048), 7.0) for _ in range(20)]
    x = draw(4, 8)
    assert all(map(torch.equal, fast(x), beside(x)))
    assert others[0].sum() == 7 * 8192


def test_a_result_of_another_shape_than_the_graphs_read_is_refused() -> None:
    fast = hal.graphs.breakable(
        lambda x, y: x + hal.ops.rms_norm(y, None).sum(),
        *(draw(4, 8), draw(4, 8)),
        at="rms_norm",
        eager=["y"],
    )
    with pytest.raises(hal.InvalidInput, match=r"\[1, 8\].* \[4, 8\]"):
        fast(draw(4, 8), draw(1, 8))


def test_an_exception_between_breaks_leaves_nothing() -> None:
    def failing(x: Tensor) -> Tensor:
        x = hal.ops.rms_norm(x * 2, None)
        if HERE.is_current_stream_capturing():
            raise ValueError("in the second graph")
        return x + 1

    with pytest.raises(ValueError, match="second graph"):
        hal.graphs.breakable(failing, draw(4, 8), at="rms_norm")


def sliced(x: Tensor, table: Tensor) -> Tensor:
    return hal.ops.rms_norm(x + table[0], None)


def changed(x: Tensor, residual: Tensor) -> Tensor:
    hal.ops.fused_add_rms_norm_(x * 2, residual, x[0])
    return residual * 2


def returned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return hal.ops.rms_norm(y, None) + x, y


def counted(x: Tensor, longest: int) -> Tensor:
    return hal.ops.topk_softmax(x, longest // 2)[0]


REFUSED: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "a tensor that goes elsewhere": (
        sliced,
        (4, 1),
        {"at": "rms_norm", "eager": ("table",)},
        "eager names table, which aten.* takes",
    ),
    "a number that is computed with": (
        counted,
        (4,),
        {"at": "topk_softmax", "eager": ("longest",)},
        "eager names longest, which no op at which it breaks takes as it is",
    ),
    "an argument that an op changes": (
        changed,
        (4, 1),
        {"at": "fused_add_rms_norm"},
        "fused_add_rms_norm_ writes into residual",
    ),
    "an argument that is a result": (
        returned,
        (4, 1),
        {"at": "rms_norm", "eager": ("y",)},
        "eager names y, which is returned",
    ),
    "an argument that is padded too": (
        sliced,
        (4, 1),
        {"at": "rms_norm", "eager": ("table",), "pad": {"x": 0, "table": 0}},
        "eager and pad both name table",
    ),
    "no such op": (sliced, (4, 1), {"at": "rms_nrom"}, "did you mean rms_norm"),
    "an op that is not called": (sliced, (4, 1), {"at": "softmax"}, "calls none of softmax"),
    "no such argument": (sliced, (4, 1), {"at": "rms_norm", "eager": ("y",)}, "eager names y"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_in_a_replay_is_refused(name: str) -> None:
    function, others, options, says = REFUSED[name]
    rest = [draw(4, 8)] if function is not counted else others
    example = [draw(4, 8), *rest]
    with pytest.raises(hal.InvalidInput, match=says):
        hal.graphs.breakable(function, *example, **options)


def test_neither_a_boolean_nor_none_is_handed_on() -> None:
    with pytest.raises(hal.InvalidType, match="neither tensor nor number"):
        hal.graphs.breakable(
            lambda x, w: hal.ops.rms_norm(x, w), draw(4, 8), None, at="rms_norm", eager=("w",)
        )


@pytest.mark.long
def test_memory_does_not_grow_over_a_thousand_replays() -> None:
    model = Model()
    fast = broken(model, batch([8]), buckets=[2, 4, 8])
    given = [batch([1 + i % 8]) for i in range(8)]
    for each in given:
        fast(*each)
    gc.collect()
    before = HERE.memory_reserved(X), HERE.memory_allocated(X)
    for i in range(1000):
        fast(*given[i % 8])
    assert (HERE.memory_reserved(X), HERE.memory_allocated(X)) == before
