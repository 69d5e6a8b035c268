"""``hal.use`` and ``hal.prefer``: what they take, where they hold, how they nest."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hal
from hal import policy
from hal.op import OPS
from hal.settings import settings as read_settings
from offering import NATIVE, backend, installed, kernel

X = torch.randn(2, 4)
SERVED = ("softmax", "rms_norm", "silu_and_mul")


def alike(name: str) -> Any:
    hooks = {op: [kernel(op, "x"), kernel(op, "y")] for op in SERVED}
    return backend(name, devices=("cpu",), **hooks)


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    with installed(alike("a"), alike("b"), NATIVE):
        yield


def served(op: str = "softmax") -> str:
    """What runs a call, which is also what ``explain`` says of it."""
    args = (X,) if op != "rms_norm" else (X, None)
    explained = str(hal.explain(op, *args).chosen)
    with hal.trace() as records:
        getattr(hal.ops, op)(*args)
    (record,) = records
    assert explained == f"{record.backend}:{record.kernel}"
    return explained


def all_served() -> list[str]:
    return [served(op) for op in SERVED]


@pytest.mark.parametrize("state", [hal.use, hal.prefer])
@pytest.mark.parametrize(
    ("specs", "by_op", "expected"),
    [
        (("b",), {}, ["b:x", "b:x", "b:x"]),
        (("b:y",), {}, ["b:y", "b:y", "b:y"]),
        (("native", "b"), {}, ["native:torch"] * 3),
        (("native,b",), {}, ["native:torch"] * 3),
        ((" b:y , native ",), {}, ["b:y", "b:y", "b:y"]),
        ((), {"rms_norm": "b"}, ["a:x", "b:x", "a:x"]),
        (("rms_norm=b,softmax=native",), {}, ["native:torch", "b:x", "a:x"]),
        (("rms_norm = b",), {"softmax": "a:y"}, ["a:y", "b:x", "a:x"]),
        (("rms_norm=native,rms_norm=b",), {}, ["a:x", "native:torch", "a:x"]),
        (("b",), {"softmax": "native,b"}, ["native:torch", "b:x", "b:x"]),
        (("softmax=native,b",), {}, ["native:torch", "b:x", "b:x"]),
    ],
)
def test_the_grammar(
    state: Any, specs: tuple[str, ...], by_op: dict[str, str], expected: list[str]
) -> None:
    before = all_served()
    with state(*specs, **by_op):
        assert all_served() == expected
    assert all_served() == before == ["a:x"] * 3


def test_an_op_is_named_in_either_form() -> None:
    name = "fused_add_rms_norm"
    for statement in hal.use(fused_add_rms_norm_="native"), hal.use("fused_add_rms_norm_=native"):
        with statement:
            assert policy.current().forced(name) == ("native",)


def test_forced_is_strict_and_preferred_is_not() -> None:
    with hal.use("a:z"), pytest.raises(hal.NoKernel, match="a:z is forced"):
        hal.ops.softmax(X)
    with hal.prefer("a:z"):
        assert served() == "a:x"
    with hal.use("a"), pytest.raises(hal.NoKernel, match="offers no kernel here"):
        hal.ops.layer_norm(X, None, None)
    with hal.prefer("a"):
        assert hal.ops.layer_norm(X, None, None).shape == X.shape


def test_the_innermost_use_wins() -> None:
    with hal.use("b"):
        with hal.use("native"):
            assert served() == "native:torch"
        with hal.use(rms_norm="native"):
            assert all_served() == ["b:x", "native:torch", "b:x"]
            with hal.use("a"):
                assert all_served() == ["a:x"] * 3
        assert served() == "b:x"


def test_preferences_add_up_innermost_first() -> None:
    with hal.prefer("b"), hal.prefer(softmax="a:z,native"):
        assert policy.current().preferred("softmax") == ("a:z", "native", "b")
        assert all_served() == ["native:torch", "b:x", "b:x"]


def test_what_is_forced_outranks_what_is_preferred() -> None:
    with hal.use("b"), hal.prefer("native"):
        assert served() == "b:x"
    with hal.prefer("native"), hal.use("b", "native"):
        assert served() == "b:x"
    with hal.use("b"), hal.prefer("b:y"):
        assert served() == "b:y"


def test_an_exception_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), hal.use("b"), hal.prefer(softmax="native"):
        1 / 0  # noqa: B018  # The statement is there to raise.
    assert served() == "a:x"


def test_a_statement_can_be_held_again_also_within_itself() -> None:
    statement = hal.use("b")
    with statement:
        with statement:
            assert served() == "b:x"
        assert served() == "b:x"
    assert served() == "a:x"
    with statement:
        assert served() == "b:x"


def test_nothing_holds_before_it_is_entered() -> None:
    hal.use("b")
    assert served() == "a:x"


def test_statements_left_out_of_turn_leave_the_others() -> None:
    def under(name: str) -> Iterator[None]:
        with hal.use(name):
            yield

    first, second = under("b"), under("native")
    next(first)
    next(second)
    assert served() == "native:torch"
    first.close()
    assert served() == "native:torch"
    second.close()
    assert served() == "a:x"


def test_a_generator_closed_elsewhere_leaves_that_place_alone() -> None:
    def under() -> Iterator[None]:
        with hal.use("b"):
            yield

    suspended = under()
    # Where it was entered it goes on to hold, so that is a place of its own.
    contextvars.copy_context().run(next, suspended)
    with hal.use("native"):
        suspended.close()
        assert served() == "native:torch"
    assert served() == "a:x"


def in_thread(function: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_it_holds_in_its_thread_only() -> None:
    with hal.use("b"):
        assert in_thread(served) == "a:x"
    entered, done = threading.Event(), threading.Event()

    def hold() -> str:
        with hal.use("b"):
            entered.set()
            assert done.wait(10)
            return served()

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(hold()))
    thread.start()
    assert entered.wait(10)
    here = served()
    done.set()
    thread.join()
    assert (here, found) == ("a:x", ["b:x"])


def test_it_holds_in_its_task_only() -> None:
    async def under(name: str) -> list[str]:
        found: list[str] = []
        with hal.use(name):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(served())
        return [*found, served()]

    async def both() -> list[Any]:
        return [*await asyncio.gather(under("b"), under("native")), served()]

    expected = [[*["b:x"] * 3, "a:x"], [*["native:torch"] * 3, "a:x"], "a:x"]
    assert asyncio.run(both()) == expected


def test_it_decorates_a_function() -> None:
    @hal.use("b")
    def function() -> str:
        """A page."""
        return served()

    assert (function(), served()) == ("b:x", "a:x")
    assert (function.__name__, function.__doc__) == ("function", "A page.")


def test_it_decorates_a_method() -> None:
    class Layer:
        @hal.use("b:y")
        def method(self) -> tuple[object, str]:
            return self, served()

    layer = Layer()
    assert (layer.method(), served()) == ((layer, "b:y"), "a:x")


def test_it_decorates_a_coroutine_function() -> None:
    @hal.prefer(softmax="native")
    async def coroutine() -> list[str]:
        before = served()
        await asyncio.sleep(0)
        return [before, served()]

    async def run() -> tuple[str, list[str], str]:
        waiting = asyncio.create_task(coroutine())
        await asyncio.sleep(0)
        return served(), await waiting, served()

    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.run(run()) == ("a:x", ["native:torch"] * 2, "a:x")
    assert asyncio.run(coroutine()) == ["native:torch"] * 2


def test_a_decorated_generator_holds_while_it_runs() -> None:
    @hal.use("b")
    def generator() -> Iterator[str]:
        yield served()
        yield served()

    running = generator()
    assert next(running) == "b:x"
    assert served() == "a:x"
    with hal.use("native"):
        assert next(running) == "b:x"
        assert served() == "native:torch"
    running.close()


async def endless() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("state", [hal.use, hal.prefer])
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (endless, "an async generator cannot be decorated; use a with block inside it"),
        (dict, "expected a function to decorate, not <class 'dict'>"),
        (3, "expected a function to decorate, not 3"),
    ],
)
def test_what_cannot_be_decorated(state: Any, thing: Any, message: str) -> None:
    with pytest.raises(hal.InvalidType, match=message):
        state("b")(thing)


@pytest.mark.parametrize(
    ("specs", "by_op", "message"),
    [
        (("nativ",), {}, "there is no backend 'nativ'; did you mean native?"),
        (("zzz",), {}, "there is no backend 'zzz'; found a, b, native"),
        (("rms_norm=nativ",), {}, "there is no backend 'nativ'; did you mean native?"),
        (("",), {"softmax": ""}, "there is no backend ''; found a, b, native"),
        ((), {"rms_nrom": "a"}, "there is no op 'rms_nrom'; did you mean rms_norm"),
        ((), {"softmax_": "a"}, "there is no op 'softmax_'; did you mean softmax or topk_softmax?"),
        (("zzz=a",), {}, f"there is no op 'zzz'; known: {', '.join(OPS)}"),
        (("a:",), {}, "'a:' names no kernel; write 'a' or 'a:kernel'"),
    ],
)
def test_names_that_do_not_exist(specs: Any, by_op: Any, message: str) -> None:
    for state in hal.use, hal.prefer:
        with pytest.raises(hal.InvalidInput) as caught:
            state(*specs, **by_op)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("state", [hal.use, hal.prefer])
def test_it_takes_names_and_at_least_one(state: Any) -> None:
    name = state.__name__
    for specs in (), ("",), (" , ",):
        with pytest.raises(
            hal.InvalidInput, match=rf"{name}\(\) needs a backend, as in hal.{name}"
        ):
            state(*specs)
    for wrong in (None, ["a"], hal.ops.softmax):
        with pytest.raises(hal.InvalidType, match=rf"{name}\(\) takes names of backends, not"):
            state(wrong)
        with pytest.raises(hal.InvalidType, match=rf"{name}\(\) takes names of backends, not"):
            state(softmax=wrong)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set variables as if hal was not used before."""

    def first_use(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    def forget() -> None:
        read_settings.cache_clear()
        policy._environment.cache_clear()

    yield first_use
    monkeypatch.undo()
    forget()


def test_the_environment_prefers_and_forces(environment: Any) -> None:
    environment(HAL_PREFER="b:y,softmax=native", HAL_USE="rms_norm=native")
    assert all_served() == ["native:torch", "native:torch", "b:y"]
    with hal.prefer("a"):
        assert all_served() == ["a:x", "native:torch", "a:x"]
    with hal.use("b"):
        assert all_served() == ["b:y"] * 3
    assert in_thread(all_served) == ["native:torch", "native:torch", "b:y"]


def test_the_environment_is_read_at_first_use(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(HAL_USE="b")
    assert served() == "b:x"
    monkeypatch.setenv("HAL_USE", "native")
    assert served() == "b:x"
    with hal.prefer("a"):
        assert served() == "b:x"


@pytest.mark.parametrize("variable", ["HAL_USE", "HAL_PREFER"])
def test_a_mistake_in_the_environment_is_named(environment: Any, variable: str) -> None:
    environment(**{variable: "rms_norm=nativ"})
    for _ in range(2):
        with pytest.raises(hal.InvalidInput) as caught:
            hal.ops.softmax(X)
        message = f"{variable}=rms_norm=nativ: there is no backend 'nativ'; did you mean native?"
        assert str(caught.value) == message


STATEMENTS = st.lists(
    st.tuples(
        st.sampled_from(["use", "prefer"]),
        st.sampled_from([None, "softmax", "rms_norm"]),
        st.lists(st.sampled_from(["a", "b", "b:y", "native"]), min_size=1, max_size=2),
    ),
    max_size=4,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(STATEMENTS)
def test_any_nest_of_statements_is_the_sum_of_its_parts(
    statements: list[tuple[str, str | None, list[str]]],
) -> None:
    forced: list[str] = []
    preferred: list[str] = []
    with contextlib.ExitStack() as stack:
        for kind, op, specs in statements:
            text = ",".join(specs)
            state = hal.use if kind == "use" else hal.prefer
            stack.enter_context(state(**{op: text}) if op else state(text))
            if op in (None, "softmax"):
                forced = specs if kind == "use" else forced
                preferred = [*specs, *preferred] if kind == "prefer" else preferred
        allowed = ["a:x", "a:y", "b:x", "b:y", "native:torch"]
        for wanted in preferred[::-1], forced[::-1]:
            for spec in wanted:
                allowed.sort(key=lambda name, spec=spec: spec not in (name, name.split(":")[0]))
        assert served() == allowed[0]
    assert policy.current().entries == ()
    assert served() == "a:x"
