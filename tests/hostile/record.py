"""A backend made up for a test: its module, its metadata and what is to become of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import attrs

__all__ = ["WELL", "Answers", "Forks", "Stranger", "running"]

HEADER = """
import torch
import hal
from hal import Backend, Capability, Device, Kernel, Repair, hookimpl
backend = Backend(api=1, devices=("cpu",))
def good(x):
    return torch.nn.functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]
"""


OURS = dict.fromkeys(("cuda", "musa", "native", "triton"), "loaded")
"""The state of each backend that comes with hal."""


@attrs.frozen
class Stranger:
    """A backend and what is expected of it.

    Attributes:
        name: The name of the backend.
        source: Its module, after ``HEADER``.
        state: The state it ends in.
        reason: A pattern of the reason for that; None if there is none.
        problem: A pattern of what is put on record against it; None if nothing is.
        question: An expression asked once everything is loaded, with ``forks.NAMES``.
        answer: A pattern of the answer.
        chosen: A pattern of the answer to ``served()``, where nothing is forced.
        metadata: Lines in addition to name and version, or the whole if it is bytes.
        distribution: The name of the distribution; the module's is made from it.
        value: What the entry point refers to; the module by default.
        imported: Whether its module is imported.
    """

    name: str
    source: str = ""
    state: str = "loaded"
    reason: str | None = None
    problem: str | None = None
    question: str = "None"
    answer: str = "^None$"
    chosen: str = "well:well"
    metadata: str | bytes = ""
    distribution: str = attrs.field()
    value: str = attrs.field()
    imported: bool = True

    @value.default  # pyright: ignore
    def _value(self) -> str:
        return self.module

    @distribution.default  # pyright: ignore
    def _distribution(self) -> str:
        return "hal-" + "".join(c if c.isalnum() else "-" for c in self.name)

    @property
    def module(self) -> str:
        """The name of its module."""
        return self.distribution.lower().replace("-", "_").replace(".", "_")

    def install(self, site: Path) -> None:
        """Write what an installer would."""
        info = site / f"{self.distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        text = self.metadata
        if isinstance(text, str):
            lines = "Metadata-Version: 2.1", f"Name: {self.distribution}", "Version: 1.0", text
            text = "\n".join(lines).encode()
        if text:
            (info / "METADATA").write_bytes(text)
        (info / "entry_points.txt").write_text(f"[hal.backends]\n{self.name} = {self.value}\n")
        (site / f"{self.module}.py").write_text(HEADER + self.source)


# Portable, so that whatever a stranger claims for its device comes first.
WELL = Stranger(
    "well",
    """
backend = Backend(api=1)
@hookimpl
def silu_and_mul(device):
    return Kernel(fn=good, name="well")
""",
)


@attrs.frozen
class Answers:
    """What came of some questions."""

    said: dict[str, Any]
    stdout: str
    stderr: str

    def __getitem__(self, question: str) -> Any:
        """The answer to one of them."""
        return self.said[question]


@attrs.define
class Forks:
    """The program ``forks.py`` at work."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls) -> Forks:
        """Start it with none of hal's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
        command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
        environment = kept | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return cls(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )

    def stop(self) -> None:
        """End it."""
        with self.process:
            cast("TextIO", self.process.stdin).close()

    def ask(
        self,
        site: Path,
        strangers: Iterable[Stranger],
        questions: dict[str, str],
        **settings: str,
    ) -> Answers:
        """Put questions, in their order, where just these backends are installed beside hal's."""
        for each in strangers:
            each.install(site)
        stdin, stdout = cast("TextIO", self.process.stdin), cast("TextIO", self.process.stdout)
        print(json.dumps([str(site), settings, questions]), file=stdin, flush=True)
        status = int(stdout.readline())
        stderr = (site / "stderr").read_text()
        assert status == 0, stderr
        said = json.loads((site / "answers").read_text())
        return Answers(said, (site / "stdout").read_text(), stderr)


def running() -> Iterator[Forks]:
    """Start the program, for a fixture, and end it."""
    started = Forks.start()
    yield started
    started.stop()
