"""The facts of each device, without making CUDA unusable in children that are forked later."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

__all__ = ["facts"]


def facts() -> list[dict[str, Any]]:
    """Name, arch, memory and multiprocessors of each device, by index.

    Raises:
        RuntimeError: The child process that was asked has failed; with what it said.
    """
    return _seen() if torch.cuda.is_initialized() else _seen_by_child()


def _seen() -> list[dict[str, Any]]:
    return [_of(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]


def _of(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "arch": properties.major * 10 + properties.minor,
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def _seen_by_child() -> list[dict[str, Any]]:
    code = "import json; from hal_cuda.probe import _seen; print(json.dumps(_seen()))"
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    child = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise RuntimeError(f"asking CUDA for its devices failed: {child.stderr.strip()[-500:]}")
    return json.loads(child.stdout.splitlines()[-1])
