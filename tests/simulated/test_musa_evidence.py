"""``hal check musa`` on a simulated card, what it may say, and that it says what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch

import hal
from hal import evidence
from hal.testing.attempt import tried
from hal.testing.checks.check import QUICK
from hal.testing.outcome import Status
from hal.testing.questions import questions
from hal.testing.verdict import Verdict
from simulated.vendors import ARCH, vendors

OPS = (
    *("silu_and_mul", "rms_norm", "mul_add", "rotary_embedding", "per_token_group_quant"),
    *("scaled_mm", "block_scaled_mm", "fused_gemv", "grouped_topk"),
    *("varlen_attention", "paged_attention", "mla_decode"),
)
CHECKS = ("numerics", "purity", "written", "capture", "fake", "out", "condition")


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        yield


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_nothing_is_refuted(op: str) -> None:
    asked = [q for q in questions("musa", hal.device("musa"), [op]) if q.check in CHECKS]
    found = [tried(question, QUICK)[0] for question in asked]
    refuted = [
        f"{cell.kernel} {cell.check}: {cell.reason}"
        for cell in found
        if cell.status is Status.REFUTED
    ]
    assert not refuted
    assert bool(found) == bool(asked)


def test_what_is_claimed_of_the_card_is_not_refuted() -> None:
    claimed = [q for q in questions("musa", hal.device("musa")) if q.op == evidence.DEVICE]
    found = {q.check: tried(q, QUICK)[0] for q in claimed}
    assert not [cell.reason for cell in found.values() if cell.status is Status.REFUTED]
    assert found["graph_capture"].status is Status.PROVEN
    assert (found["fp8"].status is Status.PROVEN) == (ARCH >= 31)


def test_evidence_says_that_it_is_of_a_simulated_card(tmp_path: Path) -> None:
    card = hal.device("musa")
    (question,) = [q for q in questions("musa", card, ["rms_norm"]) if q.check == "deterministic"]
    verdict = Verdict("musa", card, QUICK, [tried(question, QUICK)[0]])
    assert f"({card.name}, simulated)" in verdict.summary()
    assert verdict.recorded.name == f"musa-musa-{ARCH}-simulated.json"
    verdict.write(tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["setting"]["simulated"] is True


def test_it_is_shown_as_such_and_proves_nothing_of_a_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = hal.device("musa")
    (question,) = [q for q in questions("musa", card, ["rms_norm"]) if q.check == "deterministic"]
    Verdict("musa", card, QUICK, [tried(question, QUICK)[0]]).write(tmp_path / "found.json")
    read = evidence.Evidence.read(tmp_path / "found.json")
    monkeypatch.setattr(evidence, "evidence", lambda: (read,))
    told = "rms_norm", "musa:torch_musa", read.version
    assert evidence.standing(*told, card, "deterministic") == "proven (simulated)"
    real = attrs.evolve(card, simulated=False)
    assert evidence.standing(*told, real, "deterministic") == "claimed"


def test_the_host_beside_it_is_real() -> None:
    assert not hal.device("cpu").simulated
    assert "simulated" not in evidence.setting(hal.device("cpu"))
    assert all(hal.device(f"musa:{i}").simulated for i in range(torch.musa.device_count()))
