"""The facts of each device, without making MUSA unusable in children that are forked later.

``pymtml`` is not asked: it knows nothing that torch_musa does not, and counts devices that
MUSA_VISIBLE_DEVICES hides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

__all__ = ["facts", "module"]

_NARROW = 31
"""The first architecture whose warps have 32 threads; those before have 128."""


def module() -> Any:
    """``torch.musa``; not through ``torch.cuda``, which a shim may have turned into it."""
    return torch.get_device_module("musa")


def facts() -> list[dict[str, Any]]:
    """Name, arch, memory, multiprocessors and warp size of each device, by index.

    Raises:
        RuntimeError: The child process that was asked has failed; with what it said.
    """
    return _seen() if module().is_initialized() else _seen_by_child()


def _seen() -> list[dict[str, Any]]:
    found = module()
    return [_of(found.get_device_properties(i)) for i in range(found.device_count())]


def _of(properties: Any) -> dict[str, Any]:
    """Of the seven fields that there are; the warp size is not among them."""
    arch = properties.major * 10 + properties.minor
    return {
        "name": properties.name,
        "arch": arch,
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "warp_size": 32 if arch >= _NARROW else 128,
    }


def _seen_by_child() -> list[dict[str, Any]]:
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    code = "import json, torch_musa; from hal_musa.probe import _seen; print(json.dumps(_seen()))"
    child = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise RuntimeError(f"asking MUSA for its devices failed: {child.stderr.strip()[-500:]}")
    return json.loads(child.stdout.splitlines()[-1])
