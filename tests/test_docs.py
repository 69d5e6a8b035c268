"""Every example in the documentation runs and gives what it says."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hal
from hal.functions import FORMS
from hal.settings import _NAMES as VARIABLES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

DOCUMENTED = {
    **{f"hal.{name}": getattr(hal, name) for name in hal.__all__},
    **{f"hal.graphs.{name}": getattr(hal.graphs, name) for name in hal.graphs.__all__},
    **{f"hal.ops.{name}": getattr(hal.ops, name) for name in FORMS},
}
EXAMPLES = {
    name: doc for name, value in DOCUMENTED.items() if ">>>" in (doc := inspect.getdoc(value) or "")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    names = {"hal": hal, "torch": torch}
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, None)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 0


def test_the_blocks_of_the_readme_run_in_their_order() -> None:
    assert BLOCKS
    names: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCKS:
        if "simulate(" in block:  # It is not to be undone; tests/simulated runs it elsewhere.
            continue
        exec(compile(block, "README.md", "exec"), names)


def test_the_readme_has_every_variable() -> None:
    assert set(re.findall(r"^\| `(HAL_\w+)`", README, re.M)) == set(VARIABLES)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
