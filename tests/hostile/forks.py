"""Fresh processes in a tenth of a second: this program imports torch and hal, and forks to answer.

A line of its input is a path to search, settings and questions, which are expressions; the answers
are written as JSON. hal looks at nothing before it is used, so that each fork discovers anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# It takes longer to import than all backends, and each fork would.
import packaging.specifiers  # noqa: F401
import torch

import hal
from hal.op import OPS

# What hangs ends in this many seconds; what works takes a fraction of one.
_LIMIT = 60
# silu of -1, -3/4, -1/2 and -1/4.
WANTED = [-0.26894, -0.24061, -0.18877, -0.10946]


def x() -> torch.Tensor:
    """The argument of every question, [1, 8]; silu_and_mul makes ``WANTED`` of it."""
    return torch.tensor([[-1.0, -0.75, -0.5, -0.25, 1.0, 1.0, 1.0, 1.0]])


def served(*forced: str) -> object:
    """Which kernel served silu_and_mul; its result instead if that is wrong."""
    force = hal.use(*forced) if forced else contextlib.nullcontext()
    with hal.trace() as records, force:
        result = hal.ops.silu_and_mul(x())
    right = torch.allclose(result, torch.tensor([WANTED]), atol=1e-4)
    return [f"{r.backend}:{r.kernel}" for r in records] if right else result.tolist()


def under(backend: str, call: Callable[[], Any]) -> object:
    """What ``call`` returns where ``backend`` is forced, as it prints."""
    with hal.use(backend):
        return repr(call())


def refused(backend: str, op: str = "silu_and_mul") -> list[str]:
    """Why no kernel of ``backend`` can be chosen, a reason for each candidate."""
    found = hal.explain(op).candidates
    return [c.reason for c in found if c.backend == backend and c.offered is None]


def switches() -> list[object]:
    """What a backend must leave as it is."""
    drawn = torch.get_rng_state()[:64].tolist()
    modes = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    return [*map(str, modes), torch.initial_seed(), torch.get_deterministic_debug_mode(), drawn]


NAMES = {
    **{f.__name__: f for f in (refused, served, switches, under, x)},
    "hal": hal,
    "OPS": OPS,
    "sys": sys,
    "torch": torch,
}


def attempt(question: str) -> object:
    """The value of an expression, or the error it raises, with its notes and cause."""
    try:
        return eval(question, NAMES)
    except BaseException as error:  # noqa: BLE001  # Whether SystemExit escapes is what is asked.
        origin = [f"from {error.__cause__!r}"] if error.__cause__ else []
        notes = getattr(error, "__notes__", [])
        return "\n".join([f"{type(error).__name__}: {error}", *notes, *origin])


NAMES["attempt"] = attempt


def reply(path: str, settings: dict[str, str], questions: dict[str, str]) -> None:
    """Answer in this process, whose output goes to files beside the backends."""
    for stream, name in (sys.stdout, "stdout"), (sys.stderr, "stderr"):
        os.dup2(os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.path.insert(0, path)
    os.environ.update(settings)
    answers = {name: attempt(question) for name, question in questions.items()}
    Path(path, "answers").write_text(json.dumps(answers, default=repr), encoding="utf-8")


def forked(case: list[Any]) -> int:
    """Reply in a fork; its status."""
    child = os.fork()
    if child == 0:
        signal.alarm(_LIMIT)
        reply(*case)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{forked(json.loads(line))}\n")
        sys.stdout.flush()
