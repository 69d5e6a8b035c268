"""Each backend that makes trouble ends in its stated state, and nothing else is harmed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hal
from hostile import STRANGERS, WELL, Answers, Forks, Stranger, running

QUESTIONS = {
    "before": "switches()",
    "loaded": "hal.backends()",
    "devices": "[str(d) for d in hal.devices()]",
    "explained": "hal.explain('silu_and_mul').to_dict()",
}
CHECKS = {
    "chosen": "served()",
    "backends": "[b.to_dict() for b in hal.backends()]",
    "problems": "hal.report('cpu').problems",
    "native": "served('native')",
    "well": "served('well')",
    "after": "switches()",
}

forks = pytest.fixture(running, scope="module")


def said(forks: Forks, site: Path, stranger: Stranger) -> Answers:
    imported = f"{stranger.module!r} in sys.modules"
    questions = QUESTIONS | {"answer": stranger.question} | CHECKS | {"imported": imported}
    return forks.ask(site, [stranger, WELL], questions)


def matches(pattern: str | None, found: str | None) -> bool:
    """Whether ``found`` is as stated: by the pattern, or as absent as it is."""
    if pattern is None or found is None:
        return pattern is found
    return re.search(pattern, found) is not None


def assert_as_stated(stranger: Stranger, answers: Answers) -> None:
    theirs = [b for b in answers["backends"] if b["distribution"] != hal.plugins.DISTRIBUTION]
    ((state, reason),) = ((b["state"], b["reason"]) for b in theirs if b["name"] == stranger.name)
    assert state == stranger.state
    assert matches(stranger.reason, reason), reason
    problems = [p.removeprefix(f"{stranger.name}: ") for p in answers["problems"]]
    assert len(problems) == (stranger.problem is not None), problems
    assert all(matches(stranger.problem, problem) for problem in problems), problems
    assert matches(stranger.answer, str(answers["answer"])), answers["answer"]
    # What is loaded has no reason to be told.
    told = [*problems, *([reason] if state in ("failed", "incompatible") else [])]
    assert all(text in answers.stderr for text in told), answers.stderr


def assert_unharmed(answers: Answers) -> None:
    assert answers["after"] == answers["before"]
    assert answers["native"] == ["native:torch"]
    assert answers["well"] == ["well:well"]
    assert "cpu" in answers["devices"]


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.name)
def test_contained(forks: Forks, tmp_path: Path, stranger: Stranger) -> None:
    answers = said(forks, tmp_path, stranger)
    assert_as_stated(stranger, answers)
    assert matches(stranger.chosen, str(answers["chosen"])), answers["chosen"]
    assert stranger.imported or answers["imported"] is False
    assert_unharmed(answers)
    assert "Traceback" not in answers.stderr


def test_there_are_enough() -> None:
    names = [stranger.name for stranger in STRANGERS]
    assert len(set(names)) == len(names) >= 30
