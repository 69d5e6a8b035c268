"""How loud what went wrong with a backend is: warnings, errors, HAL_STRICT and interrupts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostile import OURS, STRANGERS, WELL, Forks, Stranger, running

forks = pytest.fixture(running, scope="module")

NAMED = {stranger.name: stranger for stranger in STRANGERS}
BROKEN = Stranger("broken", "raise OSError('no driver')")
STATES = "{b.name: b.state for b in hal.backends()}"


def test_warned_of_once(forks: Forks, tmp_path: Path) -> None:
    questions = {
        "states": STATES,
        "served": "[served() for _ in range(3)]",
        "report": "hal.report()",
    }
    answers = forks.ask(tmp_path, [BROKEN, NAMED["hook_raises"], WELL], questions)
    assert answers["served"] == [["well:well"]] * 3
    assert answers.stderr.count("backend broken is failed: OSError: no driver") == 1
    assert answers.stderr.count("backend hook_raises: silu_and_mul raised OSError") == 1


STRICT = {
    "import_error": "hal.devices()",
    "newer_api": "hal.device('cpu')",
    "newer_hal": "hal.explain('silu_and_mul')",
    "sets_seed": "hal.ops.silu_and_mul(x())",
    "hook_raises": "hal.ops.silu_and_mul(x())",
    "hook_recurses": "hal.explain('silu_and_mul')",
    "answers_string": "hal.report()",
    "arity": "hal.bind('silu_and_mul', x())",
    "absent_device": "hal.devices()",
    "capability_names": "hal.supports('pdl', 'cpu')",
    "repair_in_vain": "hal.require('bf16')",
    "condition_raises": "hal.ops.silu_and_mul(x())",
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_makes_an_error_of_it(forks: Forks, tmp_path: Path, name: str) -> None:
    questions = {"error": STRICT[name], "again": STRICT[name], "states": STATES}
    answers = forks.ask(tmp_path, [NAMED[name], WELL], questions, HAL_STRICT="1")
    assert answers["error"].startswith("BackendError: HAL_STRICT is set:\n  backend "), answers
    assert f"\n  backend {name}" in answers["error"]
    assert answers["again"] == answers["error"]
    # What is wrong can still be listed.
    assert answers["states"] == {**OURS, name: NAMED[name].state, "well": "loaded"}


def test_strict_chains_the_cause(forks: Forks, tmp_path: Path) -> None:
    error = forks.ask(tmp_path, [BROKEN], {"error": "hal.devices()"}, HAL_STRICT="1")["error"]
    assert error.splitlines()[1:] == [
        "  backend broken is failed: OSError: no driver",
        "from OSError('no driver')",
    ]


def test_strict_has_nothing_against_what_is_denied(forks: Forks, tmp_path: Path) -> None:
    settings = {"HAL_STRICT": "1", "HAL_DISABLE": "broken"}
    answers = forks.ask(tmp_path, [BROKEN, WELL], {"served": "served()"}, **settings)
    assert answers["served"] == ["well:well"]
    assert answers.stderr == ""


def test_later_errors_say_what_went_wrong(forks: Forks, tmp_path: Path) -> None:
    questions = {
        "no kernel": "under('well', lambda: hal.ops.softmax(x()))",
        "no device": "hal.device('toaster')",
        "no capability": "hal.require('pdl', device='cpu')",
    }
    answers = forks.ask(tmp_path, [BROKEN, NAMED["devices_raise"], WELL], questions)
    failed, raised = "failed: OSError: no driver", "devices_raise: hal_devices raised OSError: no"
    for question in questions:
        assert failed in answers[question]
    # It was no candidate's fault, so that only the end of the message has it.
    assert raised in answers["no kernel"].splitlines()[-1]
    assert raised in answers["no capability"]
    assert answers["no kernel"].count(failed) == 1


INTERRUPT = """
def once():
    if not hasattr(sys, "interrupted"):
        sys.interrupted = True
        raise KeyboardInterrupt
import sys
"""
KERNEL = "@hookimpl\ndef silu_and_mul(device):\n    {}return Kernel(fn={}, name='k', supports={})"
INTERRUPTED = {
    "import": "once()\n" + KERNEL.format("", "good", "None"),
    "hook": KERNEL.format("once(); ", "good", "None"),
    "condition": "def supports(x): return once()\n" + KERNEL.format("", "good", "supports"),
    "kernel": "def fn(x): return once() or good(x)\n" + KERNEL.format("", "fn", "None"),
    "text": "class Odd(Exception):\n    def __str__(self): once()\n"
    "if not hasattr(sys, 'interrupted'): raise Odd\n" + KERNEL.format("", "good", "None"),
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_an_interrupt_reaches_the_user(forks: Forks, tmp_path: Path, where: str) -> None:
    slow = Stranger("slow", INTERRUPT + INTERRUPTED[where])
    questions = {"first": "served()", "then": "served()", "states": STATES}
    answers = forks.ask(tmp_path, [slow], questions)
    assert answers["first"].startswith("KeyboardInterrupt: ")
    assert answers["then"] == ["slow:k"]
    assert answers["states"]["slow"] == "loaded"
    assert answers.stderr == ""


def test_a_backend_that_the_user_imports_first(forks: Forks, tmp_path: Path) -> None:
    early = Stranger("early", "hal.devices()")
    questions = {"import": "__import__('hal_early')", "reasons": "hal.backends()"}
    answers = forks.ask(tmp_path, [early], questions)
    assert answers["import"].startswith("<module 'hal_early'")
    assert "hal_early uses hal while it is being imported" in str(answers["reasons"])


def test_the_command_line_prints_json_alone(forks: Forks, tmp_path: Path) -> None:
    chatty = Stranger(
        "chatty",
        "print('importing')\n@hookimpl\ndef silu_and_mul(device): print('offering')\n"
        "@hookimpl\ndef hal_devices(): print('probing')",
    )
    command = "__import__('hal.cli').cli.app(['report', '--json'], standalone_mode=False)"
    answers = forks.ask(tmp_path, [chatty], {"report": command})
    found = [b["name"] for b in json.loads(answers.stdout)["backends"]]
    assert found == ["chatty", *OURS]
    assert answers.stderr.split() == ["importing", "probing", "offering"]
