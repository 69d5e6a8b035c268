"""The call path without a compiler: what plan serves a call, what is refused, what it costs."""

from __future__ import annotations

import copy
import gc
import pickle
import timeit
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hal
from hal import dispatch
from hal.functions import FORMS
from offering import NATIVE, Noting, backend, installed


@pytest.fixture
def gate() -> Iterator[Noting]:
    offered = Noting("silu_and_mul")
    with installed(offered.backend, NATIVE):
        yield offered


@pytest.fixture
def norm() -> Iterator[Noting]:
    offered = Noting("rms_norm")
    with installed(offered.backend, NATIVE):
        yield offered


X, WEIGHT = torch.linspace(-2, 2, 32).view(4, 8), torch.linspace(0.5, 1.5, 8)


def test_a_plan_serves_every_later_call_with_like_tensors(gate: Noting) -> None:
    for i in range(5):
        hal.ops.silu_and_mul(torch.full((4, 8), float(i)))
        hal.ops.silu_and_mul(x=torch.nn.Parameter(X, requires_grad=False))
    assert len(gate.asked) == 2  # A parameter is of another type.
    assert len(gate.ran) == 10


DISTINCT = {
    "rows": torch.zeros(5, 8),
    "columns": torch.zeros(4, 16),
    "dimensions": torch.zeros(1, 4, 8),
    "strides": torch.zeros(8, 4).t(),
    "row stride": torch.zeros(4, 16)[:, :8],
    "dtype": torch.zeros(4, 8, dtype=torch.float64),
    "half": torch.zeros(4, 8, dtype=torch.float16),
}


@pytest.mark.parametrize("other", DISTINCT)
def test_a_plan_serves_no_tensor_that_differs(gate: Noting, other: str) -> None:
    for _ in range(2):
        hal.ops.silu_and_mul(X)
        hal.ops.silu_and_mul(DISTINCT[other])
    assert [tuple(x.shape) for (x,) in gate.asked] == [(4, 8), tuple(DISTINCT[other].shape)]
    assert len(gate.ran) == 4


def test_more_shapes_than_are_kept_at_hand_are_all_planned_once(gate: Noting) -> None:
    for _ in range(3):
        for rows in range(12):
            assert hal.ops.silu_and_mul(torch.ones(rows, 8)).shape == (rows, 4)
    assert len(gate.asked) == 12


def test_a_condition_decides_for_each_shape_and_is_asked_once_for_each() -> None:
    picky = Noting("silu_and_mul", lambda x: None if x.shape[0] % 2 else "takes odd rows only")
    with installed(picky.backend, NATIVE):
        for _ in range(3):
            for rows in range(1, 6):
                hal.ops.silu_and_mul(torch.ones(rows, 8))
    assert sorted(x.shape[0] for (x,) in picky.asked) == [1, 2, 3, 4, 5]
    assert {x.shape[0] for (x,) in picky.ran} == {1, 3, 5}


def test_a_condition_sees_each_plain_argument_that_differs(norm: Noting) -> None:
    for _ in range(2):
        for eps in (1e-6, 1e-5, 0.0, 1, 1.0):
            hal.ops.rms_norm(X, WEIGHT, eps)
    seen = [(type(eps), eps) for _, _, eps in norm.asked]
    assert seen == [(float, 1e-6), (float, 1e-5), (float, 0.0), (int, 1), (float, 1.0)]


def test_an_argument_that_is_none_has_a_plan_of_its_own(norm: Noting) -> None:
    for _ in range(2):
        torch.testing.assert_close(hal.ops.rms_norm(X, None), hal.ops.rms_norm(X, torch.ones(8)))
    assert len(norm.asked) == 2


def test_a_tensor_that_is_given_twice_has_a_plan_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = Noting("mul_add")
    missed: list[str] = []
    with installed(offered.backend, NATIVE):
        for a, b in ((X, X), (X, X.clone())):
            hal.ops.mul_add(a, b, 2.0)
        called = dispatch.execute
        monkeypatch.setattr(dispatch, "execute", lambda *args: missed.append("") or called(*args))
        for a, b in ((X, X), (X.clone(), X), (X, X)):
            assert torch.equal(hal.ops.mul_add(a, b, 2.0), X * 2 + X)
    assert len(offered.ran) == 5
    assert not missed


def test_a_number_and_a_tensor_for_one_argument_have_plans_of_their_own() -> None:
    hot = Noting("softmax")
    with installed(hot.backend, NATIVE):
        for _ in range(2):
            hal.ops.softmax(X, temperature=2.0)
            hal.ops.softmax(X, temperature=torch.tensor(3.0))
            hal.ops.softmax(X, temperature=torch.full((4,), 3.0))
            hal.ops.softmax(X, temperature=4.0)
    assert len(hot.asked) == 4
    assert [float(torch.as_tensor(t).flatten()[0]) for _, t in hot.ran] == [2, 3, 3, 4] * 2


def test_a_negative_zero_reaches_the_kernel_as_such(norm: Noting) -> None:
    for eps in (0.0, -0.0, 0.0):
        hal.ops.rms_norm(X, WEIGHT, eps)
    assert [str(eps) for _, _, eps in norm.ran] == ["0.0", "-0.0", "0.0"]


def test_by_keyword_and_by_position_are_one_call(norm: Noting) -> None:
    wanted = hal.ops.rms_norm(X, WEIGHT, 1e-5)
    for found in (
        hal.ops.rms_norm(x=X, weight=WEIGHT, eps=1e-5),
        hal.ops.rms_norm(X, eps=1e-5, weight=WEIGHT),
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    hal.ops.rms_norm(X, WEIGHT)
    hal.ops.rms_norm(X, WEIGHT, 1e-6)
    assert len(norm.asked) == 2


def test_plans_are_dropped_when_there_are_too_many(
    gate: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_MAX_PLANS", 5)
    for _ in range(2):
        for rows in range(30):
            hal.ops.silu_and_mul(torch.ones(rows, 8))
            assert 0 < len(FORMS["silu_and_mul"].plans) <= 5
    assert len(gate.asked) == 60


def test_tensors_without_elements_are_planned_and_served(gate: Noting) -> None:
    for shape in ((0, 8), (3, 0), (0, 0), (0, 3, 8)):
        for _ in range(2):
            assert hal.ops.silu_and_mul(torch.empty(shape)).numel() == 0
    assert len(gate.asked) == 4


def test_more_elements_than_32_bits_count_are_planned() -> None:
    # It is the planning that is tried: the kernel touches no memory, which takes none up.
    def untouched(x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], 1)

    made = hal.Kernel(fn=untouched, name="untouched")
    huge = torch.ones(1, 2, dtype=torch.float16).expand(2**31 + 5, 2)
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        for rows in (2**31 + 5, 2**31 + 5, 2**31 + 3):
            assert hal.ops.silu_and_mul(huge[:rows]).shape == (rows, 1)
    with FakeTensorMode():
        fake = torch.empty(2**33, 2)
        assert hal.ops.silu_and_mul(fake).shape == (2**33, 1)
    with pytest.raises(hal.InvalidInput, match="even last dimension"):
        hal.ops.silu_and_mul(torch.ones(1, 1).expand(2**31 + 5, 1))


def test_a_choice_holds_at_once_and_as_long_as_it_is_made(gate: Noting) -> None:
    def ran() -> bool:
        before = len(gate.ran)
        hal.ops.silu_and_mul(X)
        return len(gate.ran) > before

    for _ in range(3):
        assert ran()
        with hal.use("native"):
            assert not ran()
            with hal.prefer("noting"):
                assert not ran()
            with hal.use("noting"):
                assert ran()
            assert not ran()
        with hal.prefer(silu_and_mul="native"):
            assert not ran()
        with hal.use(rms_norm="native"):
            assert ran()
    assert ran()


def test_a_trace_sees_calls_that_have_a_plan_and_leaves_none_behind(gate: Noting) -> None:
    hal.ops.silu_and_mul(X)
    plans = dict(FORMS["silu_and_mul"].plans)
    for _ in range(2):
        with hal.trace() as records:
            hal.ops.silu_and_mul(X)
            torch.ops.hal.silu_and_mul(X)
        assert [(r.op, r.backend) for r in records] == [("silu_and_mul", "noting")] * 2
    assert FORMS["silu_and_mul"].plans.keys() <= plans.keys() | FORMS["silu_and_mul"].plans.keys()
    assert all(not key[0].traces for key in FORMS["silu_and_mul"].plans)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A subclass that only looks on."""

    seen: ClassVar[list[str]] = []
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        plain = [a.inner if isinstance(a, Wrapped) else a for a in args]
        return func(*plain, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_op_whatever_ran_before(gate: Noting) -> None:
    wanted = hal.ops.silu_and_mul(X)
    for _ in range(2):
        with Seen() as mode:
            found = hal.ops.silu_and_mul(X)
        assert mode.seen == ["hal.silu_and_mul.default"]
        torch.testing.assert_close(found, wanted)
        hal.ops.silu_and_mul(X)
    with Seen() as mode:
        hal.ops.fused_add_rms_norm_(X.clone(), X.clone(), WEIGHT)
    assert mode.seen[-1] == "hal.fused_add_rms_norm_.default"


def test_a_function_mode_sees_what_the_kernel_calls(gate: Noting) -> None:
    wanted = hal.ops.silu_and_mul(X)
    with Called() as mode:
        found = hal.ops.silu_and_mul(X)
    torch.testing.assert_close(found, wanted)
    assert "silu" in mode.seen


def test_a_subclass_sees_the_op_and_not_the_plan_of_plain_tensors(gate: Noting) -> None:
    wanted = hal.ops.silu_and_mul(X)
    Wrapped.seen.clear()
    for _ in range(2):
        torch.testing.assert_close(hal.ops.silu_and_mul(Wrapped(X)), wanted)
    assert Wrapped.seen == ["hal.silu_and_mul.default"] * 2


@pytest.mark.parametrize("first", ["inference", "grad", "plain"])
def test_gradients_are_recorded_where_they_are_wanted_whatever_ran_before(
    gate: Noting, first: str
) -> None:
    leaf = X.clone().requires_grad_()
    calls: dict[str, Callable[[], bool]] = {
        "plain": lambda: hal.ops.silu_and_mul(X).requires_grad,
        "grad": lambda: not hal.ops.silu_and_mul(leaf).requires_grad,
        "parameter": lambda: not hal.ops.silu_and_mul(torch.nn.Parameter(X)).requires_grad,
        "no_grad": lambda: torch.no_grad()(hal.ops.silu_and_mul)(leaf).requires_grad,
        "inference": lambda: not torch.inference_mode()(hal.ops.silu_and_mul)(X).is_inference(),
        "inference leaf": lambda: torch.inference_mode()(hal.ops.silu_and_mul)(leaf).requires_grad,
        "nonleaf": lambda: not hal.ops.silu_and_mul(leaf * 1).requires_grad,
        "detached": lambda: hal.ops.silu_and_mul(leaf.detach()).requires_grad,
    }
    for _ in range(2):
        assert not calls[first]()
        assert {name: call() for name, call in calls.items()} == dict.fromkeys(calls, False)


def test_a_functional_transform_sees_the_op_whatever_ran_before(gate: Noting) -> None:
    wanted = hal.ops.silu_and_mul(X)
    torch.testing.assert_close(torch.vmap(hal.ops.silu_and_mul)(X), wanted)
    grad = torch.func.grad(lambda x: hal.ops.silu_and_mul(x).sum())(X)
    assert grad.abs().sum() > 0
    torch.testing.assert_close(hal.ops.silu_and_mul(X), wanted)


@pytest.mark.parametrize("order", [1, -1])
def test_meta_and_fake_tensors_give_shapes_and_run_no_kernel(gate: Noting, order: int) -> None:
    def meta() -> None:
        result = hal.ops.silu_and_mul(torch.empty(4, 8, device="meta"))
        assert result.is_meta
        assert result.shape == (4, 4)

    def fake() -> None:
        with FakeTensorMode() as mode:
            result = hal.ops.silu_and_mul(mode.from_tensor(X))
        assert type(result).__name__ == "FakeTensor"
        # Also outside its mode.
        assert hal.ops.silu_and_mul(mode.from_tensor(X)).shape == (4, 4)

    def real() -> None:
        assert type(hal.ops.silu_and_mul(X)) is Tensor

    for call in (real, meta, fake)[::order] * 2:
        call()
    assert len(gate.ran) == 2


def test_autocast_leaves_an_op_alone(gate: Noting) -> None:
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = hal.ops.silu_and_mul(X)
        outside = hal.ops.silu_and_mul(X)
        assert inside.dtype == outside.dtype == torch.float32
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)


# Torch 2.11 warns of it whenever a profile is read.
@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_a_profiler_sees_the_torch_operator_only_where_a_call_goes_through_it() -> None:
    leaf = X.clone().requires_grad_()

    def events(x: Tensor) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            hal.ops.silu_and_mul(x)
        return {event.name for event in profile.events()}

    assert "hal::silu_and_mul" not in events(X)
    assert "aten::silu" in events(X)
    assert "hal::silu_and_mul" in events(leaf)


@pytest.mark.parametrize("name", FORMS)
def test_a_function_is_copied_and_pickled_by_name(name: str) -> None:
    function = getattr(hal.ops, name)
    assert copy.deepcopy(function) is function
    assert copy.copy(function) is function
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("through", [False, True], ids=["plain", "grad"])
def test_nothing_keeps_the_tensors_of_a_call(gate: Noting, through: bool) -> None:
    def call() -> list[weakref.ref[Tensor]]:
        x = torch.ones(4, 8, requires_grad=through)
        x2, residual, weight = torch.ones(4, 8), torch.ones(4, 8), torch.ones(8)
        out = torch.empty(4, 8)
        results = [hal.ops.silu_and_mul(x), *hal.ops.fused_add_rms_norm_(x2, residual, weight)]
        results += [
            hal.ops.rms_norm(x2, weight, out=out),
            hal.ops.softmax(x2, temperature=out[:, 0]),
        ]
        with pytest.raises(hal.InvalidInput):
            hal.ops.rms_norm(x2, out)
        if through:
            results[0].sum().backward()
        return [weakref.ref(t) for t in (x, x2, residual, weight, out, *results)]

    for offered in gate.ran, gate.asked:
        offered.clear()
    gc.collect()
    gc.disable()  # What a cycle holds is kept, too, until someone looks for it.
    try:
        references = call()
        gate.ran.clear()
        gate.asked.clear()
        assert [reference() for reference in references if reference() is not None] == []
    finally:
        gc.enable()


def overhead(function: Callable[[Tensor], Any], direct: Callable[[Tensor], Any]) -> float:
    """Seconds over ``direct`` for a thousand calls, the best of many repeats taken in turn."""
    names = {"function": function, "direct": direct, "x": X}
    rounds = [
        [timeit.timeit(f"{name}(x)", globals=names, number=1000) for name in ("function", "direct")]
        for _ in range(40)
    ]
    return min(one for one, _ in rounds) - min(two for _, two in rounds)


def test_a_call_costs_less_than_a_third_of_what_the_torch_operator_costs() -> None:
    ready = torch.empty(4, 4)

    def kernel_itself(x: Tensor) -> Tensor:
        return ready

    made = hal.Kernel(fn=kernel_itself, name="ready", supports=lambda x: None)
    with installed(backend("acme", devices=("cpu",), silu_and_mul=made), NATIVE):
        assert hal.ops.silu_and_mul(X) is ready
        ours = overhead(hal.ops.silu_and_mul, kernel_itself)
        torchs = overhead(torch.ops.hal.silu_and_mul, kernel_itself)
    assert ours < torchs / 3


def test_the_stride_of_a_dimension_of_one_element_is_of_no_account() -> None:
    # What torch computes from one row of a transposed tensor is contiguous with strides (1, 1).
    row = torch.randn(64, 3).t()[:1]
    assert (row * 2).stride() == (1, 1)
    torch.testing.assert_close(hal.ops.silu_and_mul(row), hal.ops.silu_and_mul(row.contiguous()))
    torch.testing.assert_close(hal.ops.rms_norm(row, None), hal.ops.rms_norm(row.clone(), None))


def test_an_empty_tensor_is_written_to_whatever_its_strides() -> None:
    cache = torch.empty_strided((3, 3, 0, 1), (0, 0, 1, 0))
    slots = torch.tensor([0])
    row = torch.empty(1, 0, 1)
    assert hal.ops.store_kv_cache_(row, row, cache, cache.clone(), slots)[0] is cache
