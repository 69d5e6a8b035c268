"""Claims in a report: claimed, proven or refuted, by files that a run of the kit wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hal
from hal import evidence as module
from hal.evidence import FORMAT, Evidence, setting
from hal.report import capabilities

CPU = hal.device("cpu")


def cell(op: str, check: str, status: str, kernel: str = "native:torch") -> dict[str, str]:
    return {"op": op, "kernel": kernel, "check": check, "status": status}


def written(path: Path, *cells: dict[str, str], **changes: Any) -> Path:
    """A file as ``hal check`` writes it, of the reference on this host."""
    data = {
        "format": FORMAT,
        "backend": {"name": "native", "version": hal.__version__},
        "setting": setting(CPU),
        "cells": cells,
    }
    path.write_text(json.dumps(data | changes), encoding="utf-8")
    return path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a report know these files alone."""

    def know(*paths: Path) -> None:
        found = tuple(map(Evidence.read, paths))
        monkeypatch.setattr(module, "evidence", lambda: found)

    know()
    return know


def traits(op: str) -> dict[str, str]:
    report = hal.report("cpu", ops=[op])
    return report.traits(report.choices[0])


def test_without_evidence_a_claim_is_a_claim(known: Any) -> None:
    assert traits("softmax") == {"graph_safe": "claimed", "deterministic": "claimed"}
    assert set(capabilities(CPU).values()) == {"claimed"}


@pytest.mark.parametrize("status", ["proven", "refuted"])
def test_what_a_check_found(known: Any, tmp_path: Path, status: str) -> None:
    known(written(tmp_path / "a.json", cell("softmax", "deterministic", status)))
    assert traits("softmax") == {"graph_safe": "claimed", "deterministic": status}
    assert traits("layer_norm")["deterministic"] == "claimed"
    assert f"deterministic {status}" in str(hal.report("cpu", ops=["softmax"]))


@pytest.mark.parametrize("status", ["not tried", "not applicable", "known gap"])
def test_what_was_not_shown_is_claimed(known: Any, tmp_path: Path, status: str) -> None:
    known(written(tmp_path / "a.json", cell("softmax", "deterministic", status)))
    assert traits("softmax")["deterministic"] == "claimed"


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": {"name": "native", "version": "0.0.1"}},
        {"setting": setting(CPU) | {"torch": "2.0.0"}},
        {"setting": setting(CPU) | {"hal": "0.0.1"}},
        {"setting": setting(CPU) | {"type": "acme"}},
        {"setting": setting(CPU) | {"name": "another processor"}},
        {"setting": setting(CPU) | {"arch": 90}},
        {"cells": [cell("softmax", "deterministic", "proven", kernel="native:other")]},
    ],
    ids=str,
)
def test_evidence_of_something_else(known: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    proven = cell("softmax", "deterministic", "proven")
    known(written(tmp_path / "a.json", proven, **changes))
    assert traits("softmax")["deterministic"] == "claimed"


def test_what_is_named_first_comes_first(known: Any, tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", cell("softmax", "deterministic", "refuted"))
    known(first, written(tmp_path / "b.json", cell("softmax", "deterministic", "proven")))
    assert traits("softmax")["deterministic"] == "refuted"


def test_capabilities(known: Any, tmp_path: Path) -> None:
    shown = [
        cell("(device)", name, status, "native:")
        for name, status in [("bf16", "proven"), ("fp8", "refuted")]
    ]
    known(written(tmp_path / "a.json", *shown))
    found = capabilities(CPU)
    assert (found["bf16"], found["fp8"], found["compile"]) == ("proven", "refuted", "claimed")
    assert hal.report("cpu", ops=["softmax"]).to_dict()["capabilities"] == {"cpu": found}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'format'"),
        ('{"format": 99}', "ValueError: its format is 99, not 1"),
        ('{"format": 1, "cells": 3}', "TypeError"),
        ('{"format": 1, "cells": [], "backend": "native"}', "TypeError"),
    ],
)
def test_a_file_that_is_no_evidence(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(hal.InvalidInput, match=r"a\.json is not evidence") as e:
        Evidence.read(tmp_path / "a.json")
    assert found in str(e.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(hal.InvalidInput, match="FileNotFoundError"):
        Evidence.read(tmp_path / "a.json")


def command(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    environment = kept | {"XDG_DATA_HOME": str(home)} | variables
    whole = [sys.executable, "-m", "hal", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, env=environment)


@pytest.mark.long
def test_from_the_command_to_the_report(tmp_path: Path) -> None:
    file, asked = tmp_path / "there" / "a.json", ("--ops", "softmax", "--checks", "deterministic")
    done = command("check", "native", *asked, "--output", str(file), "--record", home=tmp_path)
    assert done.returncode == 0, done.stderr
    (recorded,) = (tmp_path / "hal" / "evidence").iterdir()
    assert recorded.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    for home, variables in [(tmp_path, {}), (tmp_path / "none", {"HAL_EVIDENCE": str(file)})]:
        report = json.loads(command("report", "--json", home=home, **variables).stdout)
        stands = {choice["op"]: choice["traits"] for choice in report["choices"]}
        assert stands["softmax"]["deterministic"] == "proven"
        assert stands["rms_norm"]["deterministic"] == "claimed"
    spoilt = command("report", home=tmp_path, HAL_EVIDENCE=f"{tmp_path}/b.json")
    assert spoilt.returncode == 2
    assert "b.json is not evidence" in spoilt.stderr


def test_the_setting_has_plain_versions() -> None:
    assert json.loads(json.dumps(setting(CPU)))["torch"] == str(torch.__version__)
