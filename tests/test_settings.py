"""The environment: what the variables mean, misspelt ones, and that it is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hal.settings import Settings, settings

read = settings.__wrapped__


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HAL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Settings()),
        ({"HAL_USE": "a,b"}, Settings(use="a,b")),
        ({"HAL_PREFER": "softmax=a"}, Settings(prefer="softmax=a")),
        ({"HAL_PLUGINS": " a , b ,"}, Settings(plugins=frozenset({"a", "b"}))),
        ({"HAL_PLUGINS": ""}, Settings(plugins=frozenset())),
        ({"HAL_DISABLE": "a,b:softmax"}, Settings(disable=frozenset({"a", "b:softmax"}))),
        ({"HAL_SAFE": "1"}, Settings(safe=True)),
        ({"HAL_SAFE": "0", "HAL_STRICT": "1"}, Settings(strict=True)),
        ({"HAL_SAFE": "", "HAL_STRICT": "0"}, Settings()),
        ({"HAL_EVIDENCE": os.pathsep.join(["a", "", "b"])}, Settings(evidence=("a", "b"))),
    ],
)
def test_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Settings
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read() == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HAL_PREFR", "HAL_PREFR is not a setting of hal; did you mean HAL_PREFER?"),
        ("HAL_DISABLED", "HAL_DISABLED is not a setting of hal; did you mean HAL_DISABLE?"),
        (
            "HAL_9000_COLOUR",
            "HAL_9000_COLOUR is not a setting of hal; known: HAL_DISABLE, HAL_EVIDENCE, "
            "HAL_PLUGINS, HAL_PREFER, HAL_SAFE, HAL_STRICT, HAL_USE",
        ),
    ],
)
def test_an_unknown_name_warns(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.warns(UserWarning, match=name) as caught:
        assert read() == Settings()
    assert [str(warning.message) for warning in caught] == [message]


@pytest.mark.parametrize("name", ["HAL_SAFE", "HAL_STRICT"])
def test_a_switch_that_is_neither_on_nor_off_is_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "no")
    with pytest.warns(UserWarning, match=f"{name}='no' is neither 0 nor 1; it counts as 1"):
        found = read()
    assert found.safe or found.strict


BACKEND = """
import torch
from hal import Backend, Kernel, hookimpl

backend = Backend(api=1, devices=("cpu",))

@hookimpl
def softmax(device):
    def fn(logits: torch.Tensor, *, temperature: torch.Tensor | float = 1.0) -> torch.Tensor:
        return (logits / temperature).softmax(-1)

    return [Kernel(fn=fn, name="first"), Kernel(fn=fn, name="second")]
"""

CHILD = """
import json, os, sys, warnings
import hal
assert "hal_made" not in sys.modules
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    os.environ["HAL_PREFER"] = os.environ.pop("LATER")
    first = [str(hal.explain(op).chosen) for op in ("softmax", "layer_norm")]
    os.environ["HAL_USE"] = "softmax=made:first"
    again = [str(hal.explain(op).chosen) for op in ("softmax", "layer_norm")]
    with hal.use("made"):
        inner = str(hal.explain("softmax").chosen)
print(json.dumps([first, again, inner, [str(w.message) for w in caught]]))
"""


def made(where: Path) -> Path:
    """A folder with a backend of another distribution, as pip leaves it."""
    info = where / "hal_made-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hal-made\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hal.backends]\nmade = hal_made\n")
    (where / "hal_made.py").write_text(BACKEND)
    return where


def child(where: Path, **variables: str) -> Any:
    path = os.pathsep.join(filter(None, (str(where), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path} | variables,
    )
    return json.loads(done.stdout)


def test_a_process_reads_it_once_at_first_use(tmp_path: Path) -> None:
    variables = {"LATER": "made:second", "HAL_USE": "layer_norm=native", "HAL_USES": "made"}
    first, again, inner, warned = child(made(tmp_path), **variables)
    assert first == again == ["made:second", "native:torch"]
    assert inner == "made:second"
    assert warned == ["HAL_USES is not a setting of hal; did you mean HAL_USE?"]
