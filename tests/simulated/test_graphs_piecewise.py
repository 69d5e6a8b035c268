"""Functions that torch.compile traces and hal cuts at operators, each piece from graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
from hal.fakes import fake_if_exists
from hal.graphs import compiled
from hal.graphs import device as graphs_device
from hal.graphs.stitch import Stitched
from hal.repairs import DEVICE_CONSTANTS
from hal.testing.simulated import simulate
from invalid import assert_well, drawing
from simulated.test_graphs_break import FREE, PAD, Model, batch
from thinned import thinned

HERE = simulate("musa")
MISSED = "torch.compile would have to compile it again"
X = "musa:0"

# Other parts of torch look at all operators there have been, so these live as long as the process.
LIBRARY = torch.library.Library("piecewise", "DEF")

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings(
        "ignore:the reference, which is slow", "ignore:.*backend.*:DeprecationWarning"
    ),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device=X)


def cut(model: Any, *example: Any, **options: Any) -> hal.graphs.Captured:
    given: dict[str, Any] = {"at": hal.ops.paged_attention, "eager": FREE, "pad": PAD} | options
    return hal.graphs.piecewise(model, *example, **given)


def norms(x: Tensor) -> Tensor:
    """One operator of hal's, once, between others."""
    y = hal.ops.silu_and_mul(x) * 2
    return hal.ops.rms_norm(y, None) + 1


def same(fast: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], count: int) -> None:
    x = draw(count, 8)
    # What the host sums it sums in an order that goes by the number of rows.
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-6, atol=1e-6)


def test_replays_and_what_runs_between_them_do_what_the_function_does() -> None:
    model = Model()
    fast = cut(model, *batch([8]), buckets=[1, 4, 8, 16])
    assert fast.stats().graphs == 12
    assert not model.cache.any()
    for new in ([8], [1], [3], [5, 2], [1, 1, 1], [16], [4, 4, 4, 4], [7, 2], [17]):
        given = batch(new)
        model.cache.zero_()
        got, cached = fast(*given), model.cache.clone()
        model.cache.zero_()
        want = model(*given)
        assert torch.equal(got, want)
        # So padded rows went nowhere.
        assert torch.equal(cached, model.cache)
    assert fast.stats().replays == {8: 2, 2: 1, 4: 2, 16: 3}
    assert fast.stats().fallbacks == {"more than 16 tokens": 1}


def inplace(x: Tensor) -> Tensor:
    y = hal.ops.silu_and_mul(x) * 2
    z = hal.ops.silu_and_mul(x) + 1
    hal.ops.fused_add_rms_norm_(y, z, y[0])
    return y + z


def other(x: Tensor) -> Tensor:
    return torch.ops.aten.cumsum.default(x * 2, 0) + 1


def packet(x: Tensor) -> Tensor:
    return torch.ops.aten.cumsum(x * 2, 0) + 1


def other_inplace(x: Tensor) -> Tensor:
    y = x * 2
    torch.ops.aten.relu_.default(y)
    return y + 1


def ends(x: Tensor) -> Tensor:
    return hal.ops.rms_norm(hal.ops.softmax(x), None)


CUTS: dict[str, tuple[Callable[[Tensor], Tensor], Any, int]] = {
    "function": (norms, hal.ops.rms_norm, 2),
    "name": (norms, "rms_norm", 2),
    "in place": (inplace, hal.ops.fused_add_rms_norm, 2),
    "several": (norms, [hal.ops.rms_norm, hal.ops.silu_and_mul], 3),
    "all there is": (ends, [hal.ops.rms_norm, hal.ops.softmax], 3),
    "overload": (other, torch.ops.aten.cumsum.default, 2),
    "packet": (packet, torch.ops.aten.cumsum.default, 2),
    "overload in place": (other_inplace, torch.ops.aten.relu_.default, 2),
}


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", CUTS)
def test_it_is_cut_at_operators_in_any_form(name: str, reference: bool) -> None:
    """Also where the reference serves, which would be traced inline."""
    plain, at, graphs = CUTS[name]
    with hal.use("native") if reference else hal.prefer("native"):
        fast = hal.graphs.piecewise(plain, draw(8, 8), at=at, pad={"x": 0}, buckets=[2, 8])
        assert fast.stats().graphs == 2 * graphs
        for count in (8, 1, 3):
            x = draw(count, 8)
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-6, atol=1e-6)
        assert fast.stats().replays == {8: 2, 2: 1}


def row(x: Tensor) -> Tensor:
    y = hal.ops.rms_norm(x * 2, None)
    last = y[3]
    y.add_(1)
    return last * 2 + y


def row_of_second(x: Tensor) -> Tensor:
    y, z = hal.ops.fused_add_rms_norm(x * 2, x, x[0])
    last = z[3]
    z.add_(1)
    return last * 2 + y + z


@pytest.mark.parametrize("plain", [row, row_of_second])
def test_an_element_of_a_result_stays_in_its_memory(plain: Callable[[Tensor], Tensor]) -> None:
    ops = [hal.ops.rms_norm, hal.ops.fused_add_rms_norm]
    fast = hal.graphs.piecewise(plain, draw(4, 8), at=ops, pad={"x": 0}, buckets=[4])
    same(fast, plain, 4)
    assert fast.stats().replays == {4: 1}


def test_what_ends_a_call_before_it_is_one_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])

    def ended(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "capturing", ended)
        with pytest.raises(KeyboardInterrupt):
            fast(draw(4, 8))
    # Otherwise nothing would be compiled any more.
    again = hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])
    same(again, norms, 3)


def test_an_operator_of_torch_may_change_what_a_call_gives_it() -> None:
    def added(x: Tensor, total: Tensor) -> Tensor:
        torch.ops.aten.add_.Tensor(total, x * 2)
        return x + 1

    example, at = (draw(4, 8), draw(4, 8)), torch.ops.aten.add_.Tensor
    fast = hal.graphs.piecewise(added, *example, at=at, eager=["total"])
    x, total = draw(4, 8), torch.zeros(4, 8, device=X)
    assert torch.equal(fast(x, total), x + 1)
    assert torch.equal(total, x * 2)


def test_what_is_not_on_the_device_of_the_graphs_lasts_as_long_as_they_do() -> None:
    def beside(x: Tensor) -> tuple[Tensor, Tensor]:
        return norms(x), torch.arange(5000) + 5

    fast = hal.graphs.piecewise(beside, draw(4, 8), at=hal.ops.rms_norm)
    others = [torch.full((5000,), 7) for _ in range(20)]
    assert torch.equal(fast(draw(4, 8))[1], torch.arange(5000) + 5)
    assert others[0].sum() == 35000


def test_what_was_made_functional_is_cut_at_too() -> None:
    from torch._higher_order_ops.auto_functionalize import auto_functionalized
    from torch.fx import GraphModule

    from hal.graphs.stitch import _parts

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.relu, (x,))
    op = torch.ops.hal.fused_add_rms_norm_.default
    both = graph.call_function(auto_functionalized, (op,), {"x": y, "residual": y, "weight": None})
    last = graph.call_function(torch.relu, (both,))
    graph.output(last)
    parts = _parts(GraphModule({}, graph), frozenset({op}))
    assert [parts[node] for node in (y, both, last)] == [0, 1, 2]


def test_what_python_decided_is_looked_at_in_each_call() -> None:
    scale = {"by": 2.0}

    def scaled(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x * scale["by"], None) * scale["by"]

    fast = hal.graphs.piecewise(scaled, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])
    same(fast, scaled, 3)
    scale["by"] = 5.0
    same(fast, scaled, 3)
    same(fast, scaled, 4)
    scale["by"] = 2.0
    same(fast, scaled, 4)
    assert fast.stats().replays == {4: 2}
    assert fast.stats().fallbacks == {MISSED: 2}


def test_without_guards_what_python_decided_stays() -> None:
    model, scale = Model(), {"by": 2.0}

    def scaled(*given: Any) -> Tensor:
        return model(*given) * scale["by"]

    setattr(scaled, "__signature__", inspect.signature(model))  # noqa: B010
    fast = cut(scaled, *batch([8]), buckets=[4, 8], guards=False)
    for new in ([8], [3], [5, 2], [1, 1]):
        given = batch(new)
        model.cache.zero_()
        got, scale["by"] = fast(*given), 2.0
        model.cache.zero_()
        want, scale["by"] = scaled(*given), 5.0
        assert torch.equal(got, want)
    assert fast.stats().replays == {8: 2, 4: 2}
    assert fast.stats().fallbacks == {}


def test_without_guards_a_weight_that_has_moved_is_read_where_it_is() -> None:
    module = Scaled()
    options = {"at": hal.ops.rms_norm, "pad": {"x": 0}, "guards": False}
    fast = hal.graphs.piecewise(module, draw(4, 8), **options)
    module.weight.normal_()
    same(fast, module, 3)
    module.weight.data = draw(8)
    same(fast, module, 3)
    assert fast.stats().replays == {4: 1}
    assert fast.stats().fallbacks == {"a tensor that graphs read has moved": 1}


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(draw(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x * self.weight, None) * self.weight


def test_a_weight_that_has_moved_is_read_where_it_is() -> None:
    module = Scaled()
    fast = hal.graphs.piecewise(module, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])
    same(fast, module, 3)
    module.weight.normal_()
    same(fast, module, 3)
    module.weight = torch.nn.Parameter(draw(8), requires_grad=False)
    same(fast, module, 3)
    assert fast.stats().replays == {4: 2}
    assert fast.stats().fallbacks == {"a tensor that graphs read has moved": 1}


def test_other_kernels_are_another_function() -> None:
    fast = hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])
    same(fast, norms, 3)
    with hal.use("native"):
        same(fast, norms, 3)
    chosen = hal.explain(hal.ops.silu_and_mul, draw(4, 8)).chosen
    assert chosen is not None
    missed = {} if chosen.backend == "native" else {MISSED: 1}
    assert fast.stats().fallbacks == missed


def test_code_that_goes_by_the_number_of_tokens_is_refused() -> None:
    def two(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x + 1 if x.shape[0] > 4 else x - 1, None)

    with pytest.raises(hal.HalError, match="traced for 8 tokens does not fit 2"):
        hal.graphs.piecewise(two, draw(8, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[2, 8])


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "no such op": (
        lambda: hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.softmax),
        "norms calls none of",
    ),
    "a number in a piece": (
        lambda: hal.graphs.piecewise(
            lambda x, by: hal.ops.rms_norm(x * by, None),
            *(draw(4, 8), 3),
            at=hal.ops.rms_norm,
            eager=["by"],
        ),
        "eager names by, which a piece takes",
    ),
    "a tensor in a piece": (
        lambda: hal.graphs.piecewise(
            lambda x, y: hal.ops.rms_norm(x * y, None),
            *(draw(4, 8), draw(4, 8)),
            at=hal.ops.rms_norm,
            eager=["y"],
        ),
        "eager names y, which aten.mul",
    ),
    "writes": (
        lambda: hal.graphs.piecewise(inplace_argument, draw(4, 8), at=hal.ops.rms_norm),
        "writes into x",
    ),
    "compiler": (
        lambda: hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.rms_norm, compiler="gcc"),
        "'eager' or 'inductor', not 'gcc'",
    ),
    "no op": (lambda: hal.graphs.piecewise(norms, draw(4, 8), at="norm"), "there is no op 'norm'"),
}


def inplace_argument(x: Tensor) -> Tensor:
    return hal.ops.rms_norm(x.mul_(2), None)


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_cut_is_refused(name: str) -> None:
    call, says = UNFIT[name]
    with pytest.raises(hal.InvalidInput, match=says):
        call()


def test_an_operator_without_a_fake_kernel_is_named() -> None:
    LIBRARY.define("twice(Tensor x) -> Tensor")
    LIBRARY.impl("twice", lambda x: x * 2, "PrivateUse1")

    def doubled(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(torch.ops.piecewise.twice(x), None)

    def make() -> hal.graphs.Captured:
        return hal.graphs.piecewise(doubled, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0})

    with pytest.raises(hal.HalError, match=r"piecewise.twice.default has no fake kernel.*'piecewi"):
        make()
    fake_if_exists("piecewise::twice")(torch.empty_like)
    same(make(), doubled, 3)


def test_what_reads_data_is_named() -> None:
    def peeks(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x, None)[: int(x.isnan().sum())]

    with pytest.raises((hal.HalError, RuntimeError), match=r"reads data|capturing|not permitted"):
        hal.graphs.piecewise(peeks, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[4])


def test_a_piece_that_was_made_invalid_leaves_nothing() -> None:
    def peek(x: Tensor) -> Tensor:
        return x * x.sum().item() if HERE.is_current_stream_capturing() else x * 2

    LIBRARY.define("peek(Tensor x) -> Tensor")
    LIBRARY.impl("peek", peek, "CompositeExplicitAutograd")
    torch.library.register_fake("piecewise::peek", torch.empty_like, lib=LIBRARY)

    def spoiled(x: Tensor) -> Tensor:
        return torch.ops.piecewise.peek(hal.ops.rms_norm(x, None))

    x = torch.zeros(2, 8, device=X)
    earlier = drawing(x[0])
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        hal.graphs.piecewise(spoiled, x, at=hal.ops.rms_norm, pad={"x": 0}, buckets=[2])
    assert_well(HERE, earlier, x[0])


Device = torch.device


class Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Device)


class Stand(metaclass=Meta):
    """What a shim puts in the place of torch.device."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return Device(*args, **kwargs)


MENDED = DEVICE_CONSTANTS.name in hal.report().repairs


@pytest.mark.skipif(not MENDED, reason="no backend asks for the repair")
def test_without_the_repair_of_fx_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(x: Tensor) -> Tensor:
        return hal.ops.rms_norm(x, None) + torch.ones(8, device=x.device)

    def make() -> hal.graphs.Captured:
        return hal.graphs.piecewise(made, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0})

    make()  # Dynamo notes the class of devices when it is imported.
    monkeypatch.setattr(torch, "device", Stand)
    same(make(), made, 3)
    assert "applied" in hal.repair(undo=False).values()
    hal.repair(undo=True)
    with pytest.raises(hal.HalError, match=r"replaced torch.device.*undone.*hal.repair\(\)"):
        make()
    hal.repair()
    same(make(), made, 3)
    hal.repair(undo=True)


@pytest.mark.parametrize("run", range(1, 12))
def test_an_exception_in_the_middle_leaves_nothing(run: int) -> None:
    runs: list[int] = []

    name = f"failing_{run}"
    LIBRARY.define(f"{name}(Tensor x) -> Tensor")

    def fail(x: Tensor) -> Tensor:
        runs.append(0)
        if len(runs) == run:
            raise ValueError("in the middle")
        return x * 2

    LIBRARY.impl(name, fail, "CompositeExplicitAutograd")
    torch.library.register_fake(f"piecewise::{name}", torch.empty_like, lib=LIBRARY)
    op = getattr(torch.ops.piecewise, name)

    def failing(x: Tensor) -> Tensor:
        return op(hal.ops.rms_norm(op(x), None))

    with pytest.raises(ValueError, match="in the middle"):
        hal.graphs.piecewise(failing, draw(2, 8), at=hal.ops.rms_norm, pad={"x": 0}, buckets=[2])
    assert not graphs_device._alive.get("musa")


def test_several_do_not_share_what_was_compiled() -> None:
    """Dynamo keeps a few graphs for each code object, and refuses more."""
    for by in range(12):
        fast = hal.graphs.piecewise(
            lambda x, by=by: hal.ops.rms_norm(x + by, None),
            *(draw(2, 8), by),
            at=hal.ops.rms_norm,
        )
        x = draw(2, 8)
        assert torch.equal(fast(x, by), hal.ops.rms_norm(x + by, None))


def test_inference_mode_may_hold_in_the_capture_and_not_in_the_replay() -> None:
    with torch.inference_mode():
        fast = hal.graphs.piecewise(norms, draw(4, 8), at=hal.ops.rms_norm, pad={"x": 0})
    same(fast, norms, 3)
    with torch.inference_mode():
        same(fast, norms, 3)
    assert fast.stats().fallbacks == {}


@pytest.mark.parametrize(
    "name", thinned(["function", "in place", "overload", "overload in place"], 4)
)
def test_code_of_inductors_is_replayed(name: str) -> None:
    plain, at, graphs = CUTS[name]
    with hal.use("native"):
        fast = hal.graphs.piecewise(
            plain, draw(8, 8), at=at, pad={"x": 0}, buckets=[2, 8], compiler="inductor"
        )
        assert fast.stats().graphs == 2 * graphs
        for count in (8, 1, 3):
            same(fast, plain, count)
    assert fast.stats().replays == {8: 2, 2: 1}


class Running:
    """Runs every part, on the host."""

    given: dict[str, Any] = {}  # noqa: RUF012  # It stays empty.

    def start(self, flat: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        return bool(flat and key)

    def piece(self, index: int, run: Callable[..., Any], args: Any) -> Any:
        assert index % 2 == 0
        return run(*args)

    def between(self, index: int, run: Callable[..., Any], args: Any) -> Any:
        assert index % 2
        return run(*args)


def test_inductor_compiles_each_piece_once_for_any_number_of_tokens() -> None:
    """Without graphs, on the host."""
    at = frozenset({torch.ops.aten.cumsum.default})
    stitched = Stitched(at, "inductor", {}, frozenset(), Running())
    compiled = torch.compile(other, backend=stitched, fullgraph=True)
    x = torch.randn(8, 8)
    torch._dynamo.mark_dynamic(x, 0)
    torch.testing.assert_close(compiled(x), other(x))
    assert stitched.breaks == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (2, 5, 31):
            x = torch.randn(count, 8)
            torch.testing.assert_close(compiled(x), other(x))


def _store(x: Tensor, keys: Tensor, values: Tensor) -> None:
    keys.add_(x)
    values.sub_(x)


def test_code_of_inductors_writes_a_layer_of_a_cache_where_it_is() -> None:
    """Without graphs, on the host; layers are views that begin within the memory of the cache."""
    LIBRARY.define("store(Tensor x, Tensor(a!) keys, Tensor(b!) values) -> ()")
    LIBRARY.impl("store", _store, "CPU")
    torch.library.register_fake("piecewise::store", lambda x, k, v: None, lib=LIBRARY)

    def stored(x: Tensor, cache: Tensor) -> Tensor:
        for keys, values in cache:
            torch.ops.piecewise.store(x * 2, keys, values)
            x = torch.ops.aten.cumsum.default(x, -1)
        return x

    at = frozenset({torch.ops.aten.cumsum.default})
    stitched = Stitched(at, "inductor", {}, frozenset(), Running())
    compiled = torch.compile(stored, backend=stitched, fullgraph=True)
    x, want, got = torch.randn(8), *torch.zeros(2, 3, 2, 4, 8)
    torch.testing.assert_close(compiled(x, got), stored(x, want))
    torch.testing.assert_close(got, want)
    assert want.count_nonzero() == want.numel()
