"""Tables of tiles: what is tried for them, what is written, and that plans are what they say."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from triton.runtime.jit import JITFunction

import tune
from case import Case
from cases import FAMILIES, attention, experts, products
from hal_triton import configurations, launch
from sm90 import H100, adapter_of, like_an_h100
from tunable import TUNABLE

META = torch.device("meta")
NEAR = [name for name in TUNABLE if not TUNABLE[name].candidates]
Launched = tuple[str, tuple[int, ...], tuple[float, ...], tuple[Any, ...], dict[str, int]]


@pytest.fixture(autouse=True)
def _plans_for_an_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tune, "DEVICE", META)
    monkeypatch.setattr(tune, "by_hal", lambda op, _: adapter_of(op))
    monkeypatch.setattr(tune, "machine", dict)
    with_table(monkeypatch, {})
    with like_an_h100():
        yield


def with_table(monkeypatch: pytest.MonkeyPatch, tables: dict[str, dict[str, list[int]]]) -> None:
    monkeypatch.setattr(configurations, "_table", mock.Mock(return_value=tables))


def launched(case: Case) -> list[Launched]:
    """Kernel, grid, numbers, constants and options of what a case launches."""
    found: list[Launched] = []

    def note(special: Any, grid: Any, _: Any, numbers: Any) -> None:
        name = special.launcher.kernel.fn.__name__
        found.append((name, grid, tuple(numbers), special.constants, special.options))

    tune.planned(case, tune.shaped(case), note)
    return found


@pytest.mark.parametrize("name", TUNABLE)
def test_each_name_is_one_that_cases_ask_for(name: str) -> None:
    entries = tune.needed(name, {}, FAMILIES)
    assert entries
    for entry in entries.values():
        tries = entry.tries()
        assert 0 < len(set(tries)) == len(tries) <= 64
        assert {len(config) for config in tries} == {len(usual) for usual in entry.usual}
        assert len(entry.usual) > 1 or entry.usual.keys().isdisjoint(tries)


@pytest.mark.parametrize("name", NEAR)
def test_every_candidate_is_a_plan_and_most_are_another_one(name: str) -> None:
    for key, entry in tune.needed(name, {}, FAMILIES).items():
        case, plans = entry.cases[0], list[list[Launched]]()
        for config in (None, *entry.tries()):
            with tune.finding(tune.instead({}, key, config)):
                plans.append(launched(case))
            for _, grid, _, constants, options in plans[-1]:
                assert all(grid)
                sizes = [size for size in constants if type(size) is int and size > 3]
                assert all(size & (size - 1) == 0 for size in sizes)
                assert options["num_warps"] in (1, 2, 4, 8, 16)
        others = [plan for plan in plans[1:] if plan != plans[0]]
        assert len(others) >= math.ceil(len(plans[1:]) * 2 / 3)


# (name, case, the entry, kernel, what is among its constants and options)
ENTRIES = {
    "product none": (
        (products.gemv(16, 4096, 4096), "16,4096,4096,16"),
        ([16, 64, 64, 8, 3, 2], "multiply", (16, 64, 64), (8, 3)),
    ),
    "product rows": (
        (products.scaled(64, 6144, 4096, "row"), "64,8192,4096,8"),
        ([64, 32, 64, 4, 5, 4], "multiply", (64, 32, 64), (4, 5)),
    ),
    "product blocks": (
        (products.w4a16(16, 6144, 4096), "16,8192,4096,4"),
        ([16, 32, 64, 4, 3, 2], "multiply", (16, 32, 64), (4, 3)),
    ),
    "pairs": (
        (products.gemv(1, 4096, 4096), "4096,4096,16"),
        ([1, 8, 512, 8], "multiply_pairs", (1, 8, 512), (8, 3)),
    ),
    "routed pairs": (
        (products.moe_gemv(4, 128, 1536, 2048, 8), "1024,2048,16"),
        ([1, 16, 512, 8], "multiply_pairs", (1, 16, 512), (8, 3)),
    ),
    "experts": (
        (experts.experts(64, experts.QWEN), "512,128,2048,2048,16"),
        ([16, 64, 64, 8, 4], "multiply_blocks", (16, 64, 64), (8, 4)),
    ),
    "decode": (
        (attention.paged(64, 4096, 32, 8, 16), "16,128,128,8,16,16"),
        ([16, 32, 8, 1, 256], "attend_parts", (256, 16, 32), (8, 3)),
    ),
    "prefill": (
        (attention.varlen(1, 2048), "128,128,128,16,16"),
        ([64, 64, 4, 1], "attend", (64, 64), (4, 2)),
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_plan_is_what_the_table_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case, key), (entry, kernel, sizes, options) = ENTRIES[name]

    def fits(given: Launched) -> bool:
        found = ",".join(map(str, given[3]))
        same = tuple(given[4].values()) == options
        return given[0] == kernel and ",".join(map(str, sizes)) in found and same

    assert not any(map(fits, launched(case)))
    with_table(monkeypatch, {name: {key: entry}})
    assert any(map(fits, launched(case)))


def test_parts_and_programs_are_as_many_as_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"product none": {"16,4096,4096,16": [16, 32, 128, 4, 5, 8]}, "slots": {}}
    tables["slots"]["8,8,16"] = [8]
    with_table(monkeypatch, tables)
    multiply, add = launched(products.gemv(16, 4096, 4096))
    assert (multiply[0], multiply[1], add[0]) == ("multiply", (128, 8, 1), "add_parts")
    attend, _ = launched(attention.paged(8, 4096, 32, 8, 16))
    assert attend[1][0] == 8 * 8 * 8


def test_what_an_entry_has_at_once_is_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_table(monkeypatch, {"product none": {"16,4096,4096,16": [16, 256, 256, 8, 7, 1]}})
    (multiply,) = launched(products.gemv(16, 4096, 4096))
    m, n, k = multiply[3][5:8]
    assert multiply[4]["num_stages"] * k * (m + n) * 2 <= H100["shared_memory"]
    # No more than share a scale.
    with_table(monkeypatch, {"product blocks": {"16,8192,4096,4": [16, 64, 256, 4, 3, 1]}})
    (multiply,) = launched(products.w4a16(16, 6144, 4096))
    assert multiply[3][7] == 128
    # A chunk holds whole tiles of keys.
    with_table(monkeypatch, {"decode": {"16,128,128,8,16,16": [16, 128, 4, 1, 64]}})
    (attend,) = launched(attention.paged(64, 4096, 32, 8, 16))
    assert attend[3][6:9] == (128, 16, 128)


@pytest.mark.parametrize("name", ["decode", "prefill", "routed pairs"])
def test_the_order_of_sums_goes_by_no_number_of_rows(name: str) -> None:
    of: dict[str, list[Case]] = {
        "decode": [
            *(attention.paged(rows, 512 * rows, 32, 8, 16) for rows in (1, 5, 70)),
            attention.paged(1, 100, 32, 8, 16),
        ],
        "prefill": [attention.varlen(*sizes) for sizes in ((1, 100), (1, 4096), (70, 65))],
        "routed pairs": [products.moe_gemv(rows, 128, 1536, 2048, 8) for rows in (1, 5, 70)],
    }
    asked: list[tuple[Any, ...]] = []

    def noted(about: str, _: Any, sizes: str, otherwise: Any) -> Any:
        asked.extend([(sizes, *otherwise)] if about == name else [])
        return otherwise

    with tune.finding(noted):
        for case in of[name]:
            launched(case)
    assert len(asked) == len(of[name])
    assert len(set(asked)) == 1


def test_what_is_found_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "cuda-90.json"
    tune.Written(path).put(("gate", "1,2"), (1, 512, 4))
    written = tune.Written(path)
    written.put(("rows", "8"), (4,))
    written.put(("rows", "16"), (8,))
    assert json.loads(path.read_text())["tables"] == {
        "gate": {"1,2": [1, 512, 4]},
        "rows": {"8": [4], "16": [8]},
    }
    assert '"1,2": [ 1, 512, 4 ]' in path.read_text()
    written.keep("rows", [("rows", "16"), ("rows", "32")])
    written.put(("gate", "1,2"), None)
    assert json.loads(path.read_text())["tables"] == {"gate": {}, "rows": {"16": [8]}}


def test_an_interrupt_loses_nothing_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tune.Entry] = []

    def times(entry: tune.Entry, *_: Any) -> dict[tuple[int, ...] | None, float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(entry)
        return {None: 10.0, entry.tries()[0]: 9.0, entry.tries()[1]: 9.9}

    monkeypatch.setattr(tune, "times", times)
    device = mock.Mock(return_value=mock.Mock(L2_cache_size=1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", device)
    written = tune.Written(tmp_path / "cuda-90.json")
    written.put(("slots", "9,9,9"), (3,))
    with pytest.raises(KeyboardInterrupt):
        tune.tune("slots", written, FAMILIES)
    kept = json.loads(written.path.read_text())["tables"]["slots"]
    assert kept == {entry.key[1]: [*entry.tries()[0]] for entry in done}


def test_what_is_timed_is_what_the_tables_say_of_all_else() -> None:
    find = tune.instead({"a": {"1": (5,)}, "b": {"2": (6,)}}, ("a", "1"), (7,))
    assert [find(name, META, sizes, (0,)) for name, sizes in (("a", "1"), ("b", "2"))] == [
        (7,),
        (6,),
    ]
    assert find("b", META, "3", (0,)) == (0,)
    assert tune.instead({"a": {"1": (5,)}}, ("a", "1"), None)("a", META, "1", (0,)) == (0,)


def test_the_rule_of_thumb_stays_unless_another_is_clearly_quicker() -> None:
    assert tune.best([{None: 10.0, (1,): 9.9}]) == (None, 1.0)
    config, share = tune.best([{None: 10.0, (1,): 5.0, (2,): 9.0}, {None: 10.0, (2,): 9.0}])
    assert (config, share) == ((2,), pytest.approx(0.9))


def test_processes_that_compile_share_all_that_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Any, ...]] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: int) -> None:
        assert warmup
        constants = [arg for arg in args if not isinstance(arg, torch.Tensor)]
        compiled.append((kernel.fn.__name__, *constants, *options.items()))

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(launch, "_on", lambda _: contextlib.nullcontext())
    shares: list[set[tuple[Any, ...]]] = []
    for share, of in ((0, 1), (0, 2), (1, 2)):
        compiled.clear()
        tune.compile_share(["prefill"], FAMILIES, {}, share, of)
        shares.append(set(compiled))
    assert shares[0] == shares[1] | shares[2]
    assert shares[1].isdisjoint(shares[2])
    assert len(shares[1]) > 4 < len(shares[2])
