"""What is timed: every case can be made, and the peers that are plain torch do what the op does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch

import graphs_page
import hal
import models
import pages
import steps
import summary
from case import F8, Case
from cases import FAMILIES, attention, elementwise, experts, products, router, sampling
from hal.functions import FORMS
from judges import LIMIT, by_choice, by_norm, by_pairs, in_support
from measure import Row, by_hal, checked, reference
from model import Model
from peers import DoesNotFit, Peer, peers

CPU = torch.device("cpu")
MIXTURE = experts.Mixture("tiny", 8, 4, 128, 128, 2)
TINY: dict[str, Case] = {
    f"{case.op} {case.shape}": case
    for case in (
        elementwise.rms_norm(3, 64),
        elementwise.fused_add_rms_norm(3, 64),
        elementwise.layer_norm(3, 64),
        elementwise.gated("silu_and_mul", 3, 64),
        elementwise.gated("gelu_tanh_and_mul", 3, 64),
        elementwise.quant("per_token_group_quant", 3, 256),
        elementwise.quant("per_token_quant", 3, 256),
        elementwise.add_norm_quant(3, 256),
        elementwise.silu_quant(3, 256),
        elementwise.rotary(3, 4, 2, 64),
        elementwise.qk_norm_rope(3, 4, 2, 64),
        router.topk_softmax(9, 16, 4),
        router.topk_sigmoid(9, 16, 4),
        router.grouped_topk(9, 16, 4, 4, 2),
        router.align(9, 16, 4, 4),
        router.align(1, 16, 2, 4),
        router.moe_sum(3, 4, 16),
        *(sampling.sample(5, 999, kind) for kind in sampling.LIMITS),
        sampling.softmax(3, 99),
        *(sampling.renorm(kind, 3, 99) for kind in ("top_k", "top_p", "min_p")),
        sampling.bitmask(3, 99),
        attention.paged(3, 20, 4, 2, 16, dim=32),
        attention.paged(3, 20, 4, 2, 16, F8, dim=32),
        attention.mla(2, 20, 4, 16),
        attention.merge(3, 4, 16),
        attention.varlen(2, 17, 4, 2, 32),
        attention.varlen(2, 17, 4, 2, 32, (5, 0), 30.0),
        attention.store(7, 2),
        attention.store(7, 2, F8),
        *(products.gemv(3, 256, 256, kind) for kind in ("bf16", "fp8", "int4")),
        products.gemv(3, 256, 256, activation="swiglu"),
        products.w4a16(3, 64, 256),
        products.moe_gemv(3, 4, 32, 64, 2),
        products.scaled(3, 32, 64, "row"),
        products.scaled(3, 32, 64, "tensor"),
        products.block_scaled(3, 256, 256),
        experts.experts(5, MIXTURE),
        experts.experts(5, MIXTURE, F8),
    )
}
ALL = list(chain.from_iterable(family() for family in FAMILIES.values()))


@pytest.mark.parametrize("name", TINY)
def test_a_case_is_a_call_that_hal_serves(name: str) -> None:
    case = TINY[name]
    row, hals = Row(case, ["native"]), Peer("native", case.op, by_hal(case.op, "native"))
    assert checked(row, hals, reference(case, CPU), CPU), row.wrong
    assert row.judged == {"native": case.judge.__name__}
    assert not row.red


@pytest.mark.parametrize("name", TINY)
def test_a_peer_of_plain_torch_does_the_same(name: str) -> None:
    case, row = TINY[name], Row(TINY[name], [])
    want = reference(case, CPU)
    for peer in peers(case.op, ["torch", "math", "sdpa", "bmm", "argmax", "bf16"]):
        with contextlib.suppress(DoesNotFit):
            assert checked(row, peer, want, CPU), row.wrong


@pytest.mark.parametrize("name", ["sdpa", "bmm"])
def test_what_is_dense_gives_the_same_although_it_is_no_peer(name: str) -> None:
    case = {"sdpa": attention.paged(3, 20, 4, 2, 16, dim=32), "bmm": attention.mla(2, 20, 4, 16)}
    (peer,) = peers(case[name].op, [name])
    want, _ = reference(case[name], CPU)
    torch.manual_seed(0)
    args, kwargs = case[name].make(CPU)
    assert by_norm(peer.bound(args, kwargs)(), want, args, kwargs) < LIMIT


def test_the_cases_are_of_all_families_and_have_names_of_their_own() -> None:
    assert {case.family for case in ALL} == set(FAMILIES)
    assert len({(case.op, case.shape) for case in ALL}) == len(ALL)
    assert {case.op for case in ALL} <= {*FORMS, *(f"{name}_" for name in FORMS)}
    assert {case.op for case in ALL} == {case.op for case in TINY.values()}


@pytest.mark.parametrize("name", TINY)
def test_the_bytes_are_at_most_those_of_arguments_and_results(name: str) -> None:
    case = TINY[name]
    args, kwargs = case.make(CPU)
    results = by_hal(case.op, "native")(*args, **kwargs)
    given = (*args, *kwargs.values(), *(results if isinstance(results, tuple) else (results,)))
    most = sum(2 * x.numel() * x.itemsize for x in given if isinstance(x, torch.Tensor))
    assert 0 < case.moved <= most


def test_one_fault_is_seen_by_each_judge() -> None:
    gating = torch.tensor([[0.0, 2.0, 1.0, 5.0]])
    want = hal.ops.topk_softmax(gating, 2)
    other = want[0], torch.tensor([[3, 2]], dtype=torch.int32)
    assert by_choice(want, want, (gating, 2), {}) == 0
    assert by_choice(other, want, (gating, 2), {}) > LIMIT

    ids = torch.tensor([[1, 0], [1, 1]])
    pairs, owners, used = hal.ops.moe_align_block_size(ids, 2, 2)
    swapped = pairs.clone()
    swapped[[2, 3]] = pairs[[3, 2]]
    assert by_pairs((swapped, owners, used), (pairs, owners, used), (ids, 2, 2), {}) == 0
    swapped[[0, 2]] = pairs[[2, 0]]
    assert by_pairs((swapped, owners, used), (pairs, owners, used), (ids, 2, 2), {}) > LIMIT

    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    for limits, allowed in (({}, 3), ({"top_k": 2}, 2), ({"top_p": 0.4}, 1), ({"min_p": 0.5}, 2)):
        found = [in_support(torch.tensor([t]), None, (probs,), limits) == 0 for t in range(4)]
        assert sum(found) == allowed


@pytest.mark.parametrize("phase", models.TINY_PHASES, ids=str)
@pytest.mark.parametrize("name", steps.SHAPES)
def test_a_model_gives_the_logits_of_transformers(name: str, phase: steps.Phase) -> None:
    kind, _, sizes = steps.SHAPES[name]
    model = steps.build(kind, sizes, 2, "cpu", torch.float32)
    tokens = torch.randint(99, (phase.rows, phase.keys))
    want = model(tokens, use_cache=False).logits[:, -1]
    got = steps.ours(Model.of(model, phase.keys), phase, tokens)()
    # Measured 1e-7 to 1e-6.
    assert steps.off(got, want) < 1e-5
    assert steps.off(steps.theirs(model, phase, tokens)(), want) < 1e-5


def row(rows: int, us: dict[str, float], **more: Any) -> dict[str, Any]:
    """A row as a run writes it, with two backends and hal's choice."""
    known = {"family": "norm", "op": "rms_norm", "shape": f"({rows})", "rows": rows, "flops": 0}
    empty = {"wrong": {}, "refused": {}, "notes": {}, "host_us": {}, "compared": {}}
    found = {"bytes": 8000, "copy_us": 1.0, "served": "triton:triton", "us": us}
    return {**known, **empty, **found, "ours": ["cuda", "triton", "hal"], **more}


def test_a_summary_counts_who_wins_and_whether_hal_chooses_well() -> None:
    times = {"cuda": 2.0, "triton": 4.0, "hal": 4.0, "sgl": 8.0, "floor": 1.0}
    first = row(1, times, notes={"floor": "does less"})
    even = row(16, {**times, "sgl": 4.05})
    lost = row(1024, {**times, "sgl": 2.0}, wrong={"triton": "off"})
    assert (summary.ratio(first), summary.share(first), summary.choice(first)) == (2.0, 0.25, 0.5)
    lost["notes"] = even["notes"] = first["notes"]
    (line,) = summary.totals([first, even, lost])
    assert line[:6] == ("rms_norm", "3", "1.42", "1/1/0", "0.50", "0/0/1")
    assert line[-2:] == ("0.50", "1")


def test_a_page_has_the_machine_the_command_and_each_case() -> None:
    run = {"machine": {"name": "a GPU", "torch": "2", "hal": "1"}, "command": "--family norm"}
    run |= {"refuted": {}, "absent": {"rms_norm by musa": "is not offered"}}
    some = [
        row(1, {"hal": 4.0}, refused={"sgl": "takes nothing"}),
        row(64, {"hal": 4.0, "sgl": 8.0}),
    ]
    said = pages.page("norm", some, run)
    for part in ("a GPU, torch 2, hal 1", "run.py --family norm", "| (64) |", "2.00 sgl"):
        assert part in said
    assert "sgl has nothing for `(1)`: takes nothing." in said
    assert "Not timed: rms_norm by musa: is not offered." in said
    assert "[Norm](norm.md)" in pages.index({"norm": (some, run)})


def error(function: Callable[[], Any]) -> str:
    with pytest.raises(DoesNotFit) as caught:
        function()
    return str(caught.value)


def test_a_peer_says_what_it_has_nothing_for() -> None:
    (linear,) = peers("fused_gemv", ["torch"])
    args, kwargs = TINY["fused_gemv (3, 256, 256) fp8"].make(CPU)
    assert error(linear.bound(args, kwargs)) == "its factors have the same dtype"


def step(kind: str, count: int, us: dict[str, float], **more: Any) -> dict[str, Any]:
    """What ``graphs.py`` writes of a step."""
    rows = count if kind == "decode" else 1
    phase = {"name": kind, "rows": rows, "new": count // rows, "keys": 1024}
    zeros = dict.fromkeys(us, 0.0)
    found = {"us": us, "spread": zeros, "errors": zeros, "computed": dict.fromkeys(us, count)}
    return {"phase": phase, "wrong": {}, "refused": {}, "slower": {}, **found, **more}


def graphed(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What it writes of a run."""
    about = {"name": "a GPU", "torch": "2", "hal": "1", "transformers": "5"}
    took = {
        "seconds": 3.0,
        "bytes": 8_000_000,
        "buckets": [1, 112],
        "graphs": 2,
        "cached": 1,
        "skipped": 0,
    }
    ways = {step["phase"]["name"]: {"hal capture": took} for step in steps}
    run = {"machine": about, "command": "--tiny", "layers": 2, "read": 4e9, "copy": 4e12}
    return {**run, "took": ways, "graphs": list(steps), **more}


SLOW, TIED = "transformers", "transformers reduce-overhead"


def test_goals_are_met_or_not_as_the_figures_say() -> None:
    times = {"hal": 1800.0, SLOW: 3000.0, TIED: 1015.0, "hal capture": 1000.0}
    refused = {TIED: "1 s were left"}
    run = graphed(
        step("decode", 1, {**times, TIED: 985.0}, slower={"hal capture": "graphs take 9 µs"}),
        step("prefill", 100, times, computed={"hal capture": 112}),
        step("prefill", 4096, {"hal": 900.0, SLOW: 1200.0, "hal capture": 1000.0}, refused=refused),
    )
    head, found = graphs_page.goals(run)
    assert head == ["goal", "hal capture"]
    assert [said for _, said in found] == [
        "met: 3.00",
        "**not met**: 1.80",
        "met: 0.98 to 1.01",
        "met: 1.20 to 3.00",
        "**not met**: 0.90 to 1.80",
        "met: 1.00",
    ]
    said = graphs_page.graphs_page(graphs_page.merged([run]))
    assert "| 100 (as 112) | 1800 (0) | 1000 (0) |" in said
    assert "| 1 | 1800 (0) | 1000† (0) |" in said
    assert "- decode of 1, hal capture: graphs take 9 µs." in said
    assert "In 1 of 3 steps (†) hal calls the function itself" in said
    assert "Called as hal, that takes 1.80 to 1.80 times as long" in said
    assert "| hal capture | 3.0 | 8 | 2 | 4.0 | 1.50 | 2 | 0.0e+00 |" in said
    assert "reads and writes 4.00 TB/s: 1000 µs at least. hal without graphs takes 1800 µs" in said
    assert f"- prefill of 4096, {TIED}: 1 s were left." in said
    assert "- decode, hal capture: torch found 1 graphs in its cache." in said


def test_of_two_runs_the_last_with_a_phase_counts() -> None:
    old = graphed(step("prefill", 1, {"hal": 1.0}), step("decode", 1, {"hal": 1.0}), copy=1e12)
    new = graphed(step("decode", 1, {"hal": 2.0}), command="--phase decode", copy=2e12)
    run = graphs_page.merged([old, new])
    assert [cell["us"]["hal"] for cell in run["graphs"]] == [1.0, 2.0]
    assert (run["copy"], run["commands"]) == (2e12, ["--tiny", "--phase decode"])
    assert graphs_page.merged([new, old])["copy"] == 1e12


def test_a_picture_has_a_line_for_each_way() -> None:
    pytest.importorskip("matplotlib")
    from curves import curves

    times = {"hal": 2.0, "hal capture": 1.0}
    figure = curves(graphed(step("prefill", 1, times), step("decode", 4, times)))
    lines = [[line.get_label() for line in axes.get_lines()] for axes in figure.axes]
    assert lines == [["hal", "hal capture"]] * 4


def test_pages_are_led_to_once() -> None:
    page = pages.linked("# Performance\n\n- [Models](models.md)\n", ["models", "graphs"])
    assert page == "# Performance\n\n- [Models](models.md)\n- [Graphs](graphs.md)\n"
    assert pages.linked(page, ["models", "graphs"]) == page
