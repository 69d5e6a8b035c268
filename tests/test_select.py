"""The order of choice: forced, preferred, bands, a backend's own order, names; never of imports."""

from __future__ import annotations

import itertools
import random
import warnings
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hal
from hal.op import OPS
from hal.plugins import Plugin
from hal.policy import Entry, Policy
from hal.select import Choice, choose, require_chosen
from offering import ACME, NATIVE, backend, installed, kernel, refusing

SOFTMAX = OPS["softmax"]
NOTHING = Policy(())
ARGS = [torch.zeros(2, 4), 1.0]


def chosen(*plugins: Plugin, policy: Policy = NOTHING, args: Any = ARGS) -> Choice:
    with installed(*plugins):
        return choose(SOFTMAX, ACME, policy, args)


def order(choice: Choice) -> list[str]:
    return [str(candidate) for candidate in choice.candidates]


def one(name: str, **options: Any) -> Plugin:
    return backend(name, softmax=kernel("softmax"), **options)


BANDS = [one("z"), one("y", ours=True), one("a", ours=True, devices=None), NATIVE]


@pytest.mark.parametrize("missing", range(4))
def test_bands_come_in_their_order(missing: int) -> None:
    choice = chosen(*BANDS[missing:])
    assert order(choice) == ["z:fast", "y:fast", "a:fast", "native:torch"][missing:]
    reasons = ["third-party for this device", "for this device", "portable", "reference"]
    assert choice.chosen is not None
    assert choice.chosen.reason == reasons[missing]


def test_a_portable_third_party_is_portable() -> None:
    choice = chosen(one("z", devices=None), one("b", ours=True), NATIVE)
    assert order(choice) == ["b:fast", "z:fast", "native:torch"]


def test_a_backend_orders_its_kernels_itself_and_names_order_backends() -> None:
    several = [kernel("softmax", name) for name in ("slow", "fast", "medium")]
    choice = chosen(one("b"), backend("a", softmax=several), NATIVE)
    assert order(choice) == ["a:slow", "a:fast", "a:medium", "b:fast", "native:torch"]


def test_the_order_of_import_says_nothing() -> None:
    for plugins in itertools.permutations([*BANDS, one("c")]):
        kernels = " ".join(order(chosen(*plugins)))
        assert kernels == "c:fast z:fast y:fast a:fast native:torch"


def test_a_backend_for_other_devices_is_not_asked() -> None:
    asked: list[object] = []
    other = one("other", devices=("cpu", "zeta"))
    other.hooks["softmax"] = asked.append
    choice = chosen(other, NATIVE)
    assert asked == []
    assert {c.backend: c.reason for c in choice.candidates}["other"] == "serves cpu, zeta only"


def test_a_backend_is_asked_once_for_a_device() -> None:
    asked: list[object] = []
    plugin = one("a")
    answer = plugin.hooks["softmax"]
    plugin.hooks["softmax"] = lambda device: (asked.append(device), answer(device))[1]
    with installed(plugin, NATIVE):
        for index in 0, 1, 0, 1:
            choose(SOFTMAX, attrs.evolve(ACME, index=index), NOTHING, ARGS)
    assert [str(device) for device in asked] == ["acme:0", "acme:1"]


def test_a_condition_sees_the_arguments_and_its_answer_is_the_reason() -> None:
    seen: list[Any] = []
    picky = kernel("softmax", supports=lambda *a, **k: seen.append((a, k)) or "not today")
    choice = chosen(backend("a", softmax=picky), NATIVE)
    assert choice.candidates[0].reason == "not today"
    assert str(choice.chosen) == "native:torch"
    assert seen == [((ARGS[0],), {"temperature": 1.0})]


def test_conditions_count_as_met_without_arguments() -> None:
    picky = kernel("softmax", supports=refusing("not today"))
    choice = chosen(backend("a", softmax=picky), NATIVE, args=None)
    assert str(choice.chosen) == "a:fast"
    assert choice.candidates[0].reason == "third-party for this device, if its condition holds"


@pytest.mark.parametrize("args", [None, (torch.ones(2, 3), 1.0)])
def test_what_a_backend_refuses_serves_no_call_and_says_why(args: Any) -> None:
    broken = kernel("softmax", "library", refused="its library writes out of range")
    plugin = backend("a", softmax=[broken, kernel("softmax")])
    choice = chosen(plugin, NATIVE, args=args)
    assert str(choice.chosen) == "a:fast"
    reasons = {str(each): each.reason for each in choice.candidates}
    assert reasons["a"] == "library: its library writes out of range"
    assert not plugin.problems
    with pytest.raises(hal.NoKernel, match="library: its library writes out of range"):
        require_chosen(chosen(backend("a", softmax=broken), args=args), SOFTMAX)


def test_a_kernel_is_not_refused_without_a_reason() -> None:
    with pytest.raises(ValueError, match="refused"):
        kernel("softmax", refused="")


SLOWER = "another is quicker"


@pytest.mark.parametrize("args", [None, ARGS])
def test_what_is_there_on_request_serves_who_names_it_alone(args: Any) -> None:
    asked = [kernel("softmax", "library", on_request=SLOWER), kernel("softmax", "own")]
    for plugins in ([backend("a", softmax=asked), NATIVE], [one("b"), backend("a", softmax=asked)]):
        for kind, specs in (("prefer", ()), ("prefer", ("a",)), ("use", ("a",))):
            choice = chosen(
                *plugins, policy=statement(kind, *specs) if specs else NOTHING, args=args
            )
            assert str(choice.chosen) == "a:own"
            (found,) = (c for c in choice.candidates if c.kernel == "library")
            assert (found.reason, found.offered) == (f"on request only: {SLOWER}", None)
        for kind, word in (("prefer", "preferred"), ("use", "forced")):
            choice = chosen(*plugins, policy=statement(kind, "a:library"), args=args)
            assert choice.chosen is not None
            assert (str(choice.chosen), choice.chosen.reason) == ("a:library", word)


def test_a_backend_with_nothing_but_what_is_there_on_request_says_so() -> None:
    plugin = backend("a", softmax=kernel("softmax", on_request=SLOWER))
    choice = chosen(plugin, NATIVE, policy=statement("use", "a"))
    with pytest.raises(hal.NoKernel, match=f"a:fast +on request only: {SLOWER}"):
        require_chosen(choice, SOFTMAX)
    # Named by a wish, and its backend by force.
    policy = Policy((*statement("prefer", "a:fast").entries, *statement("use", "a").entries))
    assert str(chosen(plugin, NATIVE, policy=policy).chosen) == "a:fast"


def test_what_the_arguments_decide_is_asked_of_calls_that_do_not_name_it() -> None:
    seen: list[Any] = []

    def few(logits: torch.Tensor, *, temperature: Any) -> str | None:
        seen.append(temperature)
        return "quicker from 3 rows on" if len(logits) < 3 else None

    plugin = backend("a", softmax=kernel("softmax", on_request=few))
    choice = chosen(plugin, NATIVE)
    assert choice.candidates[0].reason == "on request only: quicker from 3 rows on"
    assert str(choice.chosen) == "native:torch"
    assert str(chosen(plugin, NATIVE, args=[torch.ones(3, 2), 1.0]).chosen) == "a:fast"
    open_ended = chosen(plugin, NATIVE, args=None)
    assert open_ended.candidates[0].reason == "third-party for this device, if its condition holds"
    assert seen == [1.0, 1.0]
    assert str(chosen(plugin, NATIVE, policy=statement("use", "a:fast")).chosen) == "a:fast"
    assert len(seen) == 2


def test_what_cannot_be_served_is_no_question_of_a_wish() -> None:
    picky = kernel("softmax", supports=refusing("takes int8 only"), on_request=refusing(SLOWER))
    choice = chosen(backend("a", softmax=picky), NATIVE)
    assert choice.candidates[0].reason == "takes int8 only"
    broken = backend("a", softmax=kernel("softmax", on_request=lambda *_, **__: 1 / 0))
    with pytest.warns(UserWarning, match="backend a: softmax: the condition of fast"):
        choice = chosen(broken, NATIVE)
    assert str(choice.chosen) == "native:torch"


@pytest.mark.parametrize("reason", ["", 3])
def test_a_kernel_is_not_on_request_without_a_reason(reason: Any) -> None:
    with pytest.raises(ValueError, match="on_request"):
        kernel("softmax", on_request=reason)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (lambda *_, **__: 1 / 0, "its condition raised ZeroDivisionError: division by zero"),
        (lambda *_, **__: True, "its condition answered with True, neither None nor a reason"),
        (lambda *_, **__: "", "its condition answered with '', neither None nor a reason"),
    ],
)
def test_a_broken_condition_refuses_and_is_on_record(condition: Any, reason: str) -> None:
    plugin = backend("a", softmax=kernel("softmax", supports=condition))
    with pytest.warns(UserWarning, match="backend a: softmax: the condition of fast"):
        choice = chosen(plugin, NATIVE)
    assert choice.candidates[0].reason == reason
    assert str(choice.chosen) == "native:torch"
    assert len(plugin.problems) == 1


def statement(kind: str, *specs: str) -> Policy:
    return Policy((Entry(kind, "softmax", specs),))


def test_forced_that_refuses_is_an_error_with_every_reason() -> None:
    picky = backend("a", softmax=kernel("softmax", supports=refusing("takes int8 only")))
    empty = backend("b")
    choice = chosen(picky, empty, NATIVE, policy=statement("use", "a", "b"))
    with pytest.raises(hal.NoKernel) as caught:
        require_chosen(choice, SOFTMAX)
    lines = [line.split(maxsplit=1) for line in str(caught.value).splitlines()]
    assert lines == [
        ["no", "kernel can serve softmax on acme:0"],
        ["a:fast", "takes int8 only"],
        ["b", "offers no kernel here"],
        ["native:torch", "a or b is forced"],
    ]


def test_who_offers_nothing_says_why_as_it_said_of_devices() -> None:
    empty = backend("b")
    empty.reason = "libfast is not installed"
    reasons = [c.reason for c in chosen(empty, NATIVE).candidates]
    assert reasons[0] == "offers no kernel here: libfast is not installed"


def test_preferred_that_refuses_falls_on() -> None:
    picky = backend("b", softmax=kernel("softmax", supports=refusing("takes int8 only")))
    choice = chosen(one("a"), picky, NATIVE, policy=statement("prefer", "b", "native"))
    assert order(choice) == ["b:fast", "native:torch", "a:fast"]
    assert str(choice.chosen) == "native:torch"
    assert [c.reason for c in choice.candidates] == [
        "takes int8 only",
        "preferred",
        "native:torch comes first",
    ]


def test_one_kernel_of_a_backend_can_be_forced_or_preferred() -> None:
    several = backend("a", softmax=[kernel("softmax", name) for name in ("x", "y")])
    for kind in "use", "prefer":
        choice = chosen(several, NATIVE, policy=statement(kind, "a:y"))
        assert str(choice.chosen) == "a:y"


def test_the_reference_on_an_accelerator_warns_once() -> None:
    place = hal.Device("acme", 71)
    with installed(NATIVE):
        choice = choose(SOFTMAX, place, NOTHING)
        with pytest.warns(UserWarning, match="serves softmax on an accelerator") as caught:
            require_chosen(choice, SOFTMAX)
        assert "softmax on acme:71" in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            require_chosen(choice, SOFTMAX)
            require_chosen(choose(OPS["rms_norm"], place, NOTHING), OPS["rms_norm"])


@pytest.mark.parametrize("kind", ["use", "prefer"])
def test_the_reference_that_was_asked_for_does_not_warn(kind: str) -> None:
    with installed(NATIVE):
        choice = choose(SOFTMAX, hal.Device("acme", 72), statement(kind, "native"))
        require_chosen(choice, SOFTMAX)


def test_the_reference_on_the_host_does_not_warn() -> None:
    with installed(NATIVE):
        require_chosen(choose(SOFTMAX, hal.Device("acme", 73, accelerator=False), NOTHING), SOFTMAX)


def test_a_choice_is_readable_and_plain_data() -> None:
    choice = chosen(one("a"), NATIVE)
    assert str(choice).splitlines() == [
        "softmax on acme:0",
        "  -> a:fast        third-party for this device",
        "     native:torch  a:fast comes first",
    ]
    assert choice.to_dict() == {
        "op": "softmax",
        "device": "acme:0",
        "chosen": "a:fast",
        "candidates": [
            {
                "backend": "a",
                "kernel": "fast",
                "reason": "third-party for this device",
                "chosen": True,
            },
            {
                "backend": "native",
                "kernel": "torch",
                "reason": "a:fast comes first",
                "chosen": False,
            },
        ],
    }


@attrs.frozen
class Offered:
    """A kernel as drawn: all that the stated order looks at."""

    backend: str
    band: int
    place: int
    kernel: str
    refuses: bool
    graph_safe: bool
    on_request: bool

    def named_by(self, specs: tuple[str, ...]) -> int:
        """The first of ``specs`` that names it, their number if none does."""
        names = self.backend, f"{self.backend}:{self.kernel}"
        return min((i for i, spec in enumerate(specs) if spec in names), default=len(specs))


KINDS = [
    {"devices": ("acme",)},
    {"devices": ("acme", "cpu"), "ours": True},
    {"devices": None, "ours": True},
]


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Plugin, list[Offered]]]:
    """Up to five backends of any band with up to three kernels each, and the reference or not."""
    found: list[tuple[Plugin, list[Offered]]] = []
    for name in draw(st.lists(st.sampled_from("abcde"), unique=True)):
        band = draw(st.integers(0, 2))
        rows = [
            Offered(name, band, place, kernel_name, *(draw(st.booleans()) for _ in range(3)))
            for place, kernel_name in enumerate(
                draw(st.lists(st.sampled_from("xyz"), unique=True, max_size=3))
            )
        ]
        made = [
            kernel(
                "softmax",
                row.kernel,
                supports=refusing("refused") if row.refuses else draw(st.sampled_from(ACCEPT)),
                graph_safe=row.graph_safe,
                on_request=SLOWER if row.on_request else None,
            )
            for row in rows
        ]
        found.append((backend(name, softmax=made, **KINDS[band]), rows))
    if draw(st.booleans()):
        found.append((NATIVE, [Offered("native", 3, 0, "torch", False, True, False)]))
    return found


ACCEPT = [None, refusing(None)]
SPECS = st.lists(
    st.sampled_from([*"abc", "native", "native:torch", "a:x", "b:y", "c:z", "d:x"]), max_size=3
).map(tuple)


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(tables(), SPECS, SPECS, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_the_chosen_is_the_least_by_the_stated_order(
    table: list[tuple[Plugin, list[Offered]]],
    forced: tuple[str, ...],
    preferred: tuple[str, ...],
    graphs: bool,
    known: bool,
    shuffled: random.Random,
) -> None:
    entries = [Entry("prefer", None, preferred)] if preferred else []
    entries += [Entry("use", "softmax", forced)] if forced else []
    entries += [Entry("trait", None, "graph_safe")] if graphs else []
    policy = Policy(tuple(entries))

    def key(row: Offered) -> tuple[Any, ...]:
        asked_for = row.named_by(forced), row.named_by(preferred)
        return *asked_for, row.band, row.backend, row.place

    def fit(row: Offered) -> bool:
        allowed = not forced or row.named_by(forced) < len(forced)
        allowed &= not row.on_request or f"{row.backend}:{row.kernel}" in (*forced, *preferred)
        return allowed and (row.graph_safe or not graphs) and not (known and row.refuses)

    rows = sorted((row for _, rows in table for row in rows), key=key)
    best = next((f"{row.backend}:{row.kernel}" for row in rows if fit(row)), None)

    shuffled.shuffle(table)
    choice = chosen(*(p for p, _ in table), policy=policy, args=ARGS if known else None)
    assert (str(choice.chosen) if choice.chosen else None) == best
    offers = [c for c in choice.candidates if c.kernel]
    assert [str(c) for c in offers] == [f"{row.backend}:{row.kernel}" for row in rows]
    assert [c.reason == f"{best} comes first" or c.chosen for c in offers] == list(map(fit, rows))
    assert all(c.reason for c in choice.candidates)
    assert {c.backend for c in choice.candidates} == {plugin.name for plugin, _ in table}
    assert sum(c.chosen for c in choice.candidates) == (best is not None)
